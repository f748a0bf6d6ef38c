"""The work on one mount as long as it is there: hear, promote, activate, recheck."""

import asyncio
import zlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import partial

from promoterd.activating import BACKOFF_MOST, activate
from promoterd.errors import PromoterdError, TripWire
from promoterd.heat.base import HeatSource
from promoterd.heat.discovery import Walk
from promoterd.heat.tracker import HeatTracker
from promoterd.ledger import DirectoryRecord
from promoterd.mounted import Mounted
from promoterd.overlay.listing import Layers, Stamp
from promoterd.paths import is_below, show
from promoterd.promotion import promote
from promoterd.queueing import choose
from promoterd.reconcile import reconcile
from promoterd.staleness import follow_ancestors, recheck
from promoterd.states import MARKED, State

DRAIN_EVERY = 1.0
"""Seconds between two readings of the heat source: reading in portions costs less than waking for each event."""
LOOK_EVERY = 5.0
"""Seconds after which the queue is looked at even if nothing was heard: refusals and failures come due."""
_RECHECK_SHARE = 0.25
_RECHECK_BOUNDS = (0.5, 30.0)
_DISCOVERY_PAUSE = 0.05
ARM_AGAIN_EVERY = 600.0
"""Seconds after which directories that got no watch for want of watches are tried again."""
_BATCH = 256


