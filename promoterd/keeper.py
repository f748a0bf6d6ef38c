"""Keeping one configured mount in work: it may be absent, come, be replaced, and go (R16)."""

import asyncio
import time
from contextlib import ExitStack
from dataclasses import replace
from enum import StrEnum

import structlog

from promoterd.errors import MountGone, PromoterdError
from promoterd.heat import base as heat_base
from promoterd.heat.base import HeatSource, MountView
from promoterd.heat.tracker import HeatTracker
from promoterd.ledger import Ledger
from promoterd.metrics import Metrics
from promoterd.mounted import Mounted
from promoterd.opening import opened_mount
from promoterd.overlay.mounts import Overlay, read_overlays
from promoterd.policy import MountPolicy
from promoterd.pool import Pool, PoolClosed
from promoterd.worker import Worker

OPEN_AGAIN = 60.0
"""Seconds until a mount that could not be taken into work is tried again, unless mounts change before."""
CLOSE_PATIENCE = 2.0
"""Seconds that giving a mount back may take; a dead server must not hold up the shutdown."""


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
        self, policy: MountPolicy, *, ledger: Ledger, metrics: Metrics, log: structlog.typing.FilteringBoundLogger
    ) -> None:
        self.policy = policy
        self.phase = Phase.ABSENT
        self.reason: str | None = None
        self.mount: Mounted | None = None
        self.worker: Worker | None = None
        self._ledger = ledger
        self._metrics = metrics
        self._log = log.bind(mount=policy.mountpoint)
        self._mounts_changed = asyncio.Event()
        self._opener = Pool(f"open {policy.mountpoint}", 1)

    def mounts_changed(self) -> None:
        """The mount table changed: look whether this concerns us."""
        self._mounts_changed.set()

    def take_stock(self) -> None:
        """Measure what no event tells: calls that hang, reopenings that wait. No I/O on the mount."""
        mount = self.mount
        if mount is None:
            return
        stuck = mount.pool.stuck()
        if mount.metrics.stuck(len(stuck)):
            mount.log.error("stuck", call=stuck[0][0], seconds=round(stuck[0][1]), reason="the server does not answer")
        mount.metrics.deferred(len(mount.upper_ledger.deferred()))

    async def run(self) -> None:
        """Work whenever the overlay is there, until cancelled."""
        try:
            while True:
                overlay = self._find()
                if overlay is None:
                    self._enter(Phase.ABSENT, None)
                    await self._wait_for_change(None)
                    continue
                try:
                    await self._work(overlay)
                except PromoterdError as error:
                    phase = Phase.ABSENT if isinstance(error, MountGone) else Phase.UNFIT
                    self._enter(phase, str(error))
                except OSError as error:
                    self._enter(Phase.UNFIT, str(error))
                await self._wait_for_change(OPEN_AGAIN if self.phase is Phase.UNFIT else 1.0)
        finally:
            self._opener.close()

    def _enter(self, phase: Phase, reason: str | None) -> None:
        if (phase, reason) != (self.phase, self.reason):
            level = self._log.warning if phase is Phase.UNFIT else self._log.info
            level("mount", phase=phase.value, reason=reason)
        self.phase, self.reason = phase, reason
        self._metrics.mount_working(self.policy.mountpoint, on=phase is Phase.WORKING)

    def _find(self) -> Overlay | None:
        wanted = self.policy.mountpoint_bytes
        return next((overlay for overlay in reversed(read_overlays()) if overlay.mountpoint == wanted), None)

    async def _wait_for_change(self, seconds: float | None) -> None:
        try:
            await asyncio.wait_for(self._mounts_changed.wait(), seconds)
        except TimeoutError:
            return
        finally:
            self._mounts_changed.clear()

    async def _work(self, overlay: Overlay) -> None:
        self._enter(Phase.OPENING, None)
        stack = ExitStack()
        opening = opened_mount(
            overlay, self.policy, ledger=self._ledger, metrics=self._metrics, log=self._log, clock=time.time
        )
        self.mount = mount = await self._opener.run(stack.enter_context, opening)
        self._metrics.backend(self.policy.mountpoint, mount.backend.name)
        try:
            tracker = HeatTracker(self.policy.heat.half_life, self.policy.heat.max_directories)
            self.worker = worker = Worker(mount, tracker)
            source = self._source(overlay, worker)
            if source is not None:
                stack.callback(source.close)
                mount.disarm, mount.rearm = source.disarm, source.rearm
            self._enter(Phase.WORKING, f"backend {mount.backend.name}: {mount.backend_reason}")
            await self._until_it_goes(worker, source, overlay)
        finally:
            self._enter(Phase.CLOSING, None)
            mount.stopping = True
            self.mount = self.worker = None
            await self._close(stack)

    def _source(self, overlay: Overlay, worker: Worker) -> HeatSource | None:
        """The heat source of the policy, hearing; the mount goes without one where the kernel grants no means."""
        name = "inotify" if self.policy.heat.source == "auto" else self.policy.heat.source
        view = MountView(
            mountpoint=overlay.mountpoint,
            device=overlay.device,
            may_promote=self.policy.may_promote,
            may_promote_below=self.policy.may_promote_below,
            layers=tuple(layer for layer in (overlay.upper, *overlay.lowers) if layer is not None),
            max_watches=self.policy.heat.max_watches,
        )
        source = heat_base.load(name)(view, worker)
        try:
            source.start()
        except PromoterdError as error:
            self._log.error("no_heat", reason=str(error))
            return None
        return source

    async def _until_it_goes(self, worker: Worker, source: HeatSource | None, overlay: Overlay) -> None:
        # a new ledger, or one that knows nothing of this upper layer: disk is asked for every mark (R9)
        rebuild = not worker.mount.book.counts()
        working = asyncio.create_task(worker.run(source, rebuild=rebuild))
        try:
            while not working.done():
                changed = asyncio.create_task(self._mounts_changed.wait())
                await asyncio.wait({working, changed}, timeout=None, return_when=asyncio.FIRST_COMPLETED)
                changed.cancel()
                self._mounts_changed.clear()
                now = self._find()
                if now is None or not _is_same(now, overlay):
                    raise MountGone(mountpoint=self.policy.mountpoint)
                worker.mount.overlay = now
            await working
        except* MountGone as gone:
            raise MountGone(mountpoint=self.policy.mountpoint) from gone
        except* PoolClosed as closed:
            raise MountGone(mountpoint=self.policy.mountpoint) from closed
        finally:
            working.cancel()
            await asyncio.wait({working}, timeout=CLOSE_PATIENCE)

    async def _close(self, stack: ExitStack) -> None:
        try:
            async with asyncio.timeout(CLOSE_PATIENCE):
                await self._opener.run(stack.close)
        except TimeoutError:
            self._log.warning("close_abandoned", reason="the mount does not answer")


def _is_same(now: Overlay, before: Overlay) -> bool:
    """Whether it is the same mount with the same options; made read-only for a while it still is (R6)."""
    writable_again = replace(
        now, read_only=before.read_only, mount_options=before.mount_options, super_options=before.super_options
    )
    return writable_again == before
