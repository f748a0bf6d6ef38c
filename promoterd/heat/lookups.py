"""What the histograms of lookups come to: uses of inodes, by kind; no I/O."""

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from promoterd.heat.attribution import Inode
from promoterd.heat.base import Kind
from promoterd.heat.histograms import Growth, Histogram
from promoterd.heat.tracepoints import Meaning, Trigger

LOOKUP = "lookup"
"""A name was looked up on the server, and it is not known whether it exists."""
_UNPAIRED_FOR = 2
"""Readings in which a miss may come up of which the lookup itself was not counted: this one, and the next."""
_ANSWERS = (0, 2)
"""No error, and ENOENT, which ``nfs_lookup_exit`` does not count as one."""


@dataclass
class Taken:
    """What was counted since the last time.

    ``failed`` lookups were answered with another error than ENOENT, or not at all; ``elsewhere`` counts those by users
    of the NFS mount itself, ``dropped`` those that found no place in the histogram.
    """

    uses: Counter[tuple[Inode, str]] = field(default_factory=Counter)
    failed: int = 0
    elsewhere: int = 0
    dropped: int = 0

    @property
    def events(self) -> int:
        """All of them."""
        return self.uses.total() + self.failed + self.elsewhere + self.dropped


class Reading:
    """Follows the histograms of one instance.

    ``rest`` is the kind of what is counted together (Meaning.BOTH), but for the misses among it; None where misses and
    the others are counted each for themselves.
    """

    def __init__(self, rest: str | None) -> None:
        self.rest = rest
        self._growth: defaultdict[Trigger, Growth] = defaultdict(Growth)
        self._balance: Counter[Inode] = Counter()
        self._unpaired = 0

    def take(self, histograms: Iterable[tuple[Trigger, Histogram]]) -> Taken:
        """What the histograms gained."""
        taken = Taken()
        for trigger, histogram in histograms:
            growth = self._growth[trigger]
            rows = growth.gained(histogram)
            if trigger.meaning is Meaning.JOIN:
                continue
            taken.dropped += growth.dropped(histogram)
            if trigger.meaning is Meaning.ELSEWHERE:
                taken.elsewhere += sum(rows.values())
                continue
            for (device, number, error), count in rows.items():
                self._count(taken, trigger.meaning, Inode(device, number), error, count)
        if taken.dropped:
            self._unpaired = _UNPAIRED_FOR
        self._settle(taken)
        return taken

    def cleared(self, trigger: Trigger) -> None:
        """A histogram begins anew."""
        self._growth[trigger].cleared()
        self._unpaired = _UNPAIRED_FOR

    def _count(self, taken: Taken, meaning: Meaning, inode: Inode, error: int, count: int) -> None:
        if error not in _ANSWERS:
            taken.failed += count
        elif meaning is Meaning.BOTH:
            self._balance[inode] += count
        elif meaning is Meaning.FOUND:
            taken.uses[inode, Kind.FOUND] += count
        else:
            taken.uses[inode, Kind.MISS] += count
            if self.rest is not None:
                self._balance[inode] -= count

    def _settle(self, taken: Taken) -> None:
        """Of what was counted together, what is left besides the misses.

        A lookup may be read before the miss that it was: that is taken off what comes next, unless it may be one of
        which the lookup was lost.
        """
        for inode, count in self._balance.items():
            if count > 0 and self.rest is not None:
                taken.uses[inode, self.rest] += count
        owed = {} if self._unpaired else {inode: count for inode, count in self._balance.items() if count < 0}
        self._balance = Counter(owed)
        self._unpaired = max(0, self._unpaired - 1)
