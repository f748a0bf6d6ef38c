"""The work on one mount as long as it is there: hear, promote, activate, recheck."""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress

from promoterd import holding
from promoterd.activating import BACKOFF_MOST, activate
from promoterd.adapting import Adapter
from promoterd.errors import PromoterdError, TripWire
from promoterd.families import Families
from promoterd.finding import Finder
from promoterd.heat.base import HeatSource
from promoterd.heat.combined import total
from promoterd.heat.sweeps import Sweeps
from promoterd.heat.tracker import HeatTracker
from promoterd.mounted import Mounted
from promoterd.overlay.nfs import longest_round_trip
from promoterd.paths import show
from promoterd.payback import Payback, waiting_saved
from promoterd.pool import PoolClosed
from promoterd.priming import let_go
from promoterd.promotion import Outcome, promote
from promoterd.queueing import choose
from promoterd.ranking import Ranking
from promoterd.rechecking import Rechecker
from promoterd.reconcile import reconcile
from promoterd.remembering import Remembering
from promoterd.states import State
from promoterd.turns import Member, Turns
from promoterd.warmer import Warmer

DRAIN_EVERY = 1.0
"""Seconds between two readings of the heat source: reading in portions costs less than waking for each event."""
MEASURE_EVERY = 300.0
"""Seconds between two looks at how long the server takes to answer."""
LOOK_EVERY = 5.0
"""Seconds after which the queue is looked at even if nothing was heard: refusals and failures come due."""


