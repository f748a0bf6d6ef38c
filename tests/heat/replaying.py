"""Recorded traces of what a heat source heard, told again as if a source were read once a second."""

import random
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import cache
from pathlib import Path

from promoterd.heat.sweeps import Sweeps, Walked
from promoterd.paths import ancestors, parent

TRACES = Path(__file__).with_name("traces")
HALF_LIFE = 600.0
SETTLE = 10.0

Told = list[tuple[float, bytes, str, float]]
"""When (seconds), which directory, kind, weight."""


@cache
def directories() -> tuple[bytes, ...]:
    """The directories that were heard."""
    return tuple((TRACES / "directories.txt").read_bytes().splitlines())


@cache
def heard() -> frozenset[bytes]:
    return frozenset(directories())


def children(heads: Collection[bytes], is_heard: Callable[[bytes], bool]) -> Mapping[bytes, int]:
    """How many directories that are heard each of these has."""
    return Counter(head for path in directories() if path and is_heard(path) and (head := parent(path)) in heads)


def trace(name: str, *, at: float = 0.0, slower: float = 1.0) -> Told:
    """A recorded trace, beginning ``at`` so many seconds, and so many times ``slower``, as over a distant server."""
    told = []
    for line in (TRACES / f"{name}.txt").read_text().splitlines():
        milliseconds, kind, weight, number = line.split()
        told.append((at + int(milliseconds) * slower / 1000, directories()[int(number)], kind, float(weight)))
    return told


def as_lookups(told: Told, *, missed: int, lists: bool) -> Told:
    """What is looked up on the server by whoever did this on a cold client, with the listings where those are heard.

    Each directory is looked up in the one above it, once; in each that is used so many names are not there.
    """
    seen: set[bytes] = set()
    heard_of: Told = []
    for at, path, kind, weight in told:
        for directory in (*ancestors(path), path) if path else ():
            if directory not in seen:
                seen.add(directory)
                heard_of.append((at, parent(directory), "found", 1.0))
        if kind == "open":
            heard_of.append((at, path, "found", weight))
        if missed:
            heard_of.append((at, path, "miss", float(missed)))
        if lists and kind == "list":
            heard_of.append((at, path, kind, weight))
    return [line for line in heard_of if line[1] in heard()]


def together(*traces: Told) -> Told:
    """Several at once."""
    return sorted((line for told in traces for line in told), key=lambda line: line[0])


def readings(told: Told) -> Iterator[tuple[float, list[tuple[bytes, str, float]]]]:
    """As a source tells it that is read once a second: uses of a kind summed up, in the order of the first of them."""
    second, sums = 1, defaultdict[tuple[bytes, str], float](float)
    for at, path, kind, weight in told:
        while at >= second:
            yield float(second), [(*key, weight) for key, weight in sums.items()]
            second, sums = second + 1, defaultdict(float)
        sums[path, kind] += weight
    yield float(second), [(*key, weight) for key, weight in sums.items()]


class Replayed:
    """What became of a trace: heat by directory, and the walks that were recognised."""

    def __init__(
        self,
        told: Told,
        settle: float = SETTLE,
        is_heard: Callable[[bytes], bool] = lambda path: path in heard(),
        unknown: int = 0,
        after: int | None = None,
        shuffled: int | None = None,
        **options: int,
    ) -> None:
        self.heat: dict[bytes, float] = defaultdict(float)
        self.walks: list[Walked] = []
        self.most_held = 0
        self.asked = 0
        self._is_heard = is_heard
        self.unknown = unknown
        """How often nobody knows yet how many directories there are."""
        self.sweeps = Sweeps(settle, HALF_LIFE, self._count, is_heard, self._could, **options)
        now = 0.0
        for now, reading in readings(told):
            uses = [(path, weight, kind) for path, kind, weight in reading if is_heard(path)]
            if shuffled is not None:
                random.Random(shuffled).shuffle(uses)
            self.sweeps.hear(uses, now)
            self.most_held = max(self.most_held, len(self.sweeps))
            self.walks += self.sweeps.settled(now)
        self.then = dict(self.heat)
        """The heat at the end of the trace, before what was held back to the last had its time."""
        for second in range(int(4 * settle) if after is None else after):
            self.walks += self.sweeps.settled(now + second)

    def _could(self, heads: Collection[bytes]) -> Mapping[bytes, int] | None:
        self.asked += 1
        return None if self.asked <= self.unknown else children(heads, self._is_heard)

    def _count(self, path: bytes, weight: float, kind: str, at: float) -> None:
        del kind, at
        self.heat[path] += weight


def total(told: Told) -> dict[bytes, float]:
    """What a trace comes to if all of it is heat."""
    sums: dict[bytes, float] = defaultdict(float)
    for _, path, _, weight in told:
        sums[path] += weight
    return sums
