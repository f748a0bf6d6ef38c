"""What the daemon answers on its control socket."""

import math
import os
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from promoterd import __version__, localdata
from promoterd.control import Handler, Progress, Request
from promoterd.errors import DaemonUnreachable, MountGone, MountNotFound, PromoterdError, Refused, UsageError
from promoterd.explain import explain
from promoterd.keeper import Keeper
from promoterd.mounted import Mounted
from promoterd.overlay.mountinfo import is_at_or_below
from promoterd.paths import display, relative_to_mount, show
from promoterd.payback import Payback, waiting_saved
from promoterd.pool import PoolClosed
from promoterd.promotion import Outcome, Promotion
from promoterd.reopen import reopen_all, reopen_wanted
from promoterd.states import State
from promoterd.wanted import promote_wanted
from promoterd.warm_handlers import heat_of, warm_some

if TYPE_CHECKING:
    from promoterd.daemon import Daemon
    from promoterd.worker import Worker

_TOP = 50


class Handlers:
    """One method for each request; results are plain values that JSON can hold."""

    def __init__(self, daemon: "Daemon") -> None:
        self._daemon = daemon

    def table(self) -> dict[str, Handler]:
        """The handlers by the name of their request."""
        return {
            name: self._telling(getattr(self, name))
            for name in (
                *("status", "top", "promote", "reopen", "explain", "pause", "resume", "retire", "reload"),
                *("warm", "heat"),
            )
        }

    def _telling(self, handler: Handler) -> Handler:
        """The handler, with what the kernel says and the end of a mount as errors for the one who asked."""

        async def tell(request: Request, progress: Progress) -> dict[str, Any]:
            try:
                return await handler(request, progress)
            except OSError as error:
                raise PromoterdError(
                    f"{display(request.path or b'/')}: {error.strerror}", hint="the log, or the server's, may say why"
                ) from error
            except PoolClosed as error:
                self._raise_if_stopping()
                raise MountGone(mountpoint=error.args[0]) from error

        return tell

    async def status(self, request: Request, progress: Progress) -> dict[str, Any]:
        """Every mount, or one, with its phase, backend, counts of states, and what waits or failed."""
        del progress
        daemon = self._daemon
        return {
            "version": __version__,
            "pid": os.getpid(),
            "kernel": os.uname().release,
            "uptime_seconds": time.time() - daemon.started,
            "policy": daemon.policy_file,
            "mounts": [self._status_of(keeper) for keeper in self._chosen(request.path)],
        }

    def _status_of(self, keeper: Keeper) -> dict[str, Any]:
        mount, worker = keeper.mount, keeper.worker
        answer: dict[str, Any] = {
            "mountpoint": keeper.policy.mountpoint,
            "phase": keeper.phase.value,
            "reason": keeper.reason,
        }
        if mount is None:
            return answer
        counts = mount.book.counts()
        source = None if worker is None else worker.source
        postponed = [record for record in mount.book.in_states({State.HOT}) if record.reason is not None]
        troubled = mount.book.in_states({State.REFUSED, State.FAILED, State.STALE, State.PINNED})
        return answer | {
            "backend": mount.backend.name,
            "paused": mount.paused,
            "held": None if mount.hold is None else {**asdict(mount.hold), "reason": mount.hold.reason.value},
            "begins_at": begins if (begins := mount.begins_at(b"always")) > mount.clock() else None,
            "pace": None if worker is None else worker.adapter.status(),
            "budget_left": None if (account := mount.account(mount.clock())) is None else account.left(mount.clock()),
            "states": {state.value: counts.get(state, 0) for state in State if state is not State.COLD},
            "deferred_reopens": [
                {"path": show(deferred.path), "reason": deferred.reason} for deferred in mount.upper_ledger.deferred()
            ],
            "troubled": [
                {"path": show(record.path), "state": record.state.value, "reason": record.reason}
                for record in troubled[:_TOP]
            ],
            "troubled_total": len(troubled),
            "postponed": [{"path": show(record.path), "reason": record.reason} for record in postponed[:_TOP]],
            "postponed_total": len(postponed),
            "data": localdata.status(mount),
            "warming": None if worker is None else worker.warmer.status(),
            "heat_source": None if source is None else asdict(source.stats()),
            "heat_sources": [] if source is None else [asdict(part) for part in source.parts()],
            "heat_sources_left": {} if source is None else dict(source.left()),
            "stuck": [{"call": call, "seconds": seconds} for call, seconds in mount.pool.stuck()],
        }

    async def top(self, request: Request, progress: Progress) -> dict[str, Any]:
        """The hottest directories of all mounts, or of one; first those that cost most time spent on their server."""
        del progress
        rows: list[tuple[float, dict[str, Any]]] = []
        for keeper in self._chosen(request.path):
            if keeper.mount is not None and keeper.worker is not None:
                rows += _hottest(keeper.mount, keeper.worker, request.limit)
        rows.sort(key=lambda row: (-row[0], -float(row[1]["heat"])))
        return {"directories": [row for _, row in rows[: request.limit]]}

    async def promote(self, request: Request, progress: Progress) -> dict[str, Any]:
        """Promote one directory now, or everything below it that policy allows."""
        keeper, path = self._locate(request.path)
        mount = self._working(keeper)
        done = await promote_wanted(
            mount, path, recursive=request.recursive, progress=lambda at, of: progress({"done": at, "of": of})
        )
        if keeper.worker is not None:
            keeper.worker.activation_wanted()
        return promotion_result(path, done)

    async def warm(self, request: Request, progress: Progress) -> dict[str, Any]:
        """Promote what can be of some directories in a second; who asked asks again for what is not in the answer."""
        keeper, _ = self._locate(request.path)
        return await warm_some(self._working(keeper), keeper.worker, request, progress)

    async def heat(self, request: Request, progress: Progress) -> dict[str, Any]:
        """The heat of all directories, by kind of use."""
        del progress
        return {"mounts": [heat_of(keeper) for keeper in self._chosen(request.path) if keeper.worker is not None]}

    async def reopen(self, request: Request, progress: Progress) -> dict[str, Any]:
        """Undo the completion of one directory with its complete ancestors, or of a whole mount."""
        del progress
        if request.all:
            keepers = self._in_work(request.path)
            return await self._reopen_all([self._working(keeper) for keeper in keepers])
        keeper, path = self._locate(request.path)
        return {"reopened": [show(found) for found in await reopen_wanted(self._working(keeper), path)], "deferred": []}

    async def _reopen_all(self, mounts: list[Mounted]) -> dict[str, Any]:
        reopened, deferred = [], []
        for mount in mounts:
            done, later = await reopen_all(mount)
            reopened += [show(path) for path in done]
            deferred += [{"path": show(path), "reason": reason} for path, reason in later]
        return {"reopened": reopened, "deferred": deferred}

    async def explain(self, request: Request, progress: Progress) -> dict[str, Any]:
        """Which rule governs a directory, its heat and state, and what keeps it from the next one."""
        del progress
        keeper, path = self._locate(request.path)
        mount = self._working(keeper)
        worker, now = keeper.worker, mount.clock()
        heat = 0.0 if worker is None else worker.tracker.heat(path, now)
        answer = await explain(mount, path, heat)
        if worker is not None:
            answer["payback"] = _payback(mount, path, worker.ranking.payback(path, now, answer["entries"]))
        return answer

    async def pause(self, request: Request, progress: Progress) -> dict[str, Any]:
        """Stop marking on one mount, or on all."""
        del progress
        mounts = [self._working(keeper) for keeper in self._in_work(request.path)]
        for mount in mounts:
            mount.pause("paused by hand")
        return {"paused": [mount.name for mount in mounts]}

    async def resume(self, request: Request, progress: Progress) -> dict[str, Any]:
        """Go on after a pause, a trip wire or a retirement."""
        del progress
        keepers = self._in_work(request.path)
        for keeper in keepers:
            self._working(keeper).resume()
            if keeper.worker is not None:
                keeper.worker.look()
        return {"resumed": [keeper.policy.mountpoint for keeper in keepers]}

    async def retire(self, request: Request, progress: Progress) -> dict[str, Any]:
        """Undo everything on one mount, live where that is safe, and promote nothing more on it."""
        del progress
        keeper, _ = self._locate(request.path)
        mount = self._working(keeper)
        mount.retire()
        return await self._reopen_all([mount]) | {"retired": mount.name}

    async def reload(self, request: Request, progress: Progress) -> dict[str, Any]:
        """Read the policy again."""
        del request, progress
        self._daemon.reload()
        return {"mounts": list(self._daemon.keepers)}

    def _chosen(self, path: bytes | None) -> list[Keeper]:
        """The keepers that a request without or with a path is about."""
        return list(self._daemon.keepers.values()) if path is None else [self._locate(path)[0]]

    def _in_work(self, path: bytes | None) -> list[Keeper]:
        """As :meth:`_chosen`, but for mounts that are not in work, unless none is, or it is named."""
        chosen = self._chosen(path)
        return [keeper for keeper in chosen if keeper.mount is not None] or chosen

    def _working(self, keeper: Keeper) -> Mounted:
        """The mount, which must be in work. Raises PromoterdError with the phase and the reason."""
        if keeper.mount is None:
            self._raise_if_stopping()
            raise PromoterdError(
                f"{keeper.policy.mountpoint} is not in work: {keeper.phase.value}"
                + (f", {keeper.reason}" if keeper.reason else ""),
                hint="`promoterd doctor` says what the mount needs",
            )
        return keeper.mount

    def _raise_if_stopping(self) -> None:
        """Raises DaemonUnreachable: as for who is left without an answer, it is not about the mount."""
        if self._daemon.is_stopping:
            raise DaemonUnreachable("promoterd is stopping", hint=DaemonUnreachable.hint_if_it_goes)

    def _locate(self, path: bytes | None) -> tuple[Keeper, bytes]:
        """The mount that an absolute path lies on, and the path inside it. Raises MountNotFound, UsageError."""
        if path is None:
            raise UsageError("this request needs a path")
        found = [
            keeper for keeper in self._daemon.keepers.values() if is_at_or_below(path, keeper.policy.mountpoint_bytes)
        ]
        if not found:
            raise MountNotFound(
                f"{display(path)} lies on no mount that the policy names",
                hint=f"the policy names {', '.join(self._daemon.keepers)}",
            )
        keeper = max(found, key=lambda candidate: len(candidate.policy.mountpoint_bytes))
        return keeper, relative_to_mount(path, keeper.policy.mountpoint_bytes)


