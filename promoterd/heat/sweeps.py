"""Telling walks over a tree (``find``, a backup, ``grep -r``) from use; pure, ``now`` is always an argument (seconds).

Most sources do not say who did something, so a walk is known by what it does. It lists every directory, each parent
before its children, and leaves none out; it may open or look at each file, but looks for no name that does not exist;
and it goes through each directory once, in one *visit*. Programs that start list directories as well, but not those
above them (recorded launches: none of 48), and importers that go down a tree leave most of it out (they listed 40 % of
the directories beside those that they went through; walks list all, and ``compileall``, which skips bytecode, 76 %):
``tests/heat/traces`` has recordings of both.

So a visit that begins with a listing is held back for as long as it and what it belongs to may be a walk: a *wave* of
visits, each to a directory whose parent is being visited. When the wave has left (nothing in it was used for
``settle`` seconds) or is large enough to tell, it is judged. What belongs to a walk is no heat; the rest is, late. Of a
wave that is complete, but without parents (policy may name leaves alone, and then no source hears what is above),
nobody can tell: it counts when the same directories are visited again while the first visit would still be warm.
"""

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final, Protocol

from promoterd.heat.base import Kind
from promoterd.heat.waves import FEWEST, Visit, Wave
from promoterd.paths import parent

LISTS_MOST: Final = 8
"""Listings of one directory in one visit that may be those of walks: several in a row, or side by side."""
PATIENCE: Final = 3.0
"""How many times as long a wave is waited for that goes down a tree, or that stays where it is."""
LONGEST: Final = 30.0
"""How many times as long a walk may stay in one directory before that counts as use."""
_OF_WALKS: Final = frozenset({Kind.LIST, Kind.OPEN, Kind.FOUND})
_BEGINS: Final = frozenset({Kind.LIST, Kind.FOUND})


class Count(Protocol):
    """Takes what is heat, and when that was."""

    def __call__(self, path: bytes, weight: float, kind: str, at: float) -> None:
        """A directory was used."""


@dataclass(frozen=True, slots=True)
class Walked:
    """A walk that was recognised: where it began, and how many directories it had gone through by then."""

    path: bytes
    directories: int


