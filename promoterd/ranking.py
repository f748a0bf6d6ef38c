"""Which hot directories of one mount are promoted first, and which are not worth it, by heat, policy and ledger."""

import time
from functools import lru_cache

from promoterd.backends.base import Plan
from promoterd.heat.base import Kind
from promoterd.heat.tracker import HeatTracker
from promoterd.mounted import Mounted
from promoterd.payback import ENTRIES, Estimate, Payback, Size, by_payback, payback
from promoterd.units import format_duration, rough

RANKED_MOST = 10_000
"""Of more hot directories than this the hottest are ranked: nobody promotes as many before they are ranked again."""
_QUICK = 0.005
_TIMES_AS_LONG = 20.0
"""How many times as long as it took a ranking is kept, unless it was quick: the event loop serves other mounts too."""
_LOOKUPS = frozenset({Kind.MISS, Kind.FOUND})
_FOR_EVER = 100 * 365 * 86_400


class Ranking:
    """Asks nothing of the mount: what it knows is in memory."""

    def __init__(self, mount: Mounted, tracker: HeatTracker) -> None:
        self.mount = mount
        self.tracker = tracker
        self.prices = mount.backend.prices(with_data=mount.policy.copy_data is not None)
        self._rule_for = lru_cache(mount.policy.heat.max_directories)(mount.policy.rule_for)
        self._lookups_are_heard = False
        self._queue: dict[bytes, Payback] = {}
        self._took = self._ranked_at = 0.0

    def heard(self, kind: str) -> None:
        """A use of this kind was told."""
        if kind in _LOOKUPS and not self._lookups_are_heard:
            self._lookups_are_heard = True
            self.prices = self.prices.where_lookups_are_heard()

    def may_promote(self, path: bytes) -> bool:
        """As the policy's, and quick for a directory that was asked about before."""
        rule = self._rule_for(path)
        return rule is not None and rule.may_promote

    def payback(self, path: bytes, now: float, entries: int | None = None) -> Payback:
        """Of one directory, by the number of its entries if that is known, or else the ledger's."""
        if entries is None:
            record = self.mount.book.get(path)
            entries = record.entries if record is not None and record.entries else ENTRIES
        return payback(self.tracker.kinds(path, now), self.tracker.half_life, self.prices, entries)

    def queue(self, now: float) -> dict[bytes, Payback]:
        """As :meth:`hot`, or as it was a moment ago where finding that out takes long."""
        began = time.monotonic()
        if self._took < _QUICK or began - self._ranked_at > _TIMES_AS_LONG * self._took:
            self._queue = self.hot(now)
            self._ranked_at = time.monotonic()
            self._took = self._ranked_at - began
        return self._queue

    def hot(self, now: float) -> dict[bytes, Payback]:
        """What is hot enough and not promoted, in the order in which it is to be."""
        policy, book = self.mount.policy, self.mount.book
        found = {}
        lowest = min((policy.threshold_for(rule) for rule in policy.rules if rule.may_promote), default=0.0)
        for path, heat in self.tracker.above(lowest, now):
            rule = self._rule_for(path)
            if rule is not None and heat >= policy.threshold_for(rule) and not book.is_marked(path):
                found[path] = self.payback(path, now)
                if len(found) >= RANKED_MOST:
                    break
        return {path: found[path] for path in by_payback(found.items())}

    def why_not(self, plan: Plan) -> str | None:
        """Why a plan is not worth its price, all of its directories together; None where it is."""
        now, estimate = self.mount.clock(), Estimate(self.prices, self.tracker.half_life)
        for directory in plan.directories:
            estimate.add(self.tracker.kinds(directory.path, now), len(directory.listing.entries))
        worth, allowed = estimate.of(Size(plan.entries, len(plan.directories))), self.mount.policy.heat.payback
        if worth.seconds <= allowed:
            return None
        return f"it would pay back {shown(worth)} (heat.payback allows {format_duration(allowed)})"


def shown(worth: Payback) -> str:
    """After how long it pays back, in a few words."""
    if worth.seconds > _FOR_EVER:
        return "never"
    return f"in {format_duration(rough(worth.seconds))}"
