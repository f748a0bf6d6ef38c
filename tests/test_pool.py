import asyncio
import contextvars
import gc
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
import weakref
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from promoterd.demo.lower import CountingLower
from promoterd.pool import Pool, PoolClosed, Throttle


class Gate:
    """A call that blocks a thread until the gate opens."""

    def __init__(self) -> None:
        self.entered = threading.Semaphore(0)
        self._open = threading.Event()

    def block(self, *_path: bytes) -> str:
        self.entered.release()
        assert self._open.wait(20)
        return "through"

    def open(self) -> None:
        self._open.set()


@pytest.fixture
def gate() -> Iterator[Gate]:
    made = Gate()
    yield made
    made.open()


async def until(condition: Callable[[], bool], patience: float = 5.0) -> None:
    deadline = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        await asyncio.sleep(0.005)


def run(main: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(20):
            await main()

    asyncio.run(bounded())


def test_results_errors_and_context_come_through() -> None:
    mount = contextvars.ContextVar("mount", default="none")

    async def main() -> None:
        pool = Pool("mnt", 2)
        assert await pool.run(divmod, 17, 5) == (3, 2)
        with pytest.raises(FileNotFoundError):
            await pool.run(os.stat, "/nowhere/at/all")
        mount.set("/mnt/app")
        assert await pool.run(mount.get) == "/mnt/app"
        with pytest.raises(RuntimeError, match="StopIteration"):
            await pool.run(next, iter(()))
        assert (pool.running, len(pool._waiting)) == (0, 0)
        pool.close()

    run(main)


def test_there_are_never_more_threads_than_workers_and_all_work_is_done() -> None:
    active, most, lock = 0, 0, threading.Lock()

    def work(number: int) -> int:
        nonlocal active, most
        with lock:
            active += 1
            most = max(most, active)
        time.sleep(0.005)
        with lock:
            active -= 1
        return number

    async def main() -> None:
        pool = Pool("mnt", 3)
        before = set(threading.enumerate())
        assert await asyncio.gather(*(pool.run(work, number) for number in range(60))) == list(range(60))
        assert most == 3
        ours = set(threading.enumerate()) - before
        assert len(ours) == 3
        pool.close()
        await until(lambda: not any(thread.is_alive() for thread in ours))

    run(main)


def test_a_thread_is_used_again_before_another_is_started() -> None:
    async def main() -> None:
        pool = Pool("mnt", 8)
        idents = set()
        for _ in range(20):
            idents.add(await pool.run(threading.get_ident))
            await until(lambda: pool._idle == 1)
        assert len(idents) == 1
        pool.close()

    run(main)


def test_stuck_calls_are_named_and_other_pools_go_on(gate: Gate) -> None:
    now = 100.0

    async def main() -> None:
        nonlocal now
        stuck, healthy = Pool("dead", 2, stuck_after=30.0, clock=lambda: now), Pool("alive", 1)
        first = asyncio.ensure_future(stuck.run(gate.block, b"opt/\xff"))
        await asyncio.to_thread(gate.entered.acquire)
        now += 10
        second = asyncio.ensure_future(stuck.run(gate.block, what="listing of /opt"))
        third = asyncio.ensure_future(stuck.run(os.getpid))
        await asyncio.to_thread(gate.entered.acquire)
        now += 20
        assert stuck.stuck() == [("Gate.block /opt/\\xff", 30.0)]
        now += 10
        assert stuck.stuck() == [("Gate.block /opt/\\xff", 40.0), ("listing of /opt", 30.0)]
        assert healthy.stuck() == []
        assert stuck.running == 2
        assert len(stuck._waiting) == 1
        assert await healthy.run(os.getpid) == os.getpid()
        assert not third.done()
        gate.open()
        assert [await first, await second] == ["through", "through"]
        assert await third == os.getpid()
        assert stuck.stuck() == []
        stuck.close()
        healthy.close()

    run(main)


def test_a_cancelled_awaiter_leaves_its_thread_alone_and_its_place_in_the_queue_to_others(gate: Gate) -> None:
    ran: list[str] = []

    async def main() -> None:
        pool = Pool("mnt", 1)
        blocked = asyncio.ensure_future(pool.run(gate.block))
        await asyncio.to_thread(gate.entered.acquire)
        dropped = [asyncio.ensure_future(pool.run(ran.append, "dropped")) for _ in range(5)]
        kept = asyncio.ensure_future(pool.run(ran.append, "kept"))
        await asyncio.sleep(0)
        assert len(pool._waiting) == 6
        for task in (blocked, *dropped):
            task.cancel()
        done = await asyncio.gather(blocked, *dropped, return_exceptions=True)
        assert all(isinstance(result, asyncio.CancelledError) for result in done)
        assert (pool.running, len(pool._waiting)) == (1, 1)
        gate.open()
        await kept
        assert ran == ["kept"]
        assert pool.running == 0
        pool.close()

    run(main)


def test_closing_joins_nothing_and_tells_everyone_who_waits(gate: Gate) -> None:
    async def main() -> None:
        pool = Pool("mnt", 1)
        waiting = [asyncio.ensure_future(pool.run(gate.block)) for _ in range(3)]
        await asyncio.to_thread(gate.entered.acquire)
        begun = time.monotonic()
        pool.close()
        results = await asyncio.gather(*waiting, return_exceptions=True)
        assert time.monotonic() - begun < 5
        assert [type(result) for result in results] == [PoolClosed] * 3
        with pytest.raises(PoolClosed):
            await pool.run(os.getpid)
        pool.close()
        assert pool.running == 1
        gate.open()
        await until(lambda: pool.running == 0)

    run(main)


def test_draining_refuses_what_waits_and_waits_for_what_runs(gate: Gate) -> None:
    ran: list[str] = []

    async def main() -> None:
        pool, sooner = Pool("mnt", 2), Gate()
        awaited, early = (asyncio.ensure_future(pool.run(held.block)) for held in (gate, sooner))
        for held in (gate, sooner):
            await asyncio.to_thread(held.entered.acquire)
        waiting = asyncio.ensure_future(pool.run(ran.append, "waiting"))
        await asyncio.sleep(0)
        drains = [asyncio.ensure_future(pool.drain()) for _ in range(2)]
        with pytest.raises(PoolClosed, match="mnt"):
            await waiting
        with pytest.raises(PoolClosed):
            await pool.run(ran.append, "new")
        sooner.open()
        assert await early == "through"
        await asyncio.sleep(0.05)
        assert [drain.done() for drain in drains] == [False, False]
        gate.open()
        await asyncio.gather(*drains)
        assert pool.running == 0
        assert awaited.result() == "through", "what a drained pool has done is told before it counts as drained"
        assert ran == []
        await pool.drain()
        pool.close()
        await until(lambda: pool._threads == 0)

    run(main)


def test_a_call_that_nobody_awaits_any_more_is_drained_too(gate: Gate) -> None:
    async def main() -> None:
        pool = Pool("mnt", 1)
        dropped = asyncio.ensure_future(pool.run(gate.block))
        await asyncio.to_thread(gate.entered.acquire)
        dropped.cancel()
        drain = asyncio.ensure_future(pool.drain())
        await asyncio.sleep(0.05)
        assert not drain.done()
        gate.open()
        await drain
        assert pool.running == 0

    run(main)


def test_a_drain_that_is_given_up_leaves_the_pool_to_be_closed(gate: Gate) -> None:
    async def main() -> None:
        pool = Pool("mnt", 1)
        running = asyncio.ensure_future(pool.run(gate.block))
        await asyncio.to_thread(gate.entered.acquire)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(pool.drain(), 0.05)
        with pytest.raises(PoolClosed):
            await pool.run(os.getpid)
        assert not running.done()
        again = asyncio.ensure_future(pool.drain())
        await asyncio.sleep(0)
        pool.close()
        with pytest.raises(PoolClosed):
            await running
        assert not again.done(), "its thread has not come back"
        gate.open()
        await again

    run(main)


def test_a_thread_that_comes_back_after_the_loop_is_gone_harms_nothing(gate: Gate) -> None:
    pool = Pool("mnt", 1)

    async def give_up() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(pool.run(gate.block), 0.05)

    asyncio.run(give_up())
    gate.open()
    deadline = time.monotonic() + 5
    while pool.running and time.monotonic() < deadline:
        time.sleep(0.005)
    assert asyncio.run(pool.run(os.getpid)) == os.getpid()
    pool.close()


def test_an_idle_thread_keeps_no_result_alive() -> None:
    class Big:
        pass

    async def main() -> None:
        pool = Pool("mnt", 1)
        result = weakref.ref(await pool.run(Big))
        await until(lambda: pool._idle == 1)
        await asyncio.sleep(0)  # the loop's own handle of this step still holds the future
        gc.collect()
        assert result() is None
        pool.close()

    run(main)


def test_the_interpreter_ends_although_a_thread_hangs() -> None:
    script = """
        import asyncio, os, time
        from promoterd.pool import Pool

        async def main():
            pool = Pool("mnt", 1, stuck_after=0.0)
            task = asyncio.ensure_future(pool.run(time.sleep, 3600))
            while not pool.running:
                await asyncio.sleep(0.01)
            pool.close()
            await asyncio.gather(task, return_exceptions=True)

        asyncio.run(main())
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=True, timeout=15)


@pytest.mark.needs("root", "fuse")
def test_a_server_that_stops_answering_leaves_the_loop_alone(tmp_path: Path) -> None:
    for name in ("source", "mount"):
        os.mkdir(tmp_path / name)
    (tmp_path / "source" / "file").write_bytes(b"content")

    async def main(lower: CountingLower) -> None:
        pool = Pool("mnt", 1, stuck_after=0.2)
        assert lower.pid is not None
        os.kill(lower.pid, signal.SIGSTOP)
        try:
            hanging = asyncio.ensure_future(pool.run(os.stat, os.fsencode(tmp_path / "mount" / "file")))
            await until(lambda: len(pool.stuck()) == pool.workers)
            ((description, seconds),) = pool.stuck()
            assert description.endswith("/mount/file")
            assert seconds >= 0.2
        finally:
            os.kill(lower.pid, signal.SIGCONT)
        assert (await hanging).st_size == 7
        pool.close()

    with CountingLower(tmp_path / "source", tmp_path / "mount") as lower:  # type: ignore[arg-type]
        asyncio.run(main(lower))


# Throttle

SLACK = 0.2  # what a busy machine adds


def is_about(seconds: float, expected: float) -> bool:
    return expected - 0.005 <= seconds < expected + SLACK


@pytest.mark.parametrize(("rate", "batch", "batches"), [(2000.0, 256, 6), (5000.0, 20, 200), (100.0, 10, 7)])
def test_a_throttle_keeps_the_rate_and_wastes_little_of_it(rate: float, batch: int, batches: int) -> None:
    async def main() -> None:
        throttle = Throttle(rate)
        begun = time.monotonic()
        first = await throttle.take(batch)
        assert is_about(first, 0.0)
        waited = first + sum([await throttle.take(batch) for _ in range(batches - 1)])
        elapsed = time.monotonic() - begun
        # what was admitted last, and less than a grain before it, has not been paid for yet
        fair = ((batches - 1) * batch - rate * Throttle.GRAIN) / rate
        assert fair <= elapsed < fair * 1.3 + SLACK
        assert throttle.waited == pytest.approx(waited)
        assert waited == pytest.approx(elapsed, abs=0.05)

    run(main)


def test_batches_of_different_size_each_pay_for_themselves() -> None:
    async def main() -> None:
        throttle = Throttle(1000.0)
        waits = [await throttle.take(entries) for entries in (300, 50, 400)]
        assert [is_about(*pair) for pair in zip(waits, (0.0, 0.3, 0.05), strict=True)] == [True, True, True]
        await asyncio.sleep(0.45)
        assert is_about(await throttle.take(10), 0.0)  # time that passed anyway is not waited for again

    run(main)


def test_many_takers_share_one_rate_in_turn() -> None:
    order: list[int] = []

    async def taker(throttle: Throttle, number: int) -> None:
        await throttle.take(50)
        order.append(number)

    async def main() -> None:
        throttle = Throttle(1000.0)
        begun = time.monotonic()
        await asyncio.gather(*(taker(throttle, number) for number in range(8)))
        assert time.monotonic() - begun >= 0.35
        assert order == list(range(8))

    run(main)


def test_no_limit_costs_nothing_and_the_limit_can_change() -> None:
    async def main() -> None:
        throttle = Throttle(None)
        begun = time.monotonic()
        for _ in range(10_000):
            await throttle.take(1_000_000)
        assert time.monotonic() - begun < 10
        assert throttle.waited == 0
        throttle.rate = 1000.0
        await throttle.take(100)
        assert is_about(await throttle.take(100), 0.1)
        throttle.rate = None
        assert await throttle.take(10_000) == 0.0

    run(main)


def test_who_gives_up_waiting_is_not_counted_and_the_debt_stays() -> None:
    async def main() -> None:
        throttle = Throttle(1000.0)
        begun = time.monotonic()
        await throttle.take(200)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(throttle.take(5000), 0.05)
        await throttle.take(10)
        assert is_about(time.monotonic() - begun, 0.2)

    run(main)
