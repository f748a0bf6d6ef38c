"""Keeping one configured mount in work: it may be absent, come, be replaced, and go (R16)."""

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import replace
from enum import StrEnum
from functools import partial

import structlog

from promoterd.errors import AlreadyLocked, MountGone, PromoterdError
from promoterd.heat.base import HeatSource, MountView
from promoterd.heat.combined import source_for
from promoterd.heat.tracker import HeatTracker
from promoterd.ledger import Ledger
from promoterd.metrics import Metrics
from promoterd.mounted import Mounted
from promoterd.opening import OpenedMount
from promoterd.overlay.mounts import Overlay, read_overlays
from promoterd.policy import MountPolicy
from promoterd.pool import Pool, PoolClosed
from promoterd.turns import Turns
from promoterd.worker import Worker

LOOK_AGAIN = 1.0
"""Seconds until a mount that went is looked for again, unless mounts change before."""
OPEN_AGAIN, OPEN_AGAIN_MOST = 30.0, 600.0
"""Seconds until a mount that could not be taken into work is tried again, unless it changes before: ever more."""
LOCKED_AGAIN = 5.0
"""Seconds until it is looked whether another process has given up the upper layer."""
CLOSE_PATIENCE = 1.5
"""Seconds that each of the two steps of giving a mount back may take; a dead server must not hold up the shutdown."""
_OPENERS = 2
"""Threads that open and close: one for an opening while a closing hangs."""


class Phase(StrEnum):
    """How far the work on a configured mount has come."""

    ABSENT = "absent"
    OPENING = "opening"
    UNFIT = "unfit"
    WORKING = "working"
    CLOSING = "closing"


