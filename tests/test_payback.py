"""What promoting a directory saves and costs, and the order that follows; numbers are those of docs/benchmarks.md."""

import math
import random
from itertools import permutations

import pytest

from promoterd.backends.layer.backend import LayerBackend
from promoterd.backends.observe import ObserveBackend
from promoterd.backends.opaque import OpaqueBackend
from promoterd.backends.prime import PrimeBackend
from promoterd.heat.tracker import HeatTracker
from promoterd.payback import (
    CAUTIOUS,
    COPIED_UP,
    LAYER,
    LAYER_WITH_DATA,
    PRIMED,
    Estimate,
    Payback,
    Prices,
    Size,
    by_payback,
    payback,
    waiting_saved,
)
from support.facts import described

HALF_LIFE = 600.0


def rate(heat: float) -> float:
    """Uses in a second that keep a directory at this heat."""
    return heat * math.log(2) / HALF_LIFE


@pytest.mark.parametrize("per_second", [0.01, 1.0, 50.0])
def test_heat_that_is_kept_up_says_how_often_it_is_used(per_second: float) -> None:
    tracker, now = HeatTracker(HALF_LIFE), 0.0
    while now < 20 * HALF_LIFE:
        tracker.add(b"lib", per_second * 10, now, "miss")
        now += 10
    # half an interval before and half after the last use, so to speak
    found = payback(tracker.kinds(b"lib", now - 5), HALF_LIFE, LAYER)
    assert found.saved == pytest.approx(per_second, rel=0.001)
    assert found.saved_per_hour == pytest.approx(per_second * 3600, rel=0.001)


@pytest.mark.parametrize(
    ("prices", "missed", "found"),
    [(LAYER, 1, 1), (COPIED_UP, 1, -1), (PRIMED, 0, 1), (CAUTIOUS, 1, 0)],
)
def test_lookups_are_spared_or_not(prices: Prices, missed: float, found: float) -> None:
    assert payback({"miss": 10.0}, HALF_LIFE, prices).saved == pytest.approx(rate(10) * missed)
    assert payback({"found": 10.0}, HALF_LIFE, prices).saved == pytest.approx(rate(10) * found)


def test_a_listing_costs_more_the_larger_the_directory_is() -> None:
    small, large = (payback({"list": 1.0}, HALF_LIFE, LAYER, entries).saved for entries in (0, 507))
    assert small == pytest.approx(rate(1))
    assert large == pytest.approx(rate(5), rel=0.02), "5 requests for 507 entries"


def test_a_kind_that_nobody_knows_counts_as_an_open() -> None:
    assert payback({"mmap": 3.0}, HALF_LIFE, LAYER).saved == payback({"open": 3.0}, HALF_LIFE, LAYER).saved > 0


def test_where_lookups_are_heard_an_open_stands_for_none() -> None:
    for prices, before, after in ((LAYER, 1, 0), (LAYER_WITH_DATA, 5, 4), (COPIED_UP, 1, 0)):
        heard = prices.where_lookups_are_heard()
        assert payback({"open": 1.0}, HALF_LIFE, prices).saved == pytest.approx(rate(before))
        assert payback({"open": 1.0}, HALF_LIFE, heard).saved == pytest.approx(rate(after))
        assert payback({"miss": 1.0}, HALF_LIFE, heard) == payback({"miss": 1.0}, HALF_LIFE, prices)


def test_what_it_costs_is_what_was_measured() -> None:
    """10,527 entries in 200 directories, or 10,728 in some 650."""

    def cost(prices: Prices, entries: int, directories: int) -> float:
        return Estimate(prices, HALF_LIFE).of(Size(entries, directories)).cost / entries

    assert 6.64 <= cost(COPIED_UP, 10_527, 200) <= 6.64 * 1.15
    assert 1.74 <= cost(LAYER, 10_728, 650) <= 1.74 * 1.5
    assert 5.60 <= cost(LAYER_WITH_DATA, 10_968, 650) <= 5.60 * 1.2


def test_a_promotion_that_makes_things_dearer_never_pays() -> None:
    worth = payback({"found": 100.0, "miss": 99.0}, HALF_LIFE, COPIED_UP)
    assert worth.saved < 0
    assert worth.seconds == math.inf
    assert payback({}, HALF_LIFE, LAYER).seconds == math.inf


def test_directories_that_are_promoted_together_pay_together() -> None:
    estimate = Estimate(LAYER, HALF_LIFE)
    estimate.add({"miss": 10.0}, 100)
    estimate.add({"found": 5.0}, 50)
    worth = estimate.of(Size(150, 2))
    assert worth.saved == pytest.approx(rate(15))
    assert worth.cost == 150 + 2 * 25
    assert worth.seconds == pytest.approx(200 / rate(15))


def test_who_pays_back_soonest_is_first_and_who_never_does_last() -> None:
    found = {
        b"never, and makes it worse": Payback(-1.0, 10),
        b"large": Payback(2.0, 1000),
        b"as good, and saves more": Payback(4.0, 40),
        b"as good": Payback(2.0, 20),
        b"never": Payback(0.0, 10),
        b"soon": Payback(1.0, 5),
    }
    assert by_payback(found.items()) == [
        b"soon", b"as good, and saves more", b"as good", b"large", b"never", b"never, and makes it worse",
    ]  # fmt: skip


@pytest.mark.parametrize("seed", range(10))
def test_no_other_order_asks_the_server_less_while_some_still_wait(seed: int) -> None:
    rng = random.Random(seed)
    waiting = {b"%d" % number: Payback(rng.uniform(0.1, 5), rng.uniform(10, 500)) for number in range(6)}

    def asked_meanwhile(order: tuple[bytes, ...]) -> float:
        at = total = 0.0
        for path in order:
            at += waiting[path].cost  # a promotion takes as long as its requests
            total += waiting[path].saved * at
        return total

    best = min(asked_meanwhile(order) for order in permutations(waiting))
    assert asked_meanwhile(tuple(by_payback(waiting.items()))) == pytest.approx(best)


def test_a_distant_server_is_worth_more_and_one_that_nobody_measured_is_near() -> None:
    worth = Payback(2.0, 100)
    assert waiting_saved(worth, 0.1) == pytest.approx(0.2)
    assert waiting_saved(worth, 0.0002) < waiting_saved(worth, None) < waiting_saved(worth, 0.1)


def test_each_backend_says_its_own() -> None:
    overlay = described(b"redirect_dir=on,metacopy=on")
    for backend, prices in (
        (OpaqueBackend, COPIED_UP), (LayerBackend, LAYER), (PrimeBackend, PRIMED), (ObserveBackend, LAYER),
    ):  # fmt: skip
        assert backend(overlay, scratch=b".promoterd").prices(with_data=False) is prices
    assert LayerBackend(overlay, scratch=b".promoterd").prices(with_data=True) is LAYER_WITH_DATA
