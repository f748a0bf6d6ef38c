"""The commands and their options. Each imports what it needs when it is called, so that the service stays small."""

from enum import StrEnum
from typing import Annotated

import typer

from promoterd import __version__
from promoterd.cli.heat import heat
from promoterd.cli.layout import layout
from promoterd.cli.options import Config, Json, Socket
from promoterd.cli.record import record
from promoterd.cli.warm import warm

app = typer.Typer(
    name="promoterd",
    help="Keeps the hot directories of a live NFS-backed overlay complete in local storage.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

SomeMount = Annotated[str | None, typer.Argument(metavar="MOUNT", help="One mount point; every one if there is none.")]
Directory = Annotated[
    str, typer.Argument(metavar="PATH", help="A directory on a mount: absolute, or relative to where you are.")
]
OfflineUpper = Annotated[
    str | None, typer.Option("--upper", metavar="DIR", help="With --offline: the upper layer.", show_default=False)
]


class DemoBackend(StrEnum):
    """Backends that the demonstration can show."""

    AUTO = "auto"
    LAYER = "layer"
    OPAQUE = "opaque"


def _version(asked: bool) -> None:
    if asked:
        from promoterd.cli.output import say

        say(f"promoterd {__version__}\n")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    del version


@app.command()
def run(config: Config = None) -> None:
    """Run the daemon in the foreground. SIGTERM ends it; SIGHUP reads the policy again."""
    from promoterd.cli.service import run_daemon

    run_daemon(config)


@app.command()
def check(
    file: Annotated[
        str,
        typer.Argument(metavar="FILE", envvar="PROMOTERD_CONFIG", help="The policy to check."),
    ] = "/etc/promoterd/policy.yaml",
    as_json: Json = False,
) -> None:
    """Check a policy file. Prints it with everything that it leaves unsaid."""
    from promoterd.cli.checking import check_policy

    check_policy(file, as_json=as_json)


@app.command()
def doctor(mount: SomeMount = None, config: Config = None, as_json: Json = False) -> int:
    """Say what each mount is fit for. Each backend's verdict, and what to mount instead."""
    from promoterd.cli.checking import examine_mounts

    return examine_mounts(mount, config, as_json=as_json)


app.command()(layout)
app.command(context_settings={"allow_interspersed_args": False})(record)
app.command()(warm)
app.add_typer(heat, name="heat")


@app.command()
def status(mount: SomeMount = None, config: Config = None, socket: Socket = None, as_json: Json = False) -> None:
    """Show each mount. How many directories are in which state, what waits, what failed and why."""
    from promoterd.cli import asking

    asking.status(asking.Daemon(config, socket), mount, as_json=as_json)


@app.command()
def top(  # noqa: PLR0913, PLR0917 - one parameter for each option
    mount: SomeMount = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=10_000, help="How many directories.")] = 20,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Show it anew until Ctrl-C.")] = False,
    interval: Annotated[float, typer.Option(min=0.1, metavar="SECONDS", help="How often, with --watch.")] = 2.0,
    config: Config = None,
    socket: Socket = None,
    as_json: Json = False,
) -> None:
    """Show the hottest directories. What promoting them saves the server, and when that has paid."""
    from promoterd.cli import asking

    again = interval if watch else None
    asking.top(asking.Daemon(config, socket), mount, limit=limit, again=again, as_json=as_json)


@app.command()
def promote(
    path: Directory,
    recursive: Annotated[
        bool, typer.Option("--recursive", "-r", help="Or else every directory below it that the policy allows.")
    ] = False,
    config: Config = None,
    socket: Socket = None,
    as_json: Json = False,
) -> int:
    """Complete a directory now. Whatever its heat; through the daemon, or without one by itself."""
    from promoterd.cli.asking import Daemon
    from promoterd.cli.promoting import promote_path

    return promote_path(Daemon(config, socket), path, recursive=recursive, as_json=as_json)