def _hottest(mount: Mounted, worker: "Worker", limit: int) -> list[tuple[float, dict[str, Any]]]:
    """Rows of ``top``, each with the seconds that its promotion saves, or spares already, in a second."""
    now = mount.clock()
    rows = []
    for path, heat in worker.tracker.hottest(limit, now):
        worth = worker.ranking.payback(path, now)
        row = {
            "mount": mount.name,
            "path": show(path),
            "heat": round(heat, 2),
            "kinds": {kind: round(part, 2) for kind, part in sorted(worker.tracker.kinds(path, now).items())},
            "state": mount.book.state(path).value,
        }
        rows.append((waiting_saved(worth, mount.round_trip), row | _payback(mount, path, worth)))
    return rows


def _payback(mount: Mounted, path: bytes, worth: Payback) -> dict[str, Any]:
    """What a promotion saves (requests an hour) and costs, and the seconds until it has paid; None: never, or done."""
    done = mount.book.is_marked(path) or not math.isfinite(worth.seconds)
    return {
        "saved_per_hour": round(worth.saved_per_hour, 1),
        "cost": round(worth.cost),
        "payback_seconds": None if done else round(worth.seconds, 1),
    }


def promotion_result(path: bytes, done: list[Promotion]) -> dict[str, Any]:
    """What a promotion by hand came to. Raises Refused where it was about one directory and that was not marked."""
    if len(done) == 1 and done[0].outcome not in (Outcome.MARKED, Outcome.OBSERVED, Outcome.PRIMED):
        only = done[0]
        raise Refused(only.reason or only.outcome.value, hint=only.hint)
    return {
        "path": show(path),
        "promotions": [
            {
                "path": show(one.path),
                "outcome": one.outcome.value,
                "directories": [show(directory) for directory in one.directories],
                "entries": one.entries,
                "reason": one.reason,
                "broken_hardlinks": [show(link) for link in one.broken_hardlinks],
            }
            for one in done
        ],
    }