class Worker:
    """Hears a mount's heat and keeps its promoted directories true. It is the source's sink (see ``HeatSink``)."""

    def __init__(self, mount: Mounted, tracker: HeatTracker, turns: Turns | None = None) -> None:
        self.mount = mount
        self.tracker = tracker
        self.turns = turns or Turns()
        self._member = Member(self.look, lambda: bool(mount.pool.stuck()))
        mount.heat_of = lambda path: tracker.heat(path, mount.clock())
        self.source: HeatSource | None = None
        self.wanted: set[bytes] = set()
        """Directories whose promotion was interrupted."""
        self._look = asyncio.Event()
        self._activation = asyncio.Event()
        self._promotions: set[asyncio.Task[None]] = set()
        self._finder = Finder(mount, self.look)
        self._remembering = Remembering(mount, tracker)
        self.ranking = Ranking(mount, tracker)
        self.warmer = Warmer(mount, self.look)
        may_promote = self.ranking.may_promote
        self._told: list[tuple[bytes, float, str]] = []
        self._families = Families(mount, may_promote)
        self._sweeps = Sweeps(
            mount.policy.heat.settle, tracker.half_life, self._heat, may_promote, self._families.counts
        )
        self._rechecker = Rechecker(mount, self._finder, self.activation_wanted)
        self.adapter = Adapter(mount)
        self._latest = mount.clock()

    # HeatSink

    def touched(self, path: bytes, weight: float, kind: str) -> None:
        """Heat in a directory."""
        self.mount.metrics.heat(kind, weight)
        self.ranking.heard(kind)
        if path not in self.mount.busy and self.ranking.may_promote(path):
            self._told.append((path, weight, kind))

    def _heat(self, path: bytes, weight: float, kind: str, at: float) -> None:
        if path not in self.mount.busy:
            self.tracker.add(path, weight, at, kind)
            self._look.set()

    def overflowed(self) -> None:
        """Events were lost: look at everything anew."""
        self.mount.metrics.overflowed()
        self.mount.log.warning("heat_overflow", reason="the kernel's event queue was full; everything is reconsidered")
        self._finder.events_were_lost()

    def appeared(self, path: bytes) -> None:
        """A new directory on the mount."""
        self._finder.look_below(path)

    def vanished(self, path: bytes) -> None:
        """A directory is gone from this path."""
        self.tracker.forget(path)
        self._told = [use for use in self._told if use[0] != path]
        self._sweeps.vanished(path)

    def take_in(self) -> None:
        """Make heat of what was told in one reading of the source, but for what walks over the tree did."""
        told, self._told = self._told, []
        now = self._now()
        self._sweeps.hear(told, now)
        for walked in self._sweeps.settled(now):
            self.mount.log.info("swept", path=show(walked.path), directories=walked.directories)
        self.mount.metrics.swept(self._sweeps.walks, self._sweeps.swept)

    def _now(self) -> float:
        """The time on the wall. Where it was set back, what was heated earlier would seem hot, and stay so."""
        now = self.mount.clock()
        seconds = self._latest - now
        if seconds > 0:
            self.mount.log.info("clock_set_back", seconds=round(seconds, 3))
            self.tracker.set_back(seconds)
            self._sweeps.set_back(seconds)
            self.mount.opened_at -= seconds
        self._latest = now
        return now

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
        self.source = self._finder.source = self._families.source = source
        self.wanted.update(await reconcile(self.mount, rebuild=rebuild))
        kept = await self.mount.with_layers(self.mount.backend.sweep)
        if kept or self.mount.book.in_states({State.COMPLETE, State.PINNED}):
            self._activation.set()
        await self._remembering.load()
        others = (self._rechecker.run, self._finder.run, self._remembering.run, self._families.run)
        more = (self._measure, self.warmer.run, self.adapter.run)
        try:
            async with asyncio.TaskGroup() as tasks:
                for loop in (self._hear, self._promote, self._activate, *others, *more):
                    tasks.create_task(loop())
        finally:
            self._remembering.save()

    async def _hear(self) -> None:
        confirming: asyncio.Task[None] | None = None
        while self.source is not None:
            while self.source.drain():  # noqa: ASYNC110 - others get their turn between two portions
                await asyncio.sleep(0)
            unsure = self.source.unsure() if confirming is None or confirming.done() else []
            if unsure:
                confirming = asyncio.create_task(self._confirm(self.source, unsure))
            self.take_in()
            parts = self.source.parts()
            self.mount.metrics.sources(parts)
            sums = total([part.stats for part in parts])
            self.mount.metrics.source(sums, len(self.tracker), self.tracker.evictions)
            await asyncio.sleep(DRAIN_EVERY)

    async def _measure(self) -> None:
        while True:
            with suppress(OSError):
                self.mount.round_trip = longest_round_trip(self.mount.on_nfs)
            await asyncio.sleep(MEASURE_EVERY)

    async def _confirm(self, source: HeatSource, paths: Sequence[bytes]) -> None:
        """Let the source look at what it is unsure of, at the rate of rechecks; it is heard meanwhile."""
        await self.mount.rechecks.take(len(paths))
        try:
            await self.mount.run(source.confirm, paths)
        except (PoolClosed, PromoterdError, OSError) as error:
            self.mount.log.debug("not_confirmed", reason=str(error))

    async def _promote(self) -> None:
        try:
            while True:
                await self._look_at_hold()
                for path in self._next():
                    task = asyncio.create_task(self._promote_one(path))
                    self._promotions.add(task)
                    task.add_done_callback(self._promoted)
                await asyncio.sleep(0)
                self._look.clear()
                with suppress(TimeoutError):
                    async with asyncio.timeout(LOOK_EVERY):
                        await self._look.wait()
        finally:
            for task in self._promotions:
                task.cancel()

    def _promoted(self, task: asyncio.Task[None]) -> None:
        self._promotions.discard(task)
        self.turns.give_back(self._member)

    def _next(self) -> Sequence[bytes]:
        """What is promoted next, each with a place of its own."""
        mount, now = self.mount, self._now()
        hot = self.ranking.queue(now)
        ranked = self._ranked(hot)
        if mount.hold is not None or mount.paused is not None or (mount.overlay.read_only and mount.backend.marks):
            let_go(mount, (), now)
            self._show_backlog(hot, ranked)
            return ()
        let_go(mount, ranked, now)
        self._show_backlog(hot, ranked)
        room = mount.policy.limits.concurrency - len(mount.busy)
        chosen = []
        for path in choose(ranked, mount.book.get, mount.busy, room, now):
            worth = waiting_saved(hot[path], mount.round_trip) if path in hot else 0.0
            if not self.turns.take(self._member, worth):
                break
            chosen.append(path)
        return chosen

    async def _look_at_hold(self) -> None:
        """Whether something keeps the whole mount from promoting anything; as before where that cannot be told."""
        with suppress(OSError):
            await holding.look(self.mount)

    def _show_backlog(self, hot: Mapping[bytes, Payback], ranked: Iterable[bytes]) -> None:
        waiting = [path for path in ranked if self.mount.book.state(path) is not State.PRIMED]
        self.mount.metrics.backlog(len(waiting), sum(hot[path].saved for path in waiting if path in hot))

    def _ranked(self, hot: Iterable[bytes]) -> list[bytes]:
        """What is hot enough or wanted for another reason, the most urgent first, promoted directories left out."""
        is_marked = self.mount.book.is_marked
        hot = [path for path in hot if not is_marked(path)]
        others = sorted(path for path in self._others() if not is_marked(path))
        return list(dict.fromkeys([*hot, *others, *self.warmer.candidates()]))

    def _others(self) -> set[bytes]:
        """What is to be promoted in any case, once this machine's moment has come."""
        mount = self.mount
        return self.wanted | self._finder.always if mount.clock() >= mount.begins_at(b"always") else set()

    async def _promote_one(self, path: bytes) -> None:
        mount = self.mount
        try:
            is_wanted = path in self._others() or self.warmer.wants(path)
            why_not = None if is_wanted else self.ranking.why_not
            done = await promote(mount, path, why_not=why_not)
        except PoolClosed:
            return
        except PromoterdError as error:
            mount.log.warning("promotion_stopped", path=show(path), reason=error.message)
            if isinstance(error, TripWire):
                self.wanted.add(path)  # to be finished after `resume`, even if it has cooled by then
            return
        except Exception:
            mount.log.exception("promotion_broke", path=show(path))
            return
        if done.directories:
            self.wanted.discard(path)
            if mount.backend.marks:
                self._activation.set()
        if done.outcome is Outcome.GONE:
            self.wanted.discard(path)
            self._finder.always.discard(path)
            self.vanished(path)
        record = mount.book.get(path)
        if record is not None and record.state is State.PRIMED and record.retry_at is not None:
            asyncio.get_running_loop().call_later(max(0.0, record.retry_at - mount.clock()), self.look)
        self._look.set()

    async def _activate(self) -> None:
        """One reconfigure for all that wait, at most one per interval; ever rarer while only pinned ones wait (R14)."""
        interval = self.mount.policy.activation_interval
        backoff, again = interval, None
        while True:
            await self._activation.wait()
            if again is not None:
                again.cancel()
            active, waits = await self._activate_once()
            backoff = interval if active or not waits else min(backoff * 2, BACKOFF_MOST)
            if waits:
                again = asyncio.get_running_loop().call_later(backoff, self._activation.set)
            await asyncio.sleep(interval)

    async def _activate_once(self) -> tuple[bool, bool]:
        """Whether a directory became active, and whether any still waits."""
        try:
            async with self.mount.changing:
                self._activation.clear()  # not sooner: what became complete until now is part of this one
                done = await activate(self.mount)
        except OSError as error:
            self.mount.log.warning("activation_failed", reason=str(error))
            return False, True
        return bool(done.active), bool(done.pinned or done.kept)
