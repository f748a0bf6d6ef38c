"""The loops of one mount, in this process, on a real overlay with a real source of heat."""

import asyncio
import errno
import os
import threading
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from promoterd import worker as worker_module
from promoterd.heat.base import MountView
from promoterd.heat.inotify import InotifySource
from promoterd.heat.tracker import HeatTracker
from promoterd.metrics import Metrics
from promoterd.worker import Worker
from support.mounts import taken
from support.overlays import MountedOverlay
from support.trees import files

MakeOverlay = Callable[..., MountedOverlay]


@contextmanager
def working(
    mounted: MountedOverlay, kind: type[InotifySource] = InotifySource
) -> Iterator[tuple[Worker, InotifySource, Metrics]]:
    metrics = Metrics()
    with taken(mounted, heat={"threshold": 1e9}, metrics=metrics) as mount:
        worker, overlay, policy = Worker(mount, HeatTracker(60.0)), mount.overlay, mount.policy
        layers = tuple(layer for layer in (overlay.upper, *overlay.lowers) if layer is not None)
        source = kind(
            MountView(overlay.mountpoint, overlay.device, policy.may_promote, policy.may_promote_below, layers), worker
        )
        source.start()
        mount.disarm, mount.rearm = source.disarm, source.rearm
        try:
            yield worker, source, metrics
        finally:
            source.close()


def run(worker: Worker, source: InotifySource, what: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """While the worker works."""

    async def both() -> None:
        work = asyncio.create_task(worker.run(source, rebuild=False))
        try:
            await what()
        finally:
            work.cancel()
            await asyncio.wait({work})

    asyncio.run(both())


async def until(what: Callable[[], bool], patience: float = 5.0) -> None:
    deadline = time.monotonic() + patience
    while not what():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)


def test_after_an_overflow_everything_is_reconsidered(make_overlay: MakeOverlay) -> None:
    mounted = make_overlay({"app": {"lib": files(2), "bin": files(2)}})
    with working(mounted) as (worker, source, metrics):

        async def overflow() -> None:
            await until(lambda: source.stats().armed == 3)
            # made on the server, in a directory that is not said to grow: nothing tells of it
            os.makedirs(mounted.on_server("app/new/deep"))
            mounted.cool()
            await asyncio.sleep(0.2)
            assert source.stats().armed == 3
            before = set(source.paths())
            worker.overflowed()
            await until(lambda: source.stats().armed == 5)
            assert set(source.paths()) - before == {b"app/new", b"app/new/deep"}
            os.listdir(mounted.at("app/lib"))
            await until(lambda: worker.tracker.heat(b"app/lib", time.time()) > 0)

        run(worker, source, overflow)
        name = os.fsdecode(mounted.mountpoint)
        assert metrics.registry.get_sample_value("promoterd_heat_overflows_total", {"mount": name}) == 1


def test_what_vanishes_is_forgotten(make_overlay: MakeOverlay) -> None:
    mounted = make_overlay({"app": {"lib": files(2)}})
    with working(mounted) as (worker, source, _):

        async def vanish() -> None:
            await until(lambda: source.stats().armed == 2)
            os.mkdir(mounted.at("app/made"))
            await until(lambda: b"app/made" in source.paths())
            os.listdir(mounted.at("app/made"))
            await until(lambda: b"app/made" in worker.tracker)
            os.rmdir(mounted.at("app/made"))
            await until(lambda: b"app/made" not in worker.tracker)
            assert b"app/made" not in source.paths()

        run(worker, source, vanish)


def test_what_is_wanted_and_gone_is_tried_once(make_overlay: MakeOverlay) -> None:
    mounted = make_overlay({"app": {"lib": files(2)}})
    with working(mounted) as (worker, source, metrics):
        name = os.fsdecode(mounted.mountpoint)

        def gone() -> float:
            labels = {"mount": name, "outcome": "gone"}
            return metrics.registry.get_sample_value("promoterd_promotions_total", labels) or 0.0

        async def want() -> None:
            await until(lambda: source.stats().armed == 2)
            worker.wanted.add(b"app/other")
            worker.look()
            await until(lambda: gone() == 1)
            await until(lambda: not worker.wanted)
            worker.look()
            await asyncio.sleep(0.3)
            assert gone() == 1
            assert worker.mount.book.get(b"app/other") is None

        run(worker, source, want)


def test_what_is_worked_on_is_not_heated(make_overlay: MakeOverlay) -> None:
    mounted = make_overlay({"app": {"lib": files(2)}})
    with working(mounted) as (worker, _, _metrics):
        worker.mount.busy.add(b"app/lib")
        worker.touched(b"app/lib", 5.0, "open")
        worker.touched(b"app", 5.0, "open")
        worker.take_in()
        assert b"app/lib" not in worker.tracker
        assert b"app" in worker.tracker


@pytest.mark.parametrize("ticks", range(6))
def test_a_loop_that_is_woken_as_it_is_cancelled_ends(make_overlay: MakeOverlay, ticks: int) -> None:
    mounted = make_overlay({"app": {"lib": files(2)}})
    with working(mounted) as (worker, source, _):

        async def woken_and_cancelled() -> None:
            work = asyncio.create_task(worker.run(source, rebuild=False))
            await until(lambda: source.stats().armed == 2)
            await asyncio.sleep(0.2)
            worker.look()
            worker.appeared(b"app")
            for _ in range(ticks):
                await asyncio.sleep(0)
            work.cancel()
            done, _ = await asyncio.wait({work}, timeout=3)
            still = [task.get_stack() for task in asyncio.all_tasks() if task is not asyncio.current_task()]
            for task in asyncio.all_tasks() - {asyncio.current_task()}:
                task.cancel()
            assert done, still

        asyncio.run(woken_and_cancelled())


class Unsure(InotifySource):
    """Has one directory to be confirmed, and a look at it that takes as long as the test says."""

    def __init__(self, view: MountView, sink: Worker) -> None:
        super().__init__(view, sink)
        self.confirmed: list[list[bytes]] = []
        self.drained = 0
        self.answer = threading.Event()

    def drain(self) -> int:
        self.drained += 1
        return super().drain()

    def unsure(self) -> list[bytes]:
        return [b"app/lib"]

    def confirm(self, paths: Iterable[bytes]) -> None:
        self.confirmed.append(list(paths))
        if len(self.confirmed) == 1:
            raise OSError(errno.EIO, "Input/output error")
        self.answer.wait(30)


def test_what_is_unsure_is_confirmed_and_nothing_waits_for_that(
    make_overlay: MakeOverlay, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_module, "DRAIN_EVERY", 0.02)
    with working(make_overlay({"app": {"lib": files(2)}}), Unsure) as (worker, source, _):
        assert isinstance(source, Unsure)

        async def confirm() -> None:
            await until(lambda: len(source.confirmed) == 2)
            before = source.drained
            await until(lambda: source.drained > before + 5)
            assert source.confirmed == [[b"app/lib"]] * 2, "not another one while it lasts"
            source.answer.set()
            await until(lambda: len(source.confirmed) > 2)

        run(worker, source, confirm)
