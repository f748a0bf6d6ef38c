"""``promoterd heat``: heat lists as files."""

from enum import StrEnum
from typing import Annotated

import typer

from promoterd.cli.options import Config, Json, Socket

heat = typer.Typer(
    help="Heat lists: merge them, or get one from the daemon.",
    rich_markup_mode=None,
)


class Kind(StrEnum):
    """Kinds of use, as a heat list has them."""

    OPEN = "open"
    LIST = "list"
    MISS = "miss"
    FOUND = "found"


MinCount = Annotated[
    int, typer.Option("--min-count", min=0, metavar="N", help="Leave out what was used less often than this.")
]
Top = Annotated[
    int | None,
    typer.Option("--top", min=1, metavar="N", help="Leave out all but the most used ones.", show_default=False),
]

By = Annotated[
    Kind | None,
    typer.Option("--by", help="Which uses count for order and cuts.  [default: all]", show_default=False),
]


@heat.callback()
def _group() -> None:
    """Heat lists: merge them, or get one from the daemon."""


@heat.command()
def merge(
    lists: Annotated[
        list[str] | None,
        typer.Argument(metavar="LIST", help="Files, directories of lists, globs; - or none: standard input."),
    ] = None,
    output: Annotated[
        str, typer.Option("--output", "-o", metavar="FILE", help="Where to write the merged list; - for here.")
    ] = "-",
    min_count: MinCount = 0,
    top: Top = None,
    by: By = None,
    as_json: Json = False,
) -> None:
    """Merge heat lists into one. Counts and runs add up, so lists can be merged in any order and in many steps."""
    from promoterd.cli.listing import Cut, merge_lists

    merge_lists(lists or ["-"], output, cut=Cut(min_count, top, by), as_json=as_json)


@heat.command()
def dump(  # noqa: PLR0913, PLR0917 - one parameter for each option
    mount: Annotated[
        str | None, typer.Argument(metavar="MOUNT", help="One mount point; every one if there is none.")
    ] = None,
    output: Annotated[
        str, typer.Option("--output", "-o", metavar="FILE", help="Where to write the list; - for here.")
    ] = "-",
    min_count: MinCount = 0,
    top: Top = None,
    by: By = None,
    config: Config = None,
    socket: Socket = None,
    as_json: Json = False,
) -> None:
    """Write the daemon's heat as a heat list. What was used long ago counts less, as the policy's half_life says."""
    from promoterd.cli.asking import Daemon
    from promoterd.cli.listing import Cut, dump_heat

    dump_heat(Daemon(config, socket), mount, output, cut=Cut(min_count, top, by), as_json=as_json)
