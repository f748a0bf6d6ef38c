"""The limiter at a model of a server: one queue that others use as well."""

from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

import pytest

from promoterd.overlay.rpcstats import Calls, Counted
from promoterd.yielding import CUT, FIRST, LEAST, PAUSE, STEP, Limiter


def answers(seconds: float, calls: int = 100, *, operation: str = "GETATTR", size: int = 200, lost: int = 0) -> Counted:
    """So many answers that took so long each."""
    return {(b"/nfs", operation): Calls(calls, calls, lost, calls * size, 0, round(1000 * seconds * calls))}


def test_it_grows_by_the_same_each_second_up_to_what_policy_allows() -> None:
    limiter = Limiter(120.0)
    rates = []
    for second in range(8):
        limiter.look(answers(0.001), asked=limiter.rate, now=float(second))
        rates.append(limiter.rate)
    assert rates == [FIRST + STEP, FIRST + 2 * STEP, FIRST + 3 * STEP, 120, 120, 120, 120, 120]
    assert limiter.cuts == 0


def test_a_slow_server_cuts_it_to_half_and_half_again_but_never_to_nothing() -> None:
    limiter = Limiter(None)
    for second in range(40):
        limiter.look(answers(0.001), asked=limiter.rate, now=float(second))
    before = limiter.rate
    look = limiter.look(answers(0.002), asked=before, now=40.0)
    assert look is not None
    assert look.is_slow
    assert limiter.rate == before * CUT
    limiter.look(answers(0.002), asked=limiter.rate, now=41.0)
    assert limiter.rate == before * CUT, "what was asked before the cut is answered as slowly"
    for second in range(42, 80):
        limiter.look(answers(0.002), asked=limiter.rate, now=float(second))
    assert limiter.rate == LEAST


@pytest.mark.parametrize("limit", [1.0, 7.0])
def test_it_never_goes_beyond_a_policy_that_allows_less_than_the_least(limit: float) -> None:
    limiter = Limiter(limit)
    for second in range(20):
        limiter.look(answers(0.001 + 0.001 * (second % 2)), asked=limiter.rate, now=float(second))
        assert limiter.rate == limit


def test_lost_requests_are_a_slow_server() -> None:
    limiter = Limiter(None)
    limiter.look(answers(0.001, calls=3, lost=1), asked=50, now=0.0)
    assert (limiter.rate, limiter.cuts) == (FIRST * CUT, 1)


def test_other_requests_are_not_a_slower_server() -> None:
    limiter = Limiter(None)
    for second in range(30):
        mixed = {**answers(0.001, 80), **answers(0.02, 40, operation="READDIR", size=30_000)}
        limiter.look(answers(0.001) if second % 2 else mixed, asked=limiter.rate, now=float(second))
        small = answers(0.002, 40, operation="READDIR", size=300)
        limiter.look(small, asked=0, now=second + 0.5)
    assert limiter.cuts == 0


def test_queueing_in_the_client_counts() -> None:
    limiter = Limiter(None)
    for second in range(5):
        limiter.look(answers(0.001), asked=limiter.rate, now=float(second))
    queued = {(b"/nfs", "GETATTR"): Calls(100, 100, 0, 20_000, 100, 100)}
    look = limiter.look(queued, asked=limiter.rate, now=5.0)
    assert look is not None
    assert look.is_slow
    assert look.took == pytest.approx(0.00125), "it counts a quarter beside what was before"


def test_a_few_answers_are_kept_until_they_tell_something() -> None:
    limiter = Limiter(None)
    assert limiter.look(answers(0.001, calls=10), asked=0, now=0.0) is None
    look = limiter.look(answers(0.003, calls=10), asked=0, now=1.0)
    assert look is not None
    assert look.took == pytest.approx(0.002)


def test_what_was_usual_is_forgotten() -> None:
    limiter = Limiter(None)
    limiter.look(answers(0.001), asked=50, now=0.0)
    for minute in range(1, 20):
        limiter.look(answers(0.01), asked=limiter.rate, now=60.0 * minute)
    assert limiter.last is not None
    assert not limiter.last.is_slow
    assert limiter.last.usually == pytest.approx(0.01, rel=0.1)


