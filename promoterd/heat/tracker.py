"""Exponentially decayed counts of how hot directories are; no clock inside, ``now`` is always an argument (seconds)."""

import math
from collections.abc import Iterable
from heapq import nsmallest
from typing import Final, TypeAlias

Ranking: TypeAlias = list[tuple[bytes, float]]
"""Directories with their heat, hottest first; equally hot ones by path."""

_MOST_HALF_LIVES: Final = 512.0  # 2**512 lies in the middle of what a double holds
_NEGLIGIBLE: Final = 1e-6
_EVICTED_AT_ONCE: Final = 16


class HeatTracker:
    """The heat of at most ``capacity`` directories; what was added ``half_life`` seconds ago counts half.

    Decay is forward: a weight is stored multiplied by its growth since a landmark, so that all stored values stay
    comparable as they are and nothing is touched as time passes (Cormode et al., "Forward Decay", 2009). Once in 512
    half-lives the landmark is moved. When full, a sixteenth of the capacity is evicted at once, the coldest first.

    What the heat consists of is kept beside it, a dictionary for each kind of use: most directories are used in one or
    two ways, and ranking looks at the whole alone.
    """

    __slots__ = ("_heats", "_kinds", "_landmark", "capacity", "evictions", "half_life")

    def __init__(self, half_life: float, capacity: int = 100_000) -> None:
        if not (half_life > 0 and math.isfinite(half_life) and capacity > 0):
            raise ValueError("half_life and capacity must be positive and finite")
        self.half_life = half_life
        self.capacity = capacity
        self.evictions = 0
        """How many directories have been forgotten for want of room, ever."""
        self._heats: dict[bytes, float] = {}
        self._kinds: dict[str, dict[bytes, float]] = {}
        self._landmark: float | None = None

    def __len__(self) -> int:
        return len(self._heats)

    def __contains__(self, path: bytes) -> bool:
        return path in self._heats

    def add(self, path: bytes, weight: float, now: float, kind: str = "") -> None:
        """Heat a directory by uses of a kind. A ``now`` earlier than one seen before counts as that long ago."""
        if not (weight > 0 and math.isfinite(weight) and math.isfinite(now)):
            raise ValueError("weight must be positive, and both finite")
        if self._landmark is None:
            self._landmark = now
        age = (now - self._landmark) / self.half_life
        if age > _MOST_HALF_LIVES:
            self._move_landmark(now)
            age = 0.0
        before = self._heats.get(path)
        if before is None:
            if len(self._heats) >= self.capacity:
                self._evict()
            before = 0.0
        grown = weight * math.exp2(age)
        self._heats[path] = before + grown
        of_kind = self._kinds.setdefault(kind, {})
        of_kind[path] = of_kind.get(path, 0.0) + grown

    def heat(self, path: bytes, now: float) -> float:
        """The heat of a directory; 0.0 for an unknown one."""
        return self._heats.get(path, 0.0) * self._decay(now)

    def kinds(self, path: bytes, now: float) -> dict[str, float]:
        """What a directory's heat consists of, by the kind of use; empty for an unknown one."""
        decay = self._decay(now)
        return {kind: of_kind[path] * decay for kind, of_kind in self._kinds.items() if path in of_kind}

    def paths(self) -> Iterable[bytes]:
        """All directories that are known, in no order."""
        return self._heats.keys()

    def hottest(self, count: int, now: float) -> Ranking:
        """At most ``count`` directories."""
        decay = self._decay(now)
        return [(path, heat * decay) for path, heat in nsmallest(count, self._heats.items(), key=_rank)]

    def above(self, threshold: float, now: float) -> Ranking:
        """All directories at least as hot as ``threshold``."""
        decay = self._decay(now)
        found = [item for item in self._heats.items() if item[1] * decay >= threshold]
        return [(path, heat * decay) for path, heat in sorted(found, key=_rank)]

    def set_back(self, seconds: float) -> None:
        """The clock was set back by so much: all heat is what it was a moment ago, and cools from now on."""
        if self._landmark is not None:
            self._landmark -= seconds

    def forget(self, path: bytes) -> None:
        """Forget one directory, not those below it; an unknown one is no error."""
        if self._heats.pop(path, None) is not None:
            for of_kind in self._kinds.values():
                of_kind.pop(path, None)

    def prune(self, floor: float, now: float) -> int:
        """Forget all directories colder than ``floor``; returns how many."""
        decay = self._decay(now)
        kept = {path: heat for path, heat in self._heats.items() if heat * decay >= floor}
        dropped = len(self._heats) - len(kept)
        if dropped:
            self._keep(kept, 1.0)
        return dropped

    def dump(self, now: float) -> Ranking:
        """All that is known, as plain data that does not depend on the half-life or on when the clock started."""
        return self.hottest(len(self._heats), now)

    def load(self, dumped: Iterable[tuple[bytes, float]], now: float) -> None:
        """Add what :func:`dump` gave, as if it were heat of this moment; without what is as good as cold."""
        for path, heat in dumped:
            if heat >= _NEGLIGIBLE:
                self.add(path, heat, now)

    def _decay(self, now: float) -> float:
        if self._landmark is None:
            return 1.0
        # not above 1: whoever asks for a time before the landmark gets the heat at the landmark
        return math.exp2(min(0.0, (self._landmark - now) / self.half_life))

    def _move_landmark(self, now: float) -> None:
        decay = self._decay(now)
        self._keep({path: heat * decay for path, heat in self._heats.items() if heat * decay >= _NEGLIGIBLE}, decay)
        self._landmark = now

    def _keep(self, heats: dict[bytes, float], decay: float) -> None:
        self._heats = heats
        for kind, of_kind in self._kinds.items():
            self._kinds[kind] = {path: heat * decay for path, heat in of_kind.items() if path in heats}

    def _evict(self) -> None:
        count = max(1, self.capacity // _EVICTED_AT_ONCE)
        for path in nsmallest(count, self._heats, key=self._heats.__getitem__):
            self.forget(path)
        self.evictions += count


def _rank(item: tuple[bytes, float]) -> tuple[float, bytes]:
    return -item[1], item[0]
