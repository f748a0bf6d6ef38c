"""Keeping hot directories known, in this process: when they are read again, and when they are let go."""

import asyncio
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from promoterd.errors import TripWire
from promoterd.explain import explain
from promoterd.heat.tracker import HeatTracker
from promoterd.mounted import Mounted
from promoterd.priming import let_go
from promoterd.promotion import Outcome, promote
from promoterd.queueing import is_due
from promoterd.states import State
from promoterd.worker import Worker
from support.mounts import taken
from support.overlays import MountedOverlay
from support.trees import files

MakeOverlay = Callable[..., MountedOverlay]
LIB = b"app/lib"
EVERY = 45.0
"""Seconds, where no NFS option says anything else."""


class Clock:
    """The real one, moved on by hand."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead


@contextmanager
def priming(mounted: MountedOverlay, **keys: Any) -> Iterator[tuple[Mounted, Clock]]:
    clock = Clock()
    with taken(mounted, backend="prime", **keys) as mount:
        mount.clock = clock
        yield mount, clock


@pytest.fixture
def mounted(make_overlay: MakeOverlay) -> MountedOverlay:
    return make_overlay({"app": {"lib": files(30), "bin": files(2)}})


def test_its_outcome_and_its_state(mounted: MountedOverlay) -> None:
    with priming(mounted) as (mount, clock):
        seen = []
        done = asyncio.run(promote(mount, LIB, progress=lambda at, of: seen.append((at, of))))
        assert (done.outcome, done.directories, done.entries) == (Outcome.PRIMED, (LIB,), 30)
        assert seen[-1] == (30, 30)
        record = mount.book.get(LIB)
        assert record is not None
        assert (record.state, record.entries, record.backend) == (State.PRIMED, 30, "prime")
        assert record.reason == "its entries are read anew every 45s"
        assert record.retry_at is not None
        assert EVERY - 5 < record.retry_at - clock() <= EVERY
        assert not mount.book.is_marked(LIB)
        assert not is_due(record, clock())
        clock.ahead = EVERY
        assert is_due(record, clock())
        assert mount.upper_ledger.unfinished() == []


def test_it_is_read_again_and_stays_primed_since_the_first_time(mounted: MountedOverlay) -> None:
    with priming(mounted) as (mount, clock):
        asyncio.run(promote(mount, LIB))
        first = mount.book.get(LIB)
        clock.ahead = EVERY
        asyncio.run(promote(mount, LIB))
        second = mount.book.get(LIB)
        assert first is not None
        assert second is not None
        assert first.retry_at is not None
        assert second.retry_at is not None
        assert second.since == first.since
        assert second.retry_at >= first.retry_at + EVERY
        assert mount.primed == {LIB: 2}


def test_what_nobody_wants_any_more_is_let_go_when_it_is_due(mounted: MountedOverlay) -> None:
    with priming(mounted) as (mount, clock):
        for path in (LIB, b"app/bin"):
            asyncio.run(promote(mount, path))
        let_go(mount, [], clock())
        assert mount.book.state(LIB) is State.PRIMED, "what it knows it knows until then"
        clock.ahead = EVERY
        let_go(mount, [b"app/bin"], clock())
        assert mount.book.state(LIB) is State.COLD
        assert mount.book.state(b"app/bin") is State.PRIMED
        assert mount.primed == {b"app/bin": 1}


def test_one_that_takes_longer_than_it_lasts_is_refused(mounted: MountedOverlay) -> None:
    with priming(mounted) as (mount, clock):

        def dawdle(*_: int) -> None:
            clock.ahead += EVERY + 1

        done = asyncio.run(promote(mount, LIB, progress=dawdle))
        assert done.outcome is Outcome.REFUSED
        assert "30 entries" in (done.reason or "")
        assert "actimeo" in (done.hint or "")
        assert mount.book.state(LIB) is State.REFUSED
        assert mount.primed == {}


def test_a_pause_stops_it(mounted: MountedOverlay) -> None:
    with priming(mounted) as (mount, clock):
        asyncio.run(promote(mount, LIB))
        mount.pause("paused by hand")
        with pytest.raises(TripWire):
            asyncio.run(promote(mount, LIB))
        worker = Worker(mount, HeatTracker(60.0))
        worker.tracker.add(LIB, 100.0, clock())
        assert list(worker._next()) == []
        assert mount.book.state(LIB) is State.PRIMED
        clock.ahead = EVERY
        assert list(worker._next()) == []
        assert mount.book.state(LIB) is State.COLD, "nothing is kept known of it any more"


def test_what_is_hot_is_next_when_it_is_due_and_is_no_backlog(mounted: MountedOverlay) -> None:
    with priming(mounted, heat={"half_life": "1h"}) as (mount, clock):
        worker = Worker(mount, HeatTracker(3600.0))
        worker.tracker.add(LIB, 100.0, clock())
        assert list(worker._next()) == [LIB]
        asyncio.run(promote(mount, LIB))
        assert list(worker._next()) == []
        clock.ahead = EVERY
        assert list(worker._next()) == [LIB]
        assert mount.book.state(LIB) is State.PRIMED
        clock.ahead = 20 * 3600.0
        assert list(worker._next()) == []
        assert mount.book.state(LIB) is State.COLD


def test_a_directory_that_vanished_from_the_server_is_refused(mounted: MountedOverlay) -> None:
    with priming(mounted) as (mount, _):
        asyncio.run(promote(mount, LIB))
        shutil.rmtree(mounted.on_server(LIB))
        assert asyncio.run(promote(mount, LIB)).outcome is Outcome.REFUSED
        assert mount.book.state(LIB) is State.REFUSED


def test_a_mount_without_an_upper_layer(make_overlay: MakeOverlay) -> None:
    mounted = make_overlay([{"app": {"lib": files(3)}}, {}], mount=False)
    lowers = b":".join(mounted.layers)
    subprocess.run(["mount", "-t", "overlay", "overlay", "-o", b"lowerdir=" + lowers, mounted.mountpoint], check=True)
    with priming(mounted) as (mount, clock):
        assert asyncio.run(promote(mount, LIB)).outcome is Outcome.PRIMED
        explained = asyncio.run(explain(mount, LIB, 100.0))
        assert (explained["state"], explained["entries"], explained["blocked_by"]) == ("primed", 3, None)
        worker = Worker(mount, HeatTracker(60.0))
        clock.ahead = EVERY
        worker.tracker.add(LIB, 100.0, clock())
        assert list(worker._next()) == [LIB], "a read-only overlay is no obstacle"
