"""What begins with the daemon waits for this machine's moment, on NFS; what is hot does not."""

import asyncio
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial

import pytest

from promoterd.adapting import Adapter, portion
from promoterd.explain import explain
from promoterd.finding import Finder
from promoterd.heat.tracker import HeatTracker
from promoterd.mounted import Mounted
from promoterd.opening import shared_out
from promoterd.overlay import rpcstats
from promoterd.overlay.rpcstats import Calls, Counted
from promoterd.promotion import promote
from promoterd.rechecking import Rechecker
from promoterd.terms import terms_for
from promoterd.worker import Worker
from support.mounts import taken
from support.overlays import MountedOverlay
from support.trees import files

MakeOverlay = Callable[..., MountedOverlay]
RULES = [{"path": "app/lib", "promote": "always", "recheck": "1s"}, {"path": "**"}]


@contextmanager
def on_nfs(mounted: MountedOverlay) -> Iterator[tuple[Mounted, float]]:
    """In work, as if a lower layer were on NFS; and the seconds until this machine's moment for ``promote: always``."""
    with taken(mounted, RULES, limits={"start_spread": "1h", "adaptive": True}) as mount:
        mount.on_nfs, mount.host = frozenset({b"/nfs"}), b"node 7"
        yield mount, mount.begins_at(b"always") - mount.opened_at


def held_below(directory: bytes) -> list[bytes]:
    """What this process has open there."""
    found = []
    for number in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):
            found.append(os.fsencode(os.readlink(f"/proc/self/fd/{number}")))
    return [path for path in found if path == directory or path.startswith(directory + b"/")]


def test_always_waits_and_heat_does_not(make_overlay: MakeOverlay) -> None:
    mounted = make_overlay({"app": {"lib": files(3), "bin": files(3)}})
    with on_nfs(mounted) as (mount, delay):
        assert 60 < delay < 3600
        worker = Worker(mount, HeatTracker(600.0))
        now = time.time()
        worker._finder.always.add(b"app/lib")
        worker.tracker.add(b"app/bin", 100.0, now)
        assert worker._ranked(worker.ranking.hot(now)) == [b"app/bin"]
        mount.clock = lambda: now + delay
        assert worker._ranked(worker.ranking.hot(now)) == [b"app/bin", b"app/lib"]
        mount.clock = time.time
        assert "limits.start_spread: this machine begins" in asyncio.run(explain(mount, b"app/lib", 0.0))["blocked_by"]
        mount.on_nfs = frozenset()
        assert mount.begins_at(b"always") == mount.opened_at


def test_what_is_overdue_at_the_start_is_rechecked_at_its_moment(make_overlay: MakeOverlay) -> None:
    mounted = make_overlay({"app": {"lib": files(3)}})
    with on_nfs(mounted) as (mount, _):
        asyncio.run(promote(mount, b"app/lib"))
        rechecker = Rechecker(mount, Finder(mount, lambda: None), lambda: None)
        checked = mount.book.get(b"app/lib")
        assert checked is not None
        moment = mount.begins_at(b"recheck/app/lib")
        assert moment > mount.opened_at + 60
        asyncio.run(rechecker._look(moment - 1))
        assert mount.book.get(b"app/lib") == checked, "a second is long over, and still"
        asyncio.run(rechecker._look(moment))
        found = mount.book.get(b"app/lib")
        assert found is not None
        assert (found.last_checked or 0) > (checked.last_checked or 0)


def test_batches_shrink_with_the_rate(make_overlay: MakeOverlay) -> None:
    mounted = make_overlay({"app": {"lib": files(30)}})
    with on_nfs(mounted) as (mount, _):
        before = mount.backend.batch
        adapter = Adapter(mount)
        assert mount.pace.rate == 50
        assert mount.backend.batch == portion(50, 6.0, mount.backend.lanes) == 1
        sizes: list[int] = []
        asyncio.run(promote(mount, b"app/lib", progress=lambda done, _of: sizes.append(done)))
        assert len(sizes) >= 15, "two lanes, of one entry each"
        assert mount.pace.reckoned >= 30 * 6
        assert adapter.limiter is not None
        adapter.limiter.rate = 1e9
        adapter._apply()
        assert mount.backend.batch == before


def test_a_clock_that_is_set_back_leaves_the_rate_alone(
    make_overlay: MakeOverlay, monkeypatch: pytest.MonkeyPatch
) -> None:
    mounted = make_overlay({"app": {"lib": files(2)}})
    counted = [0]

    def now(_mounts: object) -> Counted:
        counted[0] += 100
        return {(b"/nfs", "GETATTR"): Calls(counted[0], counted[0], 0, 100 * counted[0], 0, counted[0])}

    monkeypatch.setattr(rpcstats, "now", now)
    with on_nfs(mounted) as (mount, _):
        adapter = Adapter(mount)
        began = mount.clock()
        for moment in (began, began + 1, began - 86_400, began - 86_399):
            mount.clock = partial(float, moment)
            mount.pace.reckoned += 100
            adapter.look()
            assert mount.pace.rate is not None
            assert mount.pace.rate >= 50


def test_threads_and_lanes_together_are_as_many_as_may_be_outstanding() -> None:
    for concurrency in range(1, 10):
        for outstanding in range(1, 60):
            workers, lanes = shared_out(concurrency, outstanding)
            promoting = min(concurrency, workers)
            assert workers >= 1
            assert lanes >= 1
            assert workers + promoting * (lanes - 1) <= outstanding
    assert shared_out(2, 6) == (4, 2)
    assert shared_out(2, 4) == (4, 1)
    assert shared_out(2, 1) == (1, 1)


def test_nothing_is_open_on_the_mount_while_a_plan_waits_for_the_pace(make_overlay: MakeOverlay) -> None:
    """So that it can be unmounted (R16)."""
    mounted = make_overlay({"app": {"lib": {f"d{number:02}": files(2) for number in range(12)}}})
    with taken(mounted) as mount:
        mount.pace.change(25.0)
        terms = terms_for(mount.policy, b"app/lib", time.time_ns(), mount.book.is_restless)
        lower = mounted.layers[0]
        open_now: list[int] = []

        async def plan() -> None:
            planning = asyncio.create_task(mount.with_layers(partial(mount.backend.plan, path=b"app/lib", terms=terms)))
            while not planning.done():
                await asyncio.sleep(0.01)
                open_now.append(len(held_below(mounted.mountpoint) + held_below(lower)))
            assert len((await planning).directories) == 13

        asyncio.run(plan())
        assert mount.pace.waited > 0.5
        assert open_now.count(0) > 0.8 * len(open_now), "but for the moments in which it works"
        assert mount.pool.stuck() == []
