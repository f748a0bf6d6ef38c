"""``promoterd reopen``: through the daemon, without one, and in layers that are not mounted."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from promoterd.cli import render
from promoterd.cli.asking import Daemon
from promoterd.cli.direct import log_errors_only, work_on
from promoterd.cli.output import say_json, say_rich
from promoterd.cli.privilege import require_privilege
from promoterd.cli.progress import sign_of_life
from promoterd.cli.settings import mount_for, policy_for_acting, state_directory
from promoterd.cli.typed import absolute
from promoterd.control.protocol import Request
from promoterd.errors import Deferred, MountNotFound, Refused, UsageError
from promoterd.ledger import Ledger
from promoterd.mounted import Mounted
from promoterd.offline import Offline
from promoterd.overlay.mounts import read_overlays
from promoterd.paths import show
from promoterd.reopen import reopen_all, reopen_wanted


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is to be reopened; ``path`` is a mount, or nothing, where it is ``everything``."""

    path: str | None
    everything: bool = False
    deferred: bool = False


def reopen_path(daemon: Daemon, wanted: Wanted, *, as_json: bool) -> int:
    """Reopen on a mount; the exit code says whether something has to wait. Raises PromoterdError."""
    if wanted.path is None and not wanted.everything:
        raise UsageError("nothing to reopen", hint="name a directory, or say --all")
    path = None if wanted.path is None else absolute(wanted.path)
    with sign_of_life("reopening: waiting until nobody has written there for a while …", wanted=not as_json):
        if daemon.runs:
            answer = daemon.ask(Request(command="reopen", path=path, all=wanted.everything))
        else:
            answer = _directly(daemon, path, everything=wanted.everything)
    return _say(answer, as_json=as_json)


def refuse_offline_options(*, upper: str | None, lower: Sequence[str] | None, deferred: bool) -> None:
    """Raise UsageError for an option that means nothing on a mounted overlay."""
    given = {"--upper": upper is not None, "--lower": bool(lower), "--deferred": deferred}
    for name, there in given.items():
        if there:
            raise UsageError(f"{name} goes with --offline only", hint="add --offline, once the overlay is unmounted")


def reopen_offline(
    wanted: Wanted, upper: str | None, lower: Sequence[str] | None, config: str | None, *, as_json: bool
) -> int:
    """Reopen in layers that are not mounted; the exit code says whether something is refused. Raises PromoterdError."""
    chosen = [wanted.path is not None, wanted.everything, wanted.deferred]
    if chosen.count(True) != 1:
        raise UsageError("--offline needs one of PATH, --all and --deferred", hint="`promoterd reopen --help`")
    if upper is None:
        raise UsageError("--offline needs --upper", hint="the upper layer: `upperdir` of the mount that there was")
    require_privilege()
    log_errors_only()
    with (
        Ledger(state_directory(config)) as ledger,
        Offline(
            ledger,
            os.path.realpath(os.fsencode(upper)),
            [os.path.realpath(os.fsencode(directory)) for directory in lower or ()],
        ) as layers,
    ):
        refused: list[tuple[bytes, Refused]] = []
        if wanted.path is not None:
            reopened = layers.reopen(layers.inside(os.fsencode(wanted.path)))
        elif wanted.everything:
            reopened, refused = layers.reopen_all()
        else:
            reopened, refused = layers.reopen_deferred()
    answer = {
        "reopened": [show(path) for path in reopened],
        "deferred": [],
        "refused": [
            {"path": show(path), "reason": str(error.fields.get("reason", error.message)), "hint": error.hint}
            for path, error in refused
        ],
    }
    return _say(answer, as_json=as_json)


def _directly(daemon: Daemon, path: bytes | None, *, everything: bool) -> dict[str, Any]:
    require_privilege()
    policy = policy_for_acting(daemon.config)
    os.chdir("/")  # our own working directory must not be what pins it
    if path is not None and not everything:
        configured, inside = mount_for(policy, path)

        async def one(mount: Mounted) -> dict[str, Any]:
            return {"reopened": [show(found) for found in await reopen_wanted(mount, inside)], "deferred": []}

        return work_on(policy, configured, one)

    async def all_of_it(mount: Mounted) -> dict[str, Any]:
        done, deferred = await reopen_all(mount)
        return {
            "reopened": [show(found) for found in done],
            "deferred": [{"path": show(found), "reason": reason} for found, reason in deferred],
        }

    mounted = {overlay.mountpoint for overlay in read_overlays()}
    chosen = policy.mounts if path is None else [mount_for(policy, path)[0]]
    present = [mount for mount in chosen if mount.mountpoint_bytes in mounted]
    if not present:
        raise MountNotFound(mountpoint=", ".join(mount.mountpoint for mount in chosen))
    answers = [work_on(policy, mount, all_of_it) for mount in present]
    return {key: [entry for answer in answers for entry in answer[key]] for key in ("reopened", "deferred")}


def _say(answer: dict[str, Any], *, as_json: bool) -> int:
    if as_json:
        say_json(answer)
    else:
        say_rich(*render.reopened(answer))
    if answer.get("refused"):
        return Refused.exit_code
    return Deferred.exit_code if answer["deferred"] else 0