def test_a_rate_that_is_not_used_does_not_grow_and_a_pause_begins_it_anew() -> None:
    limiter = Limiter(None)
    limiter.look(answers(0.001), asked=1, now=0.0)
    assert limiter.rate == FIRST
    for second in range(1, 20):
        limiter.look(answers(0.001), asked=limiter.rate, now=float(second))
    limiter.look(answers(0.001), asked=0, now=20 + PAUSE + 1)
    assert limiter.rate == FIRST


@dataclass
class Server:
    """Answers one request after the other, ``capacity`` in a second, each after ``latency`` besides.

    Mean waiting in a queue with random arrivals (M/D/1) below capacity; beyond it what is too much is not answered.
    """

    capacity: float
    latency: float = 0.002
    noise: Random = field(default_factory=lambda: Random(7))

    def takes(self, load: float) -> float:
        busy = min(load / self.capacity, 0.999)
        waiting = busy / (2 * (1 - busy)) / self.capacity
        return (self.latency + 1 / self.capacity + waiting) * self.noise.uniform(0.97, 1.03)


def mean_slowdown(others: Callable[[float], float], limited: bool, seconds: int = 300) -> tuple[float, float]:
    """By how much the others' requests are slower than without us, and our requests per second."""
    server = Server(2000.0)
    limiter = Limiter(5000.0)
    ours, slower = 0.0, []
    for second in range(seconds):
        theirs = others(second)
        rate = limiter.rate if limited else min(5000.0, server.capacity - theirs)
        took = server.takes(theirs + rate)
        limiter.look(answers(took, max(1, round(rate))), asked=rate, now=float(second))
        if second >= 60:
            ours += rate
            slower.append(took / server.takes(theirs))
    return sum(slower) / len(slower), ours / (seconds - 60)


@pytest.mark.parametrize(("theirs", "slower"), [(100.0, 1.05), (1000.0, 1.06), (1500.0, 1.15)])
def test_others_hardly_notice(theirs: float, slower: float) -> None:
    with_limiter, rate = mean_slowdown(lambda _: theirs, limited=True)
    without, _ = mean_slowdown(lambda _: theirs, limited=False)
    assert with_limiter < slower
    assert without > 2
    assert rate > LEAST, "and work goes on"


def test_it_yields_to_those_who_come_later() -> None:
    alone, rate_alone = mean_slowdown(lambda _: 0.0, limited=True)
    _, rate = mean_slowdown(lambda second: 0.0 if second < 30 else 1700.0, limited=True)
    assert alone < 1.1
    assert rate < rate_alone / 3


@pytest.mark.parametrize(("latency", "rate"), [(0.0003, 1600), (0.001, 500), (0.005, 100), (0.1, LEAST)])
def test_on_the_average_no_more_than_half_a_request_waits(latency: float, rate: float) -> None:
    limiter = Limiter(5000.0)
    for second in range(120):
        limiter.look(answers(latency, 1000), asked=limiter.rate, now=float(second))
    assert limiter.rate == pytest.approx(rate, rel=0.05)
    assert limiter.cuts == 0


def test_answers_that_took_less_than_the_kernel_counts_bound_nothing() -> None:
    limiter = Limiter(None)
    look = limiter.look(answers(0.0), asked=50, now=0.0)
    assert look is not None
    assert look.took == 0
    for second in range(1, 10):
        limiter.look(answers(0.0), asked=limiter.rate, now=float(second))
    assert limiter.rate == FIRST + 10 * STEP


@pytest.mark.parametrize(("spread", "least"), [(0.1, 450), (0.2, 150), (0.3, 80)])
def test_chance_is_not_taken_for_a_slow_server(spread: float, least: float) -> None:
    """Means of a second's answers differ by so much (sigma) from each other, as those of a real server do."""
    limiter, chance, rates = Limiter(5000.0), Random(3), []
    for second in range(600):
        limiter.look(answers(0.001 * chance.lognormvariate(0, spread)), asked=limiter.rate, now=float(second))
        rates.append(limiter.rate)
    assert sum(rates[60:]) / len(rates[60:]) > least
