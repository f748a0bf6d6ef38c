"""Keeping the pace of a mount: what its NFS client counts is looked at while there is work, and the rate follows."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from promoterd.mounted import Mounted
from promoterd.overlay import rpcstats
from promoterd.pacing import Pace
from promoterd.policy import MountPolicy
from promoterd.yielding import Limiter

EVERY = 1.0
"""Seconds between two looks while the server is asked."""
BURST = 0.2
"""Seconds' worth of requests that are made in one go: a low rate must not come in large bursts."""


def limiter_for(policy: MountPolicy, requests_per_entry: float) -> Limiter:
    """The limiter of a mount; what policy allows in entries is allowed in requests."""
    entries = policy.limits.entries_per_second
    return Limiter(None if entries is None else entries * max(1.0, requests_per_entry))


class Adapter:
    """Adapts the pace and the batches of one mount, and shows what is spent of its budget."""

    def __init__(self, mount: Mounted) -> None:
        self.mount = mount
        adaptive = mount.policy.limits.adaptive and mount.on_nfs
        self.limiter = limiter_for(mount.policy, mount.backend.requests_per_entry) if adaptive else None
        self._batch = mount.backend.batch
        self._reckoned = mount.pace.reckoned
        self._counted = rpcstats.now(mount.on_nfs) if adaptive else {}
        self._apply()

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await asyncio.sleep(EVERY)
            with suppress(OSError):
                self.look()

    def look(self) -> None:
        """Note what was asked since the last look, and adapt the rate to how it was answered. Raises OSError."""
        mount, pace = self.mount, self.mount.pace
        asked, self._reckoned = pace.reckoned - self._reckoned, pace.reckoned
        if not asked and pace.debt() <= 0:
            return
        now = mount.clock()
        mount.metrics.pace.asked(asked)
        if self.limiter is not None:
            before, self._counted = self._counted, rpcstats.now(mount.on_nfs)
            cuts = self.limiter.cuts
            self.limiter.look(rpcstats.since(before, self._counted), asked, time.monotonic())
            mount.metrics.pace.cut(self.limiter.cuts - cuts)
            if self.limiter.last is not None:
                mount.metrics.pace.answered(self.limiter.last.took, self.limiter.last.usually)
            self._apply()
        account = mount.account(now)
        if account is not None:
            mount.metrics.pace.budget_left(account.left(now))

    def _apply(self) -> None:
        if self.limiter is None:
            return
        mount, rate = self.mount, self.limiter.rate
        mount.pace.change(rate)
        mount.metrics.pace.rate(rate)
        mount.backend.batch = min(self._batch, portion(rate, mount.backend.requests_per_entry, mount.backend.lanes))

    def status(self) -> dict[str, float | None] | None:
        """The rate, the most that it may be, and what an answer takes and usually takes; None without a limiter."""
        if self.limiter is None:
            return None
        last = self.limiter.last
        return {
            "requests_per_second": self.limiter.rate,
            "most": self.limiter.most,
            "answer_seconds": None if last is None else last.took,
            "usual_seconds": None if last is None else last.usually,
        }


def portion(rate: float, requests_per_entry: float, lanes: int) -> int:
    """How many entries on each lane are worth a moment at this rate (pure)."""
    return max(1, round(rate * BURST / requests_per_entry / lanes))


@asynccontextmanager
async def adapted(mount: Mounted) -> AsyncIterator[Pace]:
    """Within the block the pace of a mount is kept, for work without a daemon."""
    keeping = asyncio.create_task(Adapter(mount).run())
    try:
        yield mount.pace
    finally:
        keeping.cancel()
