"""``promoterd warm``: the command and its options; what it does is in :mod:`.warming`."""

from typing import Annotated

import typer

from promoterd.cli.heat import By, MinCount, Top
from promoterd.cli.options import Config, Json, Socket


def warm(  # noqa: PLR0913, PLR0917 - one parameter for each option
    lists: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="LIST",
            help="Heat lists: files, directories of lists, globs; -: standard input.",
            show_default=False,
        ),
    ] = None,
    retry: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Instead of lists: what failed before. FILE then has what fails again.",
            show_default=False,
        ),
    ] = None,
    failures: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Where to write what failed, as a list for --retry.", show_default=False),
    ] = None,
    mount: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MOUNT",
            help="Only this mount of the lists; again for each further one.",
            show_default=False,
        ),
    ] = None,
    min_count: MinCount = 0,
    top: Top = None,
    by: By = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be promoted; promote nothing.")] = False,
    config: Config = None,
    socket: Socket = None,
    as_json: Json = False,
) -> int:
    """Promote the directories of heat lists. The most used first; broken off, the same command goes on from there."""
    from promoterd.cli.asking import Daemon
    from promoterd.cli.listing import Cut
    from promoterd.cli.warming import Asked, warm_lists

    cut = Cut(min_count, top, by)
    asked = Asked(lists or [], retry=retry, failures=failures, mounts=mount or [], cut=cut, dry_run=dry_run)
    return warm_lists(Daemon(config, socket), asked, as_json=as_json)
