"""The order of promotions on one mount, and what is not worth one, with the daemon's own parts and no loop."""

import asyncio
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from promoterd.explain import explain
from promoterd.heat.tracker import HeatTracker
from promoterd.mounted import Mounted
from promoterd.payback import Payback
from promoterd.promotion import RETRY_POSTPONED, Outcome, promote
from promoterd.ranking import shown
from promoterd.states import State
from promoterd.worker import Worker
from support.mounts import taken
from support.overlays import MountedOverlay
from support.trees import files

MakeOverlay = Callable[..., MountedOverlay]
TREE = {"small": files(3), "large": files(400), "found": files(3)}


@contextmanager
def ranking(mounted: MountedOverlay, **heat: Any) -> Iterator[tuple[Mounted, Worker]]:
    with taken(mounted, heat={"threshold": 4, **heat}) as mount:
        yield mount, Worker(mount, HeatTracker(600.0))


def test_the_queue_goes_by_payback_and_not_by_heat(make_overlay: MakeOverlay) -> None:
    with ranking(make_overlay(TREE)) as (mount, worker):
        now = mount.clock()
        for path, heat, kind in (
            (b"large", 50.0, "miss"),
            (b"small", 5.0, "miss"),
            (b"found", 90.0, "found"),
            (b"cold", 3.0, "miss"),
        ):
            worker.tracker.add(path, heat, now, kind)
        mount.book.move(b"large", State.HOT, now=now, entries=4000)
        mount.book.move(b"small", State.HOT, now=now, entries=3)
        found = worker.ranking.hot(now)
        assert list(found) == [b"small", b"large", b"found"], "with `opaque`, names that are found become dearer"
        assert found[b"large"].cost == 4000 * 7 + 25
        assert found[b"found"].saved < 0
        assert list(worker._next()) == [b"small", b"large"], "two at once"


def test_what_would_not_pay_is_postponed_and_said_and_pays_when_it_is_hotter(make_overlay: MakeOverlay) -> None:
    mounted = make_overlay(TREE)
    with ranking(mounted, payback="1d") as (mount, worker):
        clock, ahead = mount.clock, [0.0]
        mount.clock = lambda: clock() + ahead[0]
        worker.tracker.add(b"large", 10.0, mount.clock(), "miss")

        def attempt() -> Outcome:
            assert list(worker._next()) == [b"large"]
            return asyncio.run(promote(mount, b"large", why_not=worker.ranking.why_not)).outcome

        assert attempt() is Outcome.POSTPONED
        record = mount.book.get(b"large")
        assert record is not None
        assert (record.state, record.entries) == (State.HOT, 400)
        reason = record.reason or ""
        assert reason.startswith("it would pay back in 2d")
        assert reason.endswith("(heat.payback allows 1d)")
        assert not os.path.exists(mounted.in_upper("large"))
        assert asyncio.run(explain(mount, b"large", 10.0))["blocked_by"] == reason
        assert list(worker._next()) == []

        ahead[0] += RETRY_POSTPONED + 1
        worker.tracker.add(b"large", 40.0, mount.clock(), "miss")
        assert attempt() is Outcome.MARKED
        assert mount.book.state(b"large") is State.COMPLETE


def test_what_was_postponed_and_cools_is_cold(make_overlay: MakeOverlay) -> None:
    with ranking(make_overlay(TREE), payback="1d") as (mount, worker):
        clock, ahead = mount.clock, [0.0]
        mount.clock = lambda: clock() + ahead[0]
        worker.tracker.add(b"large", 10.0, mount.clock(), "miss")
        asyncio.run(promote(mount, b"large", why_not=worker.ranking.why_not))
        ahead[0] += RETRY_POSTPONED - 5
        worker._next()
        assert mount.book.state(b"large") is State.HOT
        ahead[0] += 3600
        worker._next()
        assert mount.book.state(b"large") is State.COLD


def test_of_very_many_the_hottest_are_ranked_and_not_all_the_time(
    make_overlay: MakeOverlay, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ranking(make_overlay(TREE)) as (mount, worker):
        now = mount.clock()
        monkeypatch.setattr("promoterd.ranking.RANKED_MOST", 2000)
        for number in range(3000):
            worker.tracker.add(b"large/%04d" % number, 5.0 + number, now, "miss")
        found = worker.ranking.queue(now)
        assert min(found) == b"large/1000"
        assert len(found) == 2000
        worker.tracker.add(b"small", 1e6, now, "miss")
        monkeypatch.setattr("promoterd.ranking._TIMES_AS_LONG", 1e9)
        monkeypatch.setattr("promoterd.ranking._QUICK", 0.0)
        assert worker.ranking.queue(now) is found
        assert b"small" in worker.ranking.hot(now)
        monkeypatch.setattr("promoterd.ranking._TIMES_AS_LONG", 0.0)
        assert b"small" in worker.ranking.queue(now)


def test_lookups_that_are_heard_make_opens_worth_nothing(make_overlay: MakeOverlay) -> None:
    with ranking(make_overlay(TREE)) as (mount, worker):
        now = mount.clock()
        worker.tracker.add(b"small", 5.0, now, "open")
        assert worker.ranking.payback(b"small", now).saved > 0
        worker.touched(b"large", 1, "miss")
        worker.touched(b"large", 1, "miss")
        assert worker.ranking.payback(b"small", now).saved == 0


def test_by_hand_nobody_asks_what_it_costs(make_overlay: MakeOverlay) -> None:
    with ranking(make_overlay(TREE), payback="1s") as (mount, _):
        assert asyncio.run(promote(mount, b"large")).outcome is Outcome.MARKED


def test_a_closure_is_worth_what_its_directories_are(make_overlay: MakeOverlay) -> None:
    mounted = make_overlay({"app": {"lib": files(100)}})
    with ranking(mounted, payback="1d") as (mount, worker):
        worker.tracker.add(b"app", 3.0, mount.clock(), "list")
        worker.tracker.add(b"app/lib", 3.0, mount.clock(), "miss")
        assert asyncio.run(promote(mount, b"app", why_not=worker.ranking.why_not)).outcome is Outcome.POSTPONED
        worker.tracker.add(b"app/lib", 10.0, mount.clock(), "miss")
        assert asyncio.run(promote(mount, b"app", why_not=worker.ranking.why_not)).outcome is Outcome.MARKED


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "in 1s"), (59, "in 59s"), (3725, "in 1h2m"), (200_000, "in 2d8h"), (float("inf"), "never"), (1e12, "never")],
)
def test_times_are_told_in_few_words(seconds: float, text: str) -> None:
    saved = 0.0 if seconds == float("inf") else 1.0
    assert shown(Payback(saved, seconds if saved else 1.0)) == text