class Keeper:
    """One ``mounts:`` entry of the policy, for as long as it is configured."""

    def __init__(
        self,
        policy: MountPolicy,
        *,
        ledger: Ledger,
        metrics: Metrics,
        log: structlog.typing.FilteringBoundLogger,
        turns: Turns | None = None,
    ) -> None:
        self.policy = policy
        self.phase = Phase.ABSENT
        self.reason: str | None = "not looked for yet"
        self.mount: Mounted | None = None
        self.worker: Worker | None = None
        self._ledger = ledger
        self._turns = turns
        self._metrics = metrics
        self._log = log.bind(mount=policy.mountpoint)
        self._mounts_changed = asyncio.Event()
        self._opener = Pool(f"open {policy.mountpoint}", _OPENERS, policy.limits.stuck_after)
        self._tried: Overlay | None = None
        self._closings: set[asyncio.Task[None]] = set()
        self._is_to_try_again = False
        self._pauses = 0

    def mounts_changed(self) -> None:
        """The mount table changed: look whether this concerns us."""
        self._mounts_changed.set()

    def try_again(self) -> None:
        """Somebody says that what kept the mount from being worked on may be over."""
        self._is_to_try_again = True
        self._mounts_changed.set()
        if self.worker is not None:
            self.worker.warmer.reread()

    def take_stock(self) -> None:
        """Measure what no event tells: calls that hang, reopenings that wait. No I/O on the mount."""
        mount = self.mount
        if mount is None:
            if self.phase is Phase.OPENING and self._opener.stuck():
                self._enter(Phase.OPENING, "the server does not answer")
            return
        stuck = mount.pool.stuck()
        if mount.metrics.stuck(len(stuck)):
            mount.log.error("stuck", call=stuck[0][0], seconds=round(stuck[0][1]), reason="the server does not answer")
        mount.metrics.deferred(len(mount.upper_ledger.deferred()))

    async def run(self) -> None:
        """Work whenever the overlay is there, until cancelled."""
        try:
            while True:
                await self._wait(await self._attempt())
        finally:
            self._opener.close()

    async def _attempt(self) -> float | None:
        """Work while that is possible; returns after how many seconds to try again, if nothing is heard before."""
        self._is_to_try_again = False
        try:
            overlay = self._tried = self._find()
            if overlay is not None:
                await self._work(overlay)
            self._enter(Phase.ABSENT, None)
        except (MountGone, PoolClosed):
            self._enter(Phase.ABSENT, None)
            return LOOK_AGAIN
        except (PromoterdError, OSError) as error:
            self._enter(Phase.UNFIT, str(error))
            return LOCKED_AGAIN if isinstance(error, AlreadyLocked) else self._pause()
        except Exception as error:  # noqa: BLE001 - reported; the other mounts go on, and so will this one
            self._log.exception("mount_failed", reason=repr(error))
            self._enter(Phase.UNFIT, f"internal error: {error!r}")
            return self._pause()
        return None

    def _pause(self) -> float:
        """Ever longer: each look at a server that does not answer leaves a thread behind that waits for it."""
        self._pauses += 1
        return float(min(OPEN_AGAIN_MOST, OPEN_AGAIN * 2 ** (self._pauses - 1)))

    def _enter(self, phase: Phase, reason: str | None) -> None:
        if (phase, reason) != (self.phase, self.reason):
            level = self._log.warning if phase is Phase.UNFIT else self._log.info
            level("mount", phase=phase.value, reason=reason)
        self.phase, self.reason = phase, reason
        self._metrics.mount_working(self.policy.mountpoint, on=phase is Phase.WORKING)

    def _find(self) -> Overlay | None:
        wanted = self.policy.mountpoint_bytes
        return next((overlay for overlay in reversed(read_overlays()) if overlay.mountpoint == wanted), None)

    async def _wait(self, seconds: float | None) -> None:
        """Until there is something new to try, or for so long."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while not self._is_to_try_again and self._find() == self._tried:
                    await self._mounts_changed.wait()
                    self._mounts_changed.clear()

    async def _work(self, overlay: Overlay) -> None:
        """Raises MountGone when the mount goes, and what keeps it from being worked on."""
        self._enter(Phase.OPENING, None)
        stack = ExitStack()
        opening = OpenedMount(
            overlay, self.policy, ledger=self._ledger, metrics=self._metrics, log=self._log, clock=time.time
        )
        self.mount = mount = await self._open(stack, opening)
        try:
            tracker = HeatTracker(self.policy.heat.half_life, self.policy.heat.max_directories)
            self.worker = worker = Worker(mount, tracker, self._turns)
            source = await self._source(overlay, worker)
            if source is not None:
                stack.callback(source.close)
                mount.disarm, mount.rearm, mount.heard = source.disarm, source.rearm, source.paths
            self._pauses = 0
            self._enter(Phase.WORKING, f"backend {mount.backend.name}: {mount.backend_reason}")
            await self._until_it_goes(worker, source, overlay)
        except ExceptionGroup as group:
            raise _cause(group, self.policy.mountpoint) from group
        finally:
            self._enter(Phase.CLOSING, None)
            mount.stop()
            self.mount = self.worker = None
            await self._give_back(mount, stack)

    async def _open(self, stack: ExitStack, opening: OpenedMount) -> Mounted:
        """The opened mount; the thread gives it back by itself where nobody wants it any more."""
        unwanted = threading.Event()

        def enter() -> Mounted:
            mount = stack.enter_context(opening)
            if unwanted.is_set():
                stack.close()
            return mount

        entering = asyncio.create_task(self._opener.run(enter))
        entering.add_done_callback(lambda done: done.cancelled() or done.exception())
        try:
            return await asyncio.shield(entering)
        except asyncio.CancelledError:
            unwanted.set()
            await asyncio.wait({entering}, timeout=CLOSE_PATIENCE)
            if entering.done():
                with suppress(PoolClosed, PromoterdError, OSError):
                    await self._opener.run(stack.close)  # it may have looked just before
            raise

    async def _source(self, overlay: Overlay, worker: Worker) -> HeatSource | None:
        """The heat source of the policy, hearing; the mount goes without one where the kernel grants no means."""
        name = self.policy.heat.source
        view = MountView(
            mountpoint=overlay.mountpoint,
            device=overlay.device,
            may_promote=self.policy.may_promote,
            may_promote_below=self.policy.may_promote_below,
            layers=overlay.merged,
            max_watches=self.policy.heat.max_watches,
            max_directories=self.policy.heat.max_directories,
        )
        try:
            source = await self._opener.run(partial(source_for, name, view, worker, overlay.lowers, self._heat_lost))
            source.start()
        except PromoterdError as error:
            self._log.error("no_heat", reason=str(error))
            return None
        say = self._log.warning if name in source.left() else self._log.info
        say("heat_sources", taken={part.name: part.why for part in source.parts()}, left=dict(source.left()))
        return source

    def _heat_lost(self, name: str, reason: str) -> None:
        self._log.error("heat_source_lost", source=name, reason=reason)

    async def _until_it_goes(self, worker: Worker, source: HeatSource | None, overlay: Overlay) -> None:
        # a new ledger, or one that knows nothing of this upper layer: disk is asked for every mark (R9)
        rebuild = not worker.mount.book.counts()
        working = asyncio.create_task(worker.run(source, rebuild=rebuild))
        try:
            while not working.done():
                changed = asyncio.create_task(self._mounts_changed.wait())
                try:
                    await asyncio.wait({working, changed}, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    changed.cancel()
                self._mounts_changed.clear()
                now = self._find()
                if now is None or not _is_same(now, overlay):
                    raise MountGone(mountpoint=self.policy.mountpoint)
                worker.mount.overlay = now
            await working
        finally:
            working.cancel()
            # the mount's end may have broken it off already: that is no news, and asyncio is not to report it as lost
            working.add_done_callback(lambda done: done.cancelled() or done.exception())
            await asyncio.wait({working}, timeout=CLOSE_PATIENCE)

    async def _give_back(self, mount: Mounted, stack: ExitStack) -> None:
        """Close everything, but wait for a server that does not answer only so long."""
        closing = asyncio.create_task(self._close(mount, stack))
        await asyncio.wait({closing}, timeout=CLOSE_PATIENCE)
        if not closing.done():
            self._log.warning("close_abandoned", reason="the mount does not answer")
            self._closings.add(closing)
            closing.add_done_callback(self._closed_at_last)

    def _closed_at_last(self, closing: asyncio.Task[None]) -> None:
        self._closings.discard(closing)
        self.try_again()

    async def _close(self, mount: Mounted, stack: ExitStack) -> None:
        # a call that nobody awaits any more may still be changing the upper layer: the lock is kept till then (R12)
        await mount.pool.drain()
        try:
            await self._opener.run(stack.close)
        except PoolClosed:  # the daemon ends, and the lock with it
            return
        except (OSError, PromoterdError) as error:
            self._log.warning("close_failed", reason=str(error))


def _cause(group: BaseExceptionGroup[BaseException], mountpoint: str) -> BaseException:
    """What of several errors at once tells what to do: the mount is gone, or else the first."""
    leaves = list(_leaves(group))
    if any(isinstance(leaf, MountGone | PoolClosed) for leaf in leaves):
        return MountGone(mountpoint=mountpoint)
    return leaves[0]


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _leaves(inner)
    else:
        yield error


def _is_same(now: Overlay, before: Overlay) -> bool:
    """Whether it is the same mount with the same options; made read-only for a while it still is (R6)."""
    writable_again = replace(
        now, read_only=before.read_only, mount_options=before.mount_options, super_options=before.super_options
    )
    return writable_again == before
