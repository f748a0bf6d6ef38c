"""The metrics of one mount, in the words of the work on it."""

import math
from collections.abc import Mapping, Sequence
from functools import partial

from promoterd.heat.base import Kind, Part, SourceStats
from promoterd.heat.choice import FANOTIFY, INOTIFY, NFS_TRACE
from promoterd.metrics.families import EFFECTS, OUTCOMES, REOPENS, WARMING, Families
from promoterd.metrics.pace import PaceMetrics
from promoterd.states import State


class MountMetrics:
    """Set by the work on one mount. Every series is there from the start, so that rates begin at zero."""

    def __init__(self, metrics: Families, mount: str) -> None:
        self._directories = {state: metrics.directories.labels(mount, state.value) for state in State}
        self._promotions = {outcome: metrics.promotions.labels(mount, outcome) for outcome in OUTCOMES}
        self._promotion_seconds = metrics.promotion_seconds.labels(mount)
        self._copied = metrics.entries_copied.labels(mount)
        self._primed = metrics.entries_primed.labels(mount)
        self._backlog = metrics.backlog.labels(mount)
        self._expected_savings = metrics.expected_savings.labels(mount)
        self._throttled = metrics.throttled.labels(mount)
        self.pace = PaceMetrics(metrics, mount)
        self._activations = metrics.activations.labels(mount)
        self._effects = {effect: metrics.activation_effects.labels(mount, effect) for effect in EFFECTS}
        self._activation_seconds = metrics.activation_seconds.labels(mount)
        self._heat = partial(metrics.heat_events.labels, mount)
        for kind in Kind:
            self._heat(kind.value)
        self._source = partial(metrics.sources.labels, mount)
        self._source_events = partial(metrics.source_events.labels, mount)
        for name in (INOTIFY, FANOTIFY, NFS_TRACE):
            self._source(name)
            self._source_events(name)
        self._events_of: dict[str, int] = {}
        self._walks = metrics.walks.labels(mount)
        self._swept = metrics.swept.labels(mount)
        self._were_swept = (0, 0.0)
        self._overflows = metrics.overflows.labels(mount)
        self._unattributed = metrics.unattributed.labels(mount)
        self._sampled = metrics.sampled.labels(mount)
        self._source_counts = (0, 0)
        self._armed = metrics.armed.labels(mount)
        self._refused = metrics.refused.labels(mount)
        self._watches = metrics.watches.labels(mount)
        self._watches_limit = metrics.watches_limit.labels(mount)
        self._tracked = metrics.tracked.labels(mount)
        self._evictions = metrics.evictions.labels(mount)
        self._evicted = 0
        self._upper = [
            gauge.labels(mount)
            for gauge in (
                metrics.upper_free_bytes,
                metrics.upper_free_inodes,
                metrics.upper_size_bytes,
                metrics.upper_inodes,
            )
        ]
        for gauge in self._upper:
            gauge.set(math.nan)  # nobody has looked yet, and 0 would raise an alarm
        self._is_stuck = metrics.is_stuck.labels(mount)
        self._stuck_calls = metrics.stuck_calls.labels(mount)
        self._were_stuck = 0
        self._paused = metrics.is_paused.labels(mount)
        self._tripped = metrics.has_tripped.labels(mount)
        self._rechecks = metrics.rechecks.labels(mount)
        self._stale = metrics.stale.labels(mount)
        self._ghosts = metrics.ghosts.labels(mount)
        self._reopens = {outcome: metrics.reopens.labels(mount, outcome) for outcome in REOPENS}
        self._deferred = metrics.deferred.labels(mount)
        self._warm = {progress: metrics.warm.labels(mount, progress) for progress in WARMING}
        self._warm_bad = metrics.warm_bad.labels(mount)
        self._data_bytes = metrics.data_bytes.labels(mount)
        self._data_evicted = metrics.data_evicted.labels(mount)

    def warming(self, counts: Mapping[str, int], bad_lists: int) -> None:
        """How many directories of the lists are how far, and how many lists could not be read."""
        for progress, number in counts.items():
            self._warm[progress].set(number)
        self._warm_bad.set(bad_lists)

    def state_changed(self, before: State | None, after: State | None) -> None:
        """A directory went from one state to another; None: it was, or is, not in the book."""
        if before is not None:
            self._directories[before].dec()
        if after is not None:
            self._directories[after].inc()

    def promoted(self, outcome: str, seconds: float) -> None:
        """A promotion ended with one of OUTCOMES."""
        self._promotions[outcome].inc()
        self._promotion_seconds.observe(seconds)

    def copied(self, entries: int) -> None:
        """So many entries were given a shadow."""
        self._copied.inc(entries)

    def primed(self, entries: int) -> None:
        """So many entries were read so that they stay known."""
        self._primed.inc(entries)

    def backlog(self, directories: int, savings: float = 0.0) -> None:
        """So many directories wait to be promoted, which would save so many requests a second."""
        self._backlog.set(directories)
        self._expected_savings.set(savings)

    def throttled(self, seconds: float) -> None:
        """A promotion waited so long for its rate."""
        self._throttled.inc(seconds)

    def activated(self, active: int, pinned: int, seconds: float) -> None:
        """One reconfigure, and what it brought about."""
        self._activations.inc()
        self._effects["active"].inc(active)
        self._effects["pinned"].inc(pinned)
        self._activation_seconds.observe(seconds)

    def heat(self, kind: str, weight: float) -> None:
        """So many uses of a kind were heard of."""
        self._heat(kind).inc(weight)

    def swept(self, walks: int, uses: float) -> None:
        """So many walks over the tree were recognised since the start, with so many uses."""
        before, self._were_swept = self._were_swept, (walks, uses)
        self._walks.inc(max(0, walks - before[0]))
        self._swept.inc(max(0.0, uses - before[1]))

    def overflowed(self) -> None:
        """Events were lost."""
        self._overflows.inc()

    def source(self, stats: SourceStats, tracked: int, evicted: int = 0) -> None:
        """The heat source in numbers, and the tracker: what it remembers, and what it ever forgot for want of room."""
        before, self._source_counts = self._source_counts, (stats.unattributed, stats.sampled)
        self._unattributed.inc(max(0, stats.unattributed - before[0]))
        self._sampled.inc(max(0, stats.sampled - before[1]))
        self._armed.set(stats.armed)
        self._refused.set(stats.refused)
        self._watches.set(stats.watches)
        self._watches_limit.set(math.inf if stats.limit is None else stats.limit)
        self._tracked.set(tracked)
        self._evictions.inc(max(0, evicted - self._evicted))
        self._evicted = evicted

    def sources(self, parts: Sequence[Part]) -> None:
        """The heat sources at work, each by its name."""
        now = {part.name: part.stats.events for part in parts}
        for name in self._events_of.keys() - now.keys():
            self._source(name).set(0)
        for name, events in now.items():
            self._source(name).set(1)
            self._source_events(name).inc(max(0, events - self._events_of.get(name, 0)))
        self._events_of = now

    def upper_free(
        self, free_bytes: int, free_inodes: int, size_bytes: float = math.nan, inodes: float = math.nan
    ) -> None:
        """Upper's file system: what is free, and all there is (bytes, inodes)."""
        for gauge, value in zip(self._upper, (free_bytes, free_inodes, size_bytes, inodes), strict=True):
            gauge.set(value)

    def stuck(self, calls: int) -> bool:
        """So many calls hang; whether this is news: none did the last time."""
        is_news = calls > 0 and self._were_stuck == 0
        self._were_stuck = calls
        self._stuck_calls.set(calls)
        self._is_stuck.set(calls > 0)
        return is_news

    def paused(self, *, on: bool) -> None:
        """Nothing is promoted here, for whatever reason."""
        self._paused.set(on)

    def trip_wire(self, *, on: bool) -> None:
        """A promise was found broken (R15)."""
        self._tripped.set(on)

    def data_held(self, held: int) -> None:
        """So many bytes of files' data lie in the layer."""
        self._data_bytes.set(held)

    def data_evicted(self, freed: int) -> None:
        """So many bytes of it were given up."""
        self._data_evicted.inc(freed)

    def rechecked(self, directories: int) -> None:
        """So many were compared with the server's."""
        self._rechecks.inc(directories)

    def went_stale(self) -> None:
        """The server changed a directory that was complete."""
        self._stale.inc()

    def ghosts_removed(self, shadows: int) -> None:
        """Shadows were removed of what is gone on the server (R1)."""
        self._ghosts.inc(shadows)

    def reopened(self, outcome: str) -> None:
        """A reopening went one of the ways of REOPENS."""
        self._reopens[outcome].inc()

    def deferred(self, directories: int) -> None:
        """So many wait to be reopened."""
        self._deferred.set(directories)
