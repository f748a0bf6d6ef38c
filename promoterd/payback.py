"""What promoting a directory would spare the server, and when it has earned back what it costs (pure).

Both sides are requests to the server, so that the time does not depend on how long one takes: what a promotion costs,
divided by what it saves in a second. The rate comes from decayed heat: uses at a steady rate r keep it at
r * half-life / ln 2. It is a guess in two ways. Recent use is taken for lasting use; and a use that was heard is taken
for a request, although a client that remembers a name asks for nothing. Both flatter the promotion, which is why only
what would not pay even so is left undone.

Of directories that wait, the one that pays back soonest is next: whatever order is chosen, all of them take the same
time to promote, and what the server is asked meanwhile is least if they go by saving per cost (W. E. Smith, "Various
optimizers for single-stage production", 1956).
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Final

from promoterd.heat.base import Kind

COPY_UP: Final = 7
"""Requests that an NFS server gets for each entry that ``opaque`` copies up, at most (docs/benchmarks.md)."""
DIRECTORY: Final = 25
"""Requests for each directory of a promotion: walking there, looking at it before and after (docs/benchmarks.md)."""
READDIR: Final = 125
"""Entries that one READDIR brings: a listing of 507 took 5 requests (docs/benchmarks.md, `readdir`)."""
ENTRIES: Final = 50
"""How many entries a directory is taken to have before anybody has listed it: the lab's search directories have 53."""
ROUND_TRIP: Final = 0.001
"""Seconds that a request is taken to take where nobody has measured it."""


@dataclass(frozen=True, slots=True)
class Prices:
    """What a backend's promotions cost a server, and what they spare it from then on; requests, all of them.

    ``saves``: for each kind of use, how many requests each one is spared; less than 0 where it becomes dearer. For a
    LIST that is per request that the listing takes. An OPEN stands for what a program looks up beside what it opens,
    and which a source that only hears opens cannot tell: one name at least (in the lab's launch it is 28 names that do
    not exist for each file that is opened). A kind that is not named here counts as an OPEN.
    """

    saves: Mapping[str, float]
    per_entry: float
    per_directory: float = DIRECTORY

    def where_lookups_are_heard(self) -> "Prices":
        """Where a source tells lookups by themselves, an OPEN stands for none."""
        return replace(self, saves=MappingProxyType({**self.saves, Kind.OPEN: self.saves.get(Kind.OPEN, 1.0) - 1}))


def _saves(**by_kind: float) -> Mapping[str, float]:
    return MappingProxyType({str(Kind[name.upper()]): value for name, value in by_kind.items()})


CAUTIOUS: Final = Prices(_saves(open=1, list=1, miss=1, found=0), COPY_UP)
"""For a backend that does not say: the dearest promotion, and names that exist stay as they are."""
COPIED_UP: Final = Prices(_saves(open=1, list=1, miss=1, found=-1), COPY_UP)
"""Marks in upper: a name that exists costs one GETATTR more (500 times stat: 1,007 instead of 507)."""
LAYER: Final = Prices(_saves(open=1, list=1, miss=1, found=1), 1)
"""A metadata layer: built from one listing, but for the attributes of each entry (`xattrs: copy`)."""
LAYER_WITH_DATA: Final = Prices(_saves(open=5, list=1, miss=1, found=1), 5)
"""With small data local, opening and reading a file spares the server four requests, and each is read once before."""
PRIMED: Final = Prices(_saves(open=1, list=1, miss=0, found=1), 0.01, 6)
"""Reading in advance: as cheap as a listing. That it is done again and again is not counted, as nobody waits for it."""


@dataclass(frozen=True, slots=True)
class Payback:
    """What one promotion would cost (requests), and save from then on (requests per second)."""

    saved: float
    cost: float

    @property
    def seconds(self) -> float:
        """After how long it has earned back what it costs; infinite where it never does."""
        return self.cost / self.saved if self.saved > 0 else math.inf

    @property
    def saved_per_hour(self) -> float:
        """Requests; less than 0 where it would cost the server more than it does now."""
        return self.saved * 3600


@dataclass(frozen=True, slots=True)
class Size:
    """How large a directory is, as far as that is known."""

    entries: int = ENTRIES
    directories: int = 1


@dataclass(slots=True)
class Estimate:
    """The payback of a directory, or of several that are promoted together."""

    prices: Prices
    half_life: float
    _saved: float = field(default=0.0, init=False)

    def add(self, kinds: Mapping[str, float], entries: int) -> None:
        """One more directory: its heat by kind of use, and how many entries it has."""
        of_others = self.prices.saves.get(Kind.OPEN, 0.0)
        worth = 0.0
        for kind, heat in kinds.items():
            each = self.prices.saves.get(kind, of_others)
            worth += heat * each * (1 + entries / READDIR if kind == Kind.LIST else 1)
        self._saved += worth * math.log(2) / self.half_life

    def of(self, size: Size) -> Payback:
        """The payback of all that was added."""
        cost = size.entries * self.prices.per_entry + size.directories * self.prices.per_directory
        return Payback(self._saved, cost)


def payback(kinds: Mapping[str, float], half_life: float, prices: Prices, entries: int = ENTRIES) -> Payback:
    """The payback of one directory, by its heat of each kind."""
    estimate = Estimate(prices, half_life)
    estimate.add(kinds, entries)
    return estimate.of(Size(entries))


def by_payback(found: Iterable[tuple[bytes, Payback]]) -> list[bytes]:
    """Directories in the order in which they are to be promoted: what pays back soonest, then what saves most."""
    return [path for path, worth in sorted(found, key=lambda item: (item[1].seconds, -item[1].saved, item[0]))]


def waiting_saved(worth: Payback, round_trip: float | None) -> float:
    """Seconds of waiting for the server that are saved in a second: what compares directories of different mounts."""
    return worth.saved * (ROUND_TRIP if round_trip is None else round_trip)