class Worker:
    """Hears a mount's heat and keeps its promoted directories true. It is the source's sink (see ``HeatSink``)."""

    def __init__(self, mount: Mounted, tracker: HeatTracker) -> None:
        self.mount = mount
        self.tracker = tracker
        self.source: HeatSource | None = None
        self.wanted: set[bytes] = set()
        self._growing: dict[bytes, tuple[Stamp, ...]] = {}
        self._growing_checked: dict[bytes, float] = {}
        self._look = asyncio.Event()
        self._activation = asyncio.Event()
        self._to_discover: set[bytes] = {b""}
        self._lost_events = False
        self._discover = asyncio.Event()
        self._promotions: set[asyncio.Task[None]] = set()

    # HeatSink

    def touched(self, path: bytes, weight: float, kind: str) -> None:
        """Heat in a directory."""
        self.mount.metrics.heat(kind, weight)
        if path in self.mount.busy or not self.mount.policy.may_promote(path):
            return
        self.tracker.add(path, weight, self.mount.clock())
        self._look.set()

    def overflowed(self) -> None:
        """Events were lost: look at everything anew."""
        self.mount.metrics.overflowed()
        self.mount.log.warning("heat_overflow", reason="the kernel's event queue was full; everything is reconsidered")
        self._lost_events = True
        self._rediscover(b"")

    def appeared(self, path: bytes) -> None:
        """A new directory on the mount."""
        self._rediscover(path)

    def vanished(self, path: bytes) -> None:
        """A directory is gone from this path."""
        self.tracker.forget(path)

    # For requests by hand

    def activation_wanted(self) -> None:
        """Something was marked: activate it when the interval allows."""
        self._activation.set()

    def look(self) -> None:
        """Look at the queue now."""
        self._look.set()

    # The loops

    async def run(self, source: HeatSource | None, *, rebuild: bool) -> None:
        """Work until cancelled. Raises MountGone when the mount goes, and whatever else must not be survived."""
        self.source = source
        self.wanted.update(await reconcile(self.mount, rebuild=rebuild))
        if self.mount.book.in_states({State.COMPLETE, State.PINNED}):
            self._activation.set()
        self._discover.set()
        async with asyncio.TaskGroup() as tasks:
            for loop in (self._hear, self._promote, self._activate, self._recheck, self._find):
                tasks.create_task(loop())

    async def _hear(self) -> None:
        while self.source is not None:
            while self.source.drain():
                await asyncio.sleep(0)
            self.mount.metrics.source(self.source.stats(), len(self.tracker), self.tracker.evictions)
            await asyncio.sleep(DRAIN_EVERY)

    async def _promote(self) -> None:
        try:
            while True:
                for path in self._next():
                    task = asyncio.create_task(self._promote_one(path))
                    self._promotions.add(task)
                    task.add_done_callback(self._promotions.discard)
                await asyncio.sleep(0)
                self._look.clear()
                try:
                    await asyncio.wait_for(self._look.wait(), LOOK_EVERY)
                except TimeoutError:
                    continue
        finally:
            for task in self._promotions:
                task.cancel()

    def _next(self) -> Sequence[bytes]:
        mount, now = self.mount, self.mount.clock()
        if mount.paused is not None or mount.overlay.read_only:
            return ()
        ranked = self.ranked(now)
        mount.metrics.backlog(len(ranked))
        room = mount.policy.limits.concurrency - len(mount.busy)
        return list(choose(ranked, mount.book.get, mount.busy, room, now))

    def ranked(self, now: float) -> list[bytes]:
        """What is hot enough or wanted for another reason, the most urgent first, promoted directories left out."""
        policy, book = self.mount.policy, self.mount.book
        hot = []
        lowest = min((policy.threshold_for(rule) for rule in policy.rules if rule.may_promote), default=0.0)
        for path, heat in self.tracker.above(lowest, now):
            rule = policy.rule_for(path)
            if rule is not None and heat >= policy.threshold_for(rule) and not book.is_marked(path):
                hot.append(path)
        return [*hot, *sorted(path for path in self.wanted if not book.is_marked(path))]

    async def _promote_one(self, path: bytes) -> None:
        mount = self.mount
        try:
            done = await promote(mount, path)
        except TripWire as tripped:
            mount.log.warning("promotion_stopped", path=show(path), reason=tripped.message)
            return
        except PromoterdError as error:
            mount.log.warning("promotion_stopped", path=show(path), reason=error.message)
            return
        if done.directories and mount.backend.marks:
            self.wanted.discard(path)
            self._activation.set()
        self._look.set()

    async def _activate(self) -> None:
        """One reconfigure for all that wait, at most one per interval; ever rarer while only pinned ones wait (R14)."""
        interval = self.mount.policy.activation_interval
        backoff = interval
        while True:
            await self._activation.wait()
            self._activation.clear()
            done = await activate(self.mount)
            if done.pinned:
                backoff = interval if done.active else min(backoff * 2, BACKOFF_MOST)
                asyncio.get_running_loop().call_later(backoff, self._activation.set)
            await asyncio.sleep(interval)

    async def _recheck(self) -> None:
        shortest = min((rule.recheck for rule in self.mount.policy.rules), default=60.0)
        least, most = _RECHECK_BOUNDS
        while True:
            await asyncio.sleep(min(most, max(least, shortest * _RECHECK_SHARE)))
            now = self.mount.clock()
            due = [record.path for record in self.mount.book.in_states(MARKED) if self._is_due(record, now)]
            if due:
                await recheck(self.mount, due)
            if self.mount.backend.marks:
                await self.mount.run(self.mount.free_space_lack)
            await self._recheck_growing(now)

    def _is_due(self, record: DirectoryRecord, now: float) -> bool:
        return now >= (record.last_checked or 0.0) + self._interval_of(record.path)

    def _interval_of(self, path: bytes) -> float:
        """The rule's recheck interval, spread over ±10 % by the path, so that not all come due at once."""
        rule = self.mount.policy.rule_for(path)
        spread = 0.9 + 0.2 * (zlib.crc32(path) % 1000) / 1000
        return (rule.recheck if rule is not None else 600.0) * spread

    async def _recheck_growing(self, now: float) -> None:
        """A growing directory that changed brings new releases: look for them, and drop negative dentries (R14)."""
        for path in list(self._growing):
            if now < self._growing_checked.get(path, 0.0) + self._interval_of(path):
                continue
            self._growing_checked[path] = now
            stamps = await self.mount.with_layers(partial(_stamps, path))
            if stamps != self._growing[path]:
                self._growing[path] = stamps
                self.mount.log.info("growing_changed", path=show(path))
                await follow_ancestors(self.mount, [path + b"/x" if path else b"x"])
                self._activation.set()
                self._rediscover(path)

    # Finding directories

    def _rediscover(self, path: bytes) -> None:
        self._to_discover = {known for known in self._to_discover if not is_below(known, path)} | {path}
        self._discover.set()

    async def _find(self) -> None:
        while True:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._discover.wait(), ARM_AGAIN_EVERY)
            self._discover.clear()
            await self._arm_again()
            starts, self._to_discover = self._to_discover, set()
            for start in sorted(starts):
                await self._find_below(start)

    async def _arm_again(self) -> None:
        """After an overflow every watch may be on a renamed directory; for want of watches some may be missing."""
        source = self.source
        if source is None:
            return
        if self._lost_events:
            self._lost_events = False
            for paths in _batches(source.paths()):
                await self.mount.run(source.rearm, paths)
        for paths in _batches(source.refused()):
            await self.mount.run(source.arm, paths)

    async def _find_below(self, start: bytes) -> None:
        mount = self.mount
        walk = Walk(
            [layer for layer in (mount.overlay.upper, *mount.overlay.lowers) if layer is not None],
            lambda path: mount.policy.may_promote(path) or mount.policy.is_growing(path),
            mount.policy.may_promote_below,
            max_directories=mount.policy.heat.max_directories,
        )
        batches = walk.batches(start)
        while (batch := await mount.run(next, batches, None)) is not None:
            for path in batch:
                if mount.policy.is_growing(path) and path not in self._growing:
                    self._growing[path] = await mount.with_layers(partial(_stamps, path))
                    self._growing_checked[path] = mount.clock()
            promotable = [path for path in batch if mount.policy.may_promote(path)]
            self.wanted.update(path for path in promotable if self._is_always(path))
            if self.source is not None:
                waiting = (State.COMPLETE, State.PINNED)
                await mount.run(self.source.arm, [p for p in promotable if mount.book.state(p) not in waiting])
            self._look.set()
            await asyncio.sleep(_DISCOVERY_PAUSE)
        if walk.truncated:
            mount.log.warning("discovery_truncated", path=show(start), reason="heat.max_directories is reached")

    def _is_always(self, path: bytes) -> bool:
        rule = self.mount.policy.rule_for(path)
        return rule is not None and rule.promote == "always"


def _batches(paths: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
    for start in range(0, len(paths), _BATCH):
        yield paths[start : start + _BATCH]


def _stamps(path: bytes, layers: Layers) -> tuple[Stamp, ...]:
    return layers.stamps(path, layers.contributing(path))