@app.command()
def reopen(  # noqa: PLR0913, PLR0917 - one parameter for each option
    path: Annotated[
        str | None,
        typer.Argument(metavar="PATH", help="A directory on a mount; with --all a mount; with --offline see there."),
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="All that is complete on a mount, or everywhere.")] = False,
    offline: Annotated[
        bool,
        typer.Option("--offline", help="In layers that are not mounted; PATH then begins at the root of the mount."),
    ] = False,
    upper: OfflineUpper = None,
    lower: Annotated[
        list[str] | None,
        typer.Option(
            metavar="DIR",
            help="With --offline: a lower layer, the topmost first.  [default: those it had last]",
            show_default=False,
        ),
    ] = None,
    deferred: Annotated[
        bool, typer.Option("--deferred", help="With --offline: every reopening that had to wait for this.")
    ] = False,
    config: Config = None,
    socket: Socket = None,
    as_json: Json = False,
) -> int:
    """Undo the completion of a directory. It is merged with the server's again, its complete parents too."""
    from promoterd.cli import reopening
    from promoterd.cli.asking import Daemon

    wanted = reopening.Wanted(path, everything=everything, deferred=deferred)
    if offline:
        return reopening.reopen_offline(wanted, upper, lower, config, as_json=as_json)
    reopening.refuse_offline_options(upper=upper, lower=lower, deferred=deferred)
    return reopening.reopen_path(Daemon(config, socket), wanted, as_json=as_json)


@app.command()
def explain(path: Directory, config: Config = None, socket: Socket = None, as_json: Json = False) -> None:
    """Say all about a directory. Its rule, heat and state, and what keeps it from the next one."""
    from promoterd.cli.asking import Daemon
    from promoterd.cli.explaining import explain_path

    explain_path(Daemon(config, socket), path, as_json=as_json)


@app.command()
def fsck(  # noqa: PLR0913, PLR0917 - one parameter for each option
    mount: SomeMount = None,
    repair: Annotated[
        bool, typer.Option("--repair", help="Put right what is safe to. Not while the daemon works there.")
    ] = False,
    offline: Annotated[bool, typer.Option("--offline", help="Check layers that are not mounted.")] = False,
    upper: OfflineUpper = None,
    lower: Annotated[
        list[str] | None,
        typer.Option(
            metavar="DIR",
            help="With --offline: a lower layer, the topmost first, those of a metadata layer too.  [default: those it "
            "had last]",
            show_default=False,
        ),
    ] = None,
    rate: Annotated[
        float, typer.Option(min=0, metavar="ENTRIES", help="Look at so many entries a second at most; 0: no limit.")
    ] = 0,
    config: Config = None,
    as_json: Json = False,
) -> int:
    """Check every completion against the server. Says what is wrong, and repairs it if asked to; exits as fsck(8)."""
    from promoterd.cli import fsck as checking

    wanted = checking.Wanted(mount, repair=repair, rate=rate)
    if offline:
        return checking.check_offline(wanted, upper, lower, config, as_json=as_json)
    checking.refuse_offline_options(upper=upper, lower=lower)
    return checking.check_mounted(wanted, config, as_json=as_json)


@app.command()
def pause(mount: SomeMount = None, config: Config = None, socket: Socket = None, as_json: Json = False) -> None:
    """Promote nothing until `resume`. What is complete stays so."""
    from promoterd.cli import asking

    asking.pause(asking.Daemon(config, socket), mount, as_json=as_json)


@app.command()
def resume(mount: SomeMount = None, config: Config = None, socket: Socket = None, as_json: Json = False) -> None:
    """Go on after `pause`, `retire` or the trip wire."""
    from promoterd.cli import asking

    asking.resume(asking.Daemon(config, socket), mount, as_json=as_json)


@app.command()
def retire(
    mount: Annotated[str, typer.Argument(metavar="MOUNT", help="The mount point.")],
    config: Config = None,
    socket: Socket = None,
    as_json: Json = False,
) -> int:
    """Undo every completion on a mount. Nothing more is promoted there; what is not safe now waits for --offline."""
    from promoterd.cli import asking

    return asking.retire(asking.Daemon(config, socket), mount, as_json=as_json)


@app.command()
def reload(config: Config = None, socket: Socket = None, as_json: Json = False) -> None:
    """Make the daemon read its policy again. It keeps the old one where the new one is bad."""
    from promoterd.cli import asking

    asking.reload(asking.Daemon(config, socket), as_json=as_json)


@app.command()
def demo(
    backend: Annotated[
        DemoBackend, typer.Option(help="With which backend; auto takes the best that this kernel has.")
    ] = DemoBackend.AUTO,
    as_json: Json = False,
) -> int:
    """Show what it is good for. On a file system that counts what it is asked; changes nothing on this machine."""
    from promoterd.cli.checking import run_demonstration

    return run_demonstration(backend=backend.value, as_json=as_json)
