"""``promoterd record``: the command and its options; what it does is in :mod:`.recording`."""

from typing import Annotated

import typer

from promoterd.cli.options import Config, Json


def record(  # noqa: PLR0913, PLR0917 - one parameter for each option
    command: Annotated[
        list[str] | None,
        typer.Argument(metavar="COMMAND", help="What to run; its exit code is this command's.", show_default=False),
    ] = None,
    output: Annotated[
        str, typer.Option("--output", "-o", metavar="FILE", help="Where to write the list; - for standard output.")
    ] = "heat.yaml",
    add: Annotated[bool, typer.Option("--add", help="Add to the list that is there, instead of replacing it.")] = False,
    pid: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="PID", help="Watch this process and its children until it ends.", show_default=False
        ),
    ] = None,
    seconds: Annotated[
        float | None,
        typer.Option(
            min=0.1,
            metavar="N",
            help="Record for so long: what --pid does, or else everything on the mounts.",
            show_default=False,
        ),
    ] = None,
    how: Annotated[
        str | None,
        typer.Option(
            "--with",
            metavar="NAME",
            help="strace, or a heat source, which hears everybody on the mounts.  [default: strace for a COMMAND or "
            "--pid, else the policy's source]",
            show_default=False,
        ),
    ] = None,
    seccomp: Annotated[
        bool,
        typer.Option(
            "--seccomp",
            help="Slow down lookups alone. What the COMMAND leaves in the background is waited for, and all of it "
            "fails should this be killed.",
        ),
    ] = False,
    mount: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MOUNT",
            help="A mount to record for; again for each further one.  [default: those of the policy]",
            show_default=False,
        ),
    ] = None,
    config: Config = None,
    as_json: Json = False,
) -> int:
    """Write down what a run needs. As a heat list, which `warm` promotes and `heat merge` merges."""
    from promoterd.cli.recording import Asked, record_run

    asked = Asked(
        command or [], output=output, add=add, pid=pid, seconds=seconds, how=how, seccomp=seccomp, mounts=mount or []
    )
    return record_run(asked, config, as_json=as_json)
