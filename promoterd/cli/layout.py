"""``promoterd layout``: the command and its options; what it does is in :mod:`.laying_out`."""

from enum import StrEnum
from typing import Annotated

import typer


class Format(StrEnum):
    """How a layout is written down."""

    UNITS = "units"
    FSTAB = "fstab"
    COMMANDS = "commands"


def layout(  # noqa: PLR0913, PLR0917 - one parameter for each option
    lower: Annotated[
        list[str],
        typer.Option(metavar="SERVER:/PATH", help="What a server exports. Again for each further one, topmost first."),
    ],
    mountpoint: Annotated[str, typer.Option(metavar="DIR", help="Where the overlay is to be mounted.")],
    state: Annotated[
        str | None,
        typer.Option(
            metavar="DIR",
            help="A directory on a local disk for the upper layer, the work directory and the metadata layer."
            "  [default: /var/lib/promoterd/mounts/NAME]",
            show_default=False,
        ),
    ] = None,
    upper: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="The upper layer.  [default: upper in --state]", show_default=False),
    ] = None,
    work: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="The work directory.  [default: work in --state]", show_default=False),
    ] = None,
    lower_mountpoint: Annotated[
        list[str] | None,
        typer.Option(
            metavar="DIR",
            help="Where the server's tree is mounted, once for each --lower.  [default: /mnt/promoterd/NAME/lower]",
            show_default=False,
        ),
    ] = None,
    data_mountpoint: Annotated[
        list[str] | None,
        typer.Option(
            metavar="DIR",
            help="Where it is mounted a second time, for the data.  [default: /mnt/promoterd/NAME/data]",
            show_default=False,
        ),
    ] = None,
    nfs_options: Annotated[
        str, typer.Option(metavar="OPTIONS", help="Mount options of NFS, as in nfs(5).")
    ] = "ro,vers=4.2,hard",
    form: Annotated[Format, typer.Option("--format", help="As what to print or install it.")] = Format.UNITS,
    check: Annotated[
        bool, typer.Option("--check", help="Mount it first where nobody sees it, with layers that are thrown away.")
    ] = False,
    write: Annotated[
        bool, typer.Option("--write", help="Install it, and make its directories, instead of printing it.")
    ] = False,
    root: Annotated[str, typer.Option(metavar="DIR", help="With --write: install below another root.")] = "/",
    force: Annotated[bool, typer.Option("--force", help="With --write: overwrite what says something else.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object, errors too.")] = False,
) -> None:
    """Say what to mount for a metadata layer. Two NFS mounts and an overlay, as systemd units, fstab or commands."""
    from promoterd.cli.laying_out import Asked, lay_out

    asked = Asked(form.value, check=check, write=write, root=root, force=force)
    lay_out(
        asked,
        lowers=lower,
        mountpoint=mountpoint,
        state=state,
        upper=upper,
        work=work,
        lower_mountpoints=lower_mountpoint or (),
        data_mountpoints=data_mountpoint or (),
        nfs_options=nfs_options,
        as_json=as_json,
    )