class Sweeps:
    """Holds back what may be a walk, and passes on to ``count`` what is use.

    ``is_heard``: whether uses of a directory are told at all. ``could``: how many directories that are heard each of
    these has, None where that is not known yet; asked only when a wave is judged. ``settle`` 0: everything counts at
    once. ``half_life``: of the heat. At most ``capacity`` directories are held back; what goes through more is a walk.
    """

    def __init__(
        self,
        settle: float,
        half_life: float,
        count: Count,
        is_heard: Callable[[bytes], bool],
        could: Callable[[Collection[bytes]], Mapping[bytes, int] | None],
        capacity: int = 50_000,
    ) -> None:
        self.settle = settle
        self.half_life = half_life
        self.capacity = capacity
        self.walks = 0
        """Walks that were recognised."""
        self.swept = 0.0
        """Uses that were no heat because of that."""
        self._ahead = 0.0
        """Seconds by which the clock was set back, and by which our time is ahead of it, therefore."""

        def count_then(path: bytes, weight: float, kind: str, at: float) -> None:
            count(path, weight, kind, at - self._ahead)

        self._count: Count = count_then
        self._is_heard = is_heard
        self._could = could
        self._visits: dict[bytes, Visit] = {}
        self._waves: dict[Wave, None] = {}
        self._without_parents: Wave | None = None
        self._doubtful: dict[bytes, tuple[float, dict[str, float]]] = {}
        self._news: list[Walked] = []
        self._lists_are_heard = False

    def __len__(self) -> int:
        return len(self._visits) + len(self._doubtful)

    def set_back(self, seconds: float) -> None:
        """The clock was set back by so much."""
        self._ahead += seconds

    def hear(self, uses: Iterable[tuple[bytes, float, str]], now: float) -> None:
        """What one reading of a source told, in whatever order: directory, weight, kind.

        Parents come before what is in them then, and whatever a walk would do before what it would not.
        """
        for path, weight, kind in sorted(uses, key=lambda use: (use[0], use[2] not in _BEGINS, use[2] != Kind.OPEN)):
            self.touched(path, weight, kind, now)

    def touched(self, path: bytes, weight: float, kind: str, now: float) -> None:
        """A directory was used; calls ``count`` with what is heat now."""
        now += self._ahead
        visit = self._visit(path, kind, now)
        if visit is None:
            self._count(path, weight, kind, now)
            return
        if kind == Kind.LIST:
            self._lists_are_heard = True
            visit.wave.listed += not visit.lists
            visit.lists += weight
            if not visit.has_parent:
                self._join(path, visit, now)
        visit.wave.use(path, now)
        stays = now - visit.alone_since > LONGEST * self.settle
        if visit.held is not None and (kind not in _OF_WALKS or visit.lists > LISTS_MOST or stays):
            self._release(path, visit.held, now)
            visit.held = None
            visit.wave.freed += 1
        if visit.held is None:
            self._count(path, weight, kind, now)
        elif visit.wave.is_walk:
            self.swept += weight
        else:
            visit.held[kind] = visit.held.get(kind, 0.0) + weight

    def _visit(self, path: bytes, kind: str, now: float) -> Visit | None:
        """The visit that a use belongs to, a new one perhaps; None where it is heat."""
        visit = self._visits.get(path)
        if visit is not None and now - visit.wave.last > self._patience(visit.wave):
            self._is_over(visit.wave, now)
            visit = self._visits.get(path)
        if visit is not None:
            # where it comes back to what its wave has been through, it is none of it
            return visit if now - visit.last <= self._patience(visit.wave) else None
        doubtful = self._doubtful.pop(path, None)
        if doubtful is not None:
            at, held = doubtful
            self._release(path, held, at)
            return None
        return self._begin(path, now) if kind in _BEGINS and self.settle else None

    def vanished(self, path: bytes) -> None:
        """A directory is no longer there."""
        self._doubtful.pop(path, None)
        visit = self._visits.pop(path, None)
        if visit is not None:
            del visit.wave.visits[path]

    def settled(self, now: float) -> list[Walked]:
        """Judge what has come to rest; to be called every second or so. Returns the walks recognised since then."""
        now += self._ahead
        for wave in list(self._waves):
            if now - wave.last > self._patience(wave) or (not wave.is_walk and self._stays(wave, now)):
                self._is_over(wave, now)
            elif wave.is_walk:
                for path in wave.leave_behind(now - self._patience(wave)):
                    del self._visits[path]
        self._forget_doubtful(now)
        news, self._news = self._news, []
        return news

    def _patience(self, wave: Wave) -> float:
        """After how long without use a wave has left; one that goes down a tree may be held up by a large file."""
        return self.settle * (PATIENCE if wave.with_parents else 1)

    def _stays(self, wave: Wave, now: float) -> bool:
        """Whether it is in use and goes nowhere."""
        return not wave.with_parents and now - wave.grew > PATIENCE * self.settle

    # Waves

    def _begin(self, path: bytes, now: float) -> Visit:
        """A new visit, in the wave that it belongs to."""
        above, alone = self._above(path, now)
        wave = above.wave if above is not None else self._without_parents if alone else None
        if wave is None or wave not in self._waves or now - wave.last > self._patience(wave):
            wave = Wave(path, path, now, now)
            self._waves[wave] = None
        if alone:
            self._without_parents = wave
        visit = self._visits[path] = wave.grow(path, now, has_parent=above is not None)
        self._judge_so_far(wave)
        if len(self._visits) > self.capacity:
            self._make_room()
        return visit

    def _join(self, path: bytes, visit: Visit, now: float) -> None:
        """A program was here by itself, and now comes a wave from above."""
        above, _ = self._above(path, now)
        if above is None or above.wave is visit.wave:
            return
        visit.wave.give(path)
        if not visit.wave.visits:
            self._waves.pop(visit.wave, None)
        visit.has_parent = True
        above.wave.take(path, visit, now)
        if above.wave.is_walk:
            self._sweep(visit)
        self._judge_so_far(above.wave)

    def _above(self, path: bytes, now: float) -> tuple[Visit | None, bool]:
        """The visit to the next directory above that is heard, and whether none is heard there at all."""
        while path:
            path = parent(path)
            visit = self._visits.get(path)
            if visit is not None and now - visit.last <= self._patience(visit.wave):
                return visit, False
            if self._is_heard(path):
                return None, False
        return None, True

    def _make_room(self) -> None:
        """More at once than any program uses is a walk, of which the older half is forgotten; or many small waves."""
        largest = max(self._waves, key=lambda wave: len(wave.visits))
        if largest.members < self.capacity / 4:
            for wave in list(self._waves)[: len(self._waves) // 2]:
                self._is_over(wave, math.inf)
            return
        if not largest.is_walk:
            self._is_a_walk(largest)
        for path in list(largest.visits)[: len(largest.visits) // 2]:
            del largest.visits[path], self._visits[path]

    # Judging

    def _judge_so_far(self, wave: Wave) -> None:
        """As it grows, ever less often."""
        if wave.is_walk or wave.members < wave.judged_at:
            return
        wave.judged_at *= 2
        may_be = wave.goes_down and wave.may_be_a_walk(lists_are_heard=self._lists_are_heard)
        could = self._could(wave.heads()) if may_be else None
        if could is not None and wave.is_complete_so_far(could):
            self._is_a_walk(wave)

    def _is_over(self, wave: Wave, now: float) -> None:
        """It has left, or is none: what it comes to is heat unless it was a walk. It waits for what is not known."""
        becomes = self._release
        may_be = wave.members >= FEWEST and wave.may_be_a_walk(lists_are_heard=self._lists_are_heard)
        if may_be and not wave.is_walk:
            could = self._could(wave.heads())
            if could is None and now - wave.last <= LONGEST * self.settle:
                return
            complete = could is not None and wave.is_complete(could)
            if not wave.goes_down:
                becomes = self._doubt if complete else self._release
            elif complete or (could is not None and wave.is_complete_so_far(could)):
                self._is_a_walk(wave)
        self._end(wave, becomes)

    def _end(self, wave: Wave, what: Callable[[bytes, dict[str, float], float], None]) -> None:
        for path, visit in wave.visits.items():
            del self._visits[path]
            if visit.held:
                what(path, visit.held, visit.last)
        self._waves.pop(wave, None)

    def _is_a_walk(self, wave: Wave) -> None:
        wave.is_walk = True
        self.walks += 1
        self._news.append(Walked(wave.first, wave.members))
        for visit in wave.visits.values():
            self._sweep(visit)

    def _sweep(self, visit: Visit) -> None:
        if visit.held:
            self.swept += math.fsum(visit.held.values())
            visit.held = {}

    def _release(self, path: bytes, held: dict[str, float], at: float) -> None:
        for kind, weight in held.items():
            self._count(path, weight, kind, at)

    # What may have been a walk

    def _doubt(self, path: bytes, held: dict[str, float], at: float) -> None:
        self._doubtful[path] = (at, held)
        if len(self._doubtful) > self.capacity:
            del self._doubtful[next(iter(self._doubtful))]

    def _forget_doubtful(self, now: float) -> None:
        """What would be as good as cold by now."""
        for path in list(self._cold(now - 10 * self.half_life)):
            del self._doubtful[path]

    def _cold(self, before: float) -> Iterator[bytes]:
        for path, (at, _) in self._doubtful.items():
            if at >= before:
                return
            yield path
