"""A clock that is set back while the daemon works, or before it starts again."""

import asyncio
import time
from collections.abc import Callable
from functools import partial

from promoterd.finding import Finder
from promoterd.heat.base import Kind
from promoterd.heat.tracker import HeatTracker
from promoterd.ledger import HeatRecord
from promoterd.promotion import promote
from promoterd.queueing import is_due
from promoterd.rechecking import Rechecker
from promoterd.remembering import Remembering
from promoterd.states import State
from promoterd.worker import Worker
from support.mounts import taken
from support.overlays import MountedOverlay
from support.trees import files

MakeOverlay = Callable[..., MountedOverlay]
TREE = {"app": {"lib": files(3), "bin": files(3)}}
LIB, BIN = b"app/lib", b"app/bin"
DAY = 86_400.0


def test_nothing_becomes_hot_and_what_is_used_does(make_overlay: MakeOverlay) -> None:
    with taken(make_overlay(TREE), heat={"threshold": 5, "half_life": "60s", "settle": "1s"}) as mount:
        began = time.time()

        def at(moment: float) -> None:
            mount.clock = partial(float, began + moment)

        at(0)
        worker = Worker(mount, HeatTracker(60.0))
        worker.touched(LIB, 40, Kind.OPEN)
        worker.take_in()
        at(600)
        worker.take_in()
        assert list(worker.ranking.hot(began + 600)) == []
        worker.touched(BIN, 8, Kind.LIST)
        worker.take_in()
        moment = mount.begins_at(b"warm")
        at(600 - DAY)
        worker._next()
        assert mount.begins_at(b"warm") == moment - DAY
        assert list(worker.ranking.hot(mount.clock())) == []
        at(604 - DAY)
        worker.take_in()
        assert list(worker.ranking.hot(mount.clock())) == [BIN], "what was held back before"
        worker.touched(LIB, 20, Kind.OPEN)
        worker.take_in()
        assert set(worker.ranking.hot(mount.clock())) == {LIB, BIN}
        at(1804 - DAY)
        worker.take_in()
        assert list(worker.ranking.hot(mount.clock())) == [], "and it cools"


def test_heat_that_was_saved_in_the_future(make_overlay: MakeOverlay) -> None:
    with taken(make_overlay(TREE)) as mount:
        tracker = HeatTracker(60.0)
        now = mount.clock()
        mount.upper_ledger.save_heat([HeatRecord(LIB, 20.0, now + DAY, Kind.OPEN)])
        asyncio.run(Remembering(mount, tracker).load())
        tracker.add(BIN, 20.0, mount.clock())
        assert tracker.heat(BIN, mount.clock()) > 19
        assert tracker.heat(LIB, mount.clock() + 600) < 1


def test_what_was_checked_in_the_future_is_checked_now(make_overlay: MakeOverlay) -> None:
    with taken(make_overlay(TREE)) as mount:
        asyncio.run(promote(mount, LIB))
        record = mount.book.get(LIB)
        assert record is not None
        now = mount.clock()
        mount.book.move(LIB, record.state, now=now, last_checked=now + DAY)
        asyncio.run(Rechecker(mount, Finder(mount, lambda: None), lambda: None)._look(now))
        checked = mount.book.get(LIB)
        assert checked is not None
        assert now - 1 < (checked.last_checked or 0.0) < now + 60


def test_what_failed_in_the_future_is_tried_again(make_overlay: MakeOverlay) -> None:
    with taken(make_overlay(TREE)) as mount:
        now = mount.clock()
        mount.book.move(LIB, State.HOT, now=now)
        mount.book.move(LIB, State.FAILED, now=now, retry_at=now + 3600)
        record = mount.book.get(LIB)
        assert not is_due(record, now)
        assert not is_due(record, now + 3599)
        assert is_due(record, now + 3600)
        assert is_due(record, now - DAY)
