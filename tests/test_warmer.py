"""What a mount's lists offer to the queue, on a real overlay, without the daemon's other loops."""

import asyncio
import os
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from promoterd import warmer as module
from promoterd.errors import TripWire
from promoterd.heatlist import HeatList, Uses, write_list
from promoterd.mounted import Mounted
from promoterd.policy import WarmPolicy
from promoterd.promotion import promote
from promoterd.states import State
from promoterd.warmer import AHEAD, Lists, Warmer, read
from promoterd.warming import Warmed, Warmth, warm, warm_one
from support.mounts import taken
from support.overlays import MountedOverlay
from support.trees import files
from test_worker import until

MakeOverlay = Callable[..., MountedOverlay]
TREE = {"app": {f"d{number:03}": files(1) for number in range(100)}}
ALL = [b"app/d%03d" % number for number in range(100)]


def write(mounted: MountedOverlay, file: Path, *paths: bytes, first: int = 1000) -> None:
    heat = HeatList(1)
    for number, path in enumerate(paths):
        heat.add(mounted.mountpoint, path, Uses(misses=first - number))
    write_list(heat, str(file))


@contextmanager
def warming(mounted: MountedOverlay, lists: str, **keys: Any) -> Iterator[tuple[Mounted, Warmer]]:
    with taken(mounted, warm=[lists], **keys) as mount:
        yield mount, Warmer(mount, lambda: None)


def run(warmer: Warmer, what: Callable[[], Coroutine[Any, Any, None]]) -> None:
    async def both() -> None:
        work = asyncio.create_task(warmer.run())
        try:
            await what()
        finally:
            work.cancel()
            await asyncio.wait({work})

    asyncio.run(both())


async def promote_all(mount: Mounted, warmer: Warmer) -> list[bytes]:
    """What the daemon's queue does with what is offered; the order in which that was."""
    order = []
    while paths := warmer.candidates():
        for path in paths:
            await promote(mount, path)
            order.append(path)
        await asyncio.sleep(0.05)
        await until(lambda: bool(warmer.candidates()) or not warmer._unseen)
    return order


def test_a_few_at_a_time_and_in_order(make_overlay: MakeOverlay, tmp_path: Path) -> None:
    mounted = make_overlay(TREE)
    write(mounted, tmp_path / "list.yaml", *ALL)
    with warming(mounted, f"{tmp_path}/list.yaml") as (mount, warmer):

        async def look() -> None:
            await until(lambda: len(warmer.candidates()) == AHEAD)
            assert warmer.candidates() == ALL[:AHEAD]
            assert all(map(warmer.wants, ALL[:AHEAD]))
            assert not warmer.wants(ALL[AHEAD])
            assert await promote_all(mount, warmer) == ALL
            assert not any(map(warmer.wants, ALL))

        run(warmer, look)
        status = warmer.status()
        assert status is not None
        assert (status["complete"], status["waiting"]) == (100, 0)


def test_each_machine_begins_at_its_moment(make_overlay: MakeOverlay, tmp_path: Path) -> None:
    mounted = make_overlay(TREE, counting=True)
    write(mounted, tmp_path / "list.yaml", ALL[0], ALL[1])
    limits = {"start_spread": "1h"}
    with warming(mounted, f"{tmp_path}/list.yaml", limits=limits) as (mount, warmer):
        mount.on_nfs, mount.host = frozenset({b"/nfs"}), b"node 7"
        moment = mount.begins_at(b"warm")
        assert moment > mount.opened_at + 60

        async def look() -> None:
            await until(lambda: (warmer.status() or {})["directories"] == 2)
            mounted.reset()
            await asyncio.sleep(0.3)
            assert warmer.candidates() == []
            assert mounted.asked() == 0, "nor is the server asked whether they are there"
            assert (warmer.status() or {})["begins_at"] == moment
            mount.clock = lambda: moment
            warmer.reread()
            await until(lambda: warmer.candidates() == ALL[:2])
            assert (warmer.status() or {})["begins_at"] is None

        run(warmer, look)


