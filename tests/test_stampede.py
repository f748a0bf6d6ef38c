"""5,000 machines boot together, in a model with a clock of its own: what their one server is asked.

The machines decide by what the daemon decides by: :mod:`promoterd.spread` and :mod:`promoterd.yielding`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest

from promoterd import spread
from promoterd.overlay.rpcstats import Calls
from promoterd.yielding import LEAST, Limiter

NODES = 5000
CAPACITY = 100_000.0
"""Requests per second that the server can answer."""
LATENCY = 0.0005
SPREAD = 300.0
DIRECTORIES, PER_RECHECK = 60, 3
"""Directories of each machine that are overdue at its start, and requests to recheck one."""
ALWAYS = 2000
"""Requests to promote what policy wants in any case."""
RECHECKS_PER_SECOND = 100.0
MOST = 5000.0


@dataclass
class Node:
    """One machine after its start: the rechecks that come due each second, and what it still has to ask."""

    host: bytes
    spread: float
    limiter: Limiter | None
    due: list[int] = field(default_factory=list)
    always_at: int = 0
    rechecks: float = 0.0
    promotions: float = 0.0

    def __post_init__(self) -> None:
        self.due = [0] * (int(self.spread) + 1)
        for number in range(DIRECTORIES):
            self.due[int(spread.delay(self.host, b"recheck/lib/%d" % number, self.spread))] += PER_RECHECK
        self.always_at = int(spread.delay(self.host, b"always", self.spread))

    def wants(self, second: int) -> tuple[float, float]:
        """Requests for rechecks and for promotions that it makes in this second, if the server answers."""
        if second < len(self.due):
            self.rechecks += self.due[second]
        if not self.rechecks and not self.promotions and second != self.always_at:
            return 0.0, 0.0
        self.promotions += ALWAYS if second == self.always_at else 0
        rate = MOST if self.limiter is None else self.limiter.rate
        rechecks = min(self.rechecks, RECHECKS_PER_SECOND, rate)
        return rechecks, min(self.promotions, rate - rechecks)


@dataclass(frozen=True)
class Boot:
    """What the server was asked in each second, and the second in which everything was done."""

    asked: list[float]
    done_after: int

    @property
    def peak(self) -> float:
        return max(self.asked)

    @property
    def seconds_too_busy(self) -> int:
        return sum(asked > CAPACITY for asked in self.asked)


def boot(*, spread_over: float, limited: bool, nodes: Sequence[bytes]) -> Boot:
    """All of them start in second 0; what the server cannot answer in a second is asked again in the next."""
    made = [Node(host, spread_over, Limiter(MOST) if limited else None) for host in nodes]
    asked: list[float] = []
    for second in range(3600):
        wanted = [node.wants(second) for node in made]
        total = sum(rechecks + promotions for rechecks, promotions in wanted)
        asked.append(total)
        answered = min(1.0, CAPACITY / total) if total else 1.0
        busy = min(total / CAPACITY, 0.99)
        takes = LATENCY + max(0.0, total - CAPACITY) / CAPACITY + busy / (2 * (1 - busy)) / CAPACITY
        for node, (rechecks, promotions) in zip(made, wanted, strict=True):
            node.rechecks = _left(node.rechecks, rechecks * answered)
            node.promotions = _left(node.promotions, promotions * answered)
            calls = round((rechecks + promotions) * answered)
            if node.limiter is not None and calls:
                counted = {(b"/nfs", "GETATTR"): Calls(calls, calls, 0, 200 * calls, 0, round(1000 * takes * calls))}
                node.limiter.look(counted, rechecks + promotions, float(second))
        if second > spread_over and not any(node.rechecks or node.promotions for node in made):
            return Boot(asked, second)
    raise AssertionError("it came to no end")


def _left(wanted: float, answered: float) -> float:
    return left if (left := wanted - answered) > 0.5 else 0.0


@pytest.fixture(scope="module")
def hosts() -> list[bytes]:
    return [b"0123456789abcdef render%04d" % number for number in range(NODES)]


def test_a_common_boot_does_not_stampede(hosts: list[bytes]) -> None:
    bare = boot(spread_over=0.0, limited=False, nodes=hosts)
    spread_out = boot(spread_over=SPREAD, limited=False, nodes=hosts)
    both = boot(spread_over=SPREAD, limited=True, nodes=hosts)
    evenly = NODES * (DIRECTORIES * PER_RECHECK + ALWAYS) / SPREAD
    assert bare.peak > 100 * CAPACITY
    assert bare.seconds_too_busy > 100, "everybody waits for all that anybody wants"
    assert spread_out.peak < 2 * evenly
    assert spread_out.seconds_too_busy == both.seconds_too_busy == 0
    assert both.peak < 1.5 * evenly
    assert both.done_after < SPREAD + 60


def test_a_server_that_is_too_small_gets_less_from_everybody(hosts: list[bytes]) -> None:
    """Without a spread, the limiter alone: everybody falls to the least within seconds, and stays there."""
    found = boot(spread_over=0.0, limited=True, nodes=hosts[:2500])
    assert found.asked[0] == 2500 * 50
    settled = found.asked[20:100]
    assert sum(settled) / len(settled) < 1.2 * CAPACITY
    assert min(settled) >= 2500 * LEAST * 0.99
