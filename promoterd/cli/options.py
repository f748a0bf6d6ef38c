"""Options that several commands have."""

from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object, errors too.")]
Config = Annotated[
    str | None,
    typer.Option(
        "--config",
        "-c",
        envvar="PROMOTERD_CONFIG",
        metavar="FILE",
        help="The policy.  [default: /etc/promoterd/policy.yaml]",
        show_default=False,
    ),
]
Socket = Annotated[
    str | None,
    typer.Option(
        "--socket",
        metavar="PATH",
        help="The daemon's control socket.  [default: as the policy says]",
        show_default=False,
    ),
]