def test_a_list_that_appears_and_changes(
    make_overlay: MakeOverlay, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LOOK_EVERY", 0.1)
    mounted = make_overlay(TREE)
    with warming(mounted, f"{tmp_path}/*.yaml") as (_, warmer):

        async def look() -> None:
            await until(lambda: bool(warmer._lists.problems))
            assert warmer.candidates() == []
            write(mounted, tmp_path / "one.yaml", ALL[1])
            await until(lambda: warmer.candidates() == [ALL[1]])
            write(mounted, tmp_path / "two.yaml", ALL[2], first=2000)
            await until(lambda: warmer.candidates() == [ALL[2], ALL[1]])
            os.unlink(tmp_path / "one.yaml")
            await until(lambda: warmer.candidates() == [ALL[2]])

        run(warmer, look)


def test_what_was_reopened_is_offered_again(
    make_overlay: MakeOverlay, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LOOK_EVERY", 0.1)
    mounted = make_overlay(TREE)
    write(mounted, tmp_path / "list.yaml", ALL[0])
    with warming(mounted, f"{tmp_path}/list.yaml") as (mount, warmer):

        async def look() -> None:
            await until(lambda: warmer.candidates() == [ALL[0]])
            await promote(mount, ALL[0])
            assert warmer.candidates() == []
            mount.book.forget([ALL[0]], reason="a test")
            await until(lambda: warmer.candidates() == [ALL[0]])

        run(warmer, look)


def test_what_failed_stands_aside_until_it_is_due(make_overlay: MakeOverlay, tmp_path: Path) -> None:
    mounted = make_overlay(TREE)
    write(mounted, tmp_path / "list.yaml", *ALL[:3])
    with warming(mounted, f"{tmp_path}/list.yaml") as (mount, warmer):

        async def look() -> None:
            await until(lambda: warmer.candidates() == ALL[:3])
            now = mount.clock()
            mount.book.move(ALL[0], State.HOT, now=now)
            mount.book.move(ALL[0], State.FAILED, now=now, reason="no luck", retry_at=now + 3600)
            assert warmer.candidates() == ALL[1:3]
            assert warmer.wants(ALL[0])
            mount.book.move(ALL[0], State.FAILED, now=now, reason="no luck", retry_at=now)
            assert warmer.candidates() == [*ALL[1:3], ALL[0]]

        run(warmer, look)


def test_that_its_heat_alone_was_not_worth_it_does_not_hold_it(make_overlay: MakeOverlay, tmp_path: Path) -> None:
    mounted = make_overlay(TREE)
    write(mounted, tmp_path / "list.yaml", ALL[0])
    with warming(mounted, f"{tmp_path}/list.yaml") as (mount, warmer):
        now = mount.clock()
        mount.book.move(ALL[0], State.HOT, now=now, reason="it would never pay back", retry_at=now + 3600)

        async def look() -> None:
            await until(lambda: warmer.candidates() == [ALL[0]])
            record = mount.book.get(ALL[0])
            assert record is not None
            assert record.retry_at is None

        run(warmer, look)


def test_lists_are_read_again_only_when_something_has_changed(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("nothing")
    policy = WarmPolicy(lists=[f"{tmp_path}/*.yaml", f"{tmp_path}/none.yaml"], min_count=3)
    first = read(policy, b"/m", Lists())
    assert [problem.partition(": ")[0] for problem in first.problems] == [
        f"{tmp_path}/bad.yaml:1",
        f"{tmp_path}/none.yaml cannot be read",
    ]
    assert read(policy, b"/m", first) is first
    heat = HeatList(
        4, {b"/m": {b"a": Uses(misses=3), b"b": Uses(misses=2), b"c": Uses(opens=9)}, b"/n": {b"d": Uses(9)}}
    )
    write_list(heat, f"{tmp_path}/none.yaml")
    second = read(policy, b"/m", first)
    assert second.wanted == (b"c", b"a")
    assert second.runs == 4, "it is named twice, and read once"
    assert len(second.problems) == 1
    (tmp_path / "bad.yaml").unlink()
    assert read(policy, b"/m", second).problems == ()


def test_a_request_waits_no_longer_than_its_time_for_the_budget_or_for_others(make_overlay: MakeOverlay) -> None:
    mounted = make_overlay(TREE)
    with taken(mounted, limits={"request_budget": {"requests": 5, "window": "1h"}, "concurrency": 2}) as mount:
        told: list[Warmed] = []

        async def ask() -> None:
            async with asyncio.timeout(20):
                await warm(mount, ALL[:4], told.append, seconds=0.3)

        mount.pace.owe(5)
        asyncio.run(ask())
        assert {one.warmth for one in told} == {Warmth.LEFT}
        mount.pause("by hand")
        with pytest.raises(TripWire):
            asyncio.run(ask())
        mount.resume()
        mount.allowance = None
        mount.busy.update(ALL[:2])
        told.clear()
        asyncio.run(ask())
        assert [one.warmth for one in told[:2]] == [Warmth.LEFT] * 2
        mount.stopping = True
        told.clear()
        asyncio.run(ask())
        assert told == []
        assert asyncio.run(asyncio.wait_for(warm_one(mount, ALL[0]), 20)).warmth is Warmth.LEFT
