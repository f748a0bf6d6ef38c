import asyncio
import threading
import time

import pytest

from promoterd import pacing
from promoterd.backends.lanes import side_by_side
from promoterd.pacing import ENTRIES_PER_REQUEST, Pace


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_what_is_asked_in_one_go_is_waited_for_afterwards() -> None:
    clock = Clock()
    pace = Pace(10.0, clock=clock)
    assert pace.owe(1) == pytest.approx(0.1)
    assert pace.owe(4) == pytest.approx(0.5)
    clock.now += 0.5
    assert pace.debt() == pytest.approx(0)
    clock.now += 100
    assert pace.owe(1) == pytest.approx(0.1), "nothing is saved up"
    assert pace.reckoned == 6


def test_another_rate_holds_for_what_is_owed_as_well() -> None:
    clock = Clock()
    pace = Pace(10.0, clock=clock)
    pace.owe(10)
    pace.change(100.0)
    assert pace.debt() == pytest.approx(0.1)
    pace.change(10.0)
    assert pace.debt() == pytest.approx(1.0)
    pace.change(None)
    assert pace.debt() == 0
    assert pace.owe(1000) == 0
    pace.change(10.0)
    assert pace.debt() == 0


def test_a_thread_keeps_to_it_and_says_that_it_waited() -> None:
    said: list[None] = []
    pace = Pace(1000.0, waited_for=lambda: said.append(None))
    begun = time.monotonic()
    for _ in range(100):
        pace.pay(1)
    assert time.monotonic() - begun >= 0.095
    assert said
    assert pace.waited >= 0.09


def test_a_coroutine_waits_for_what_a_thread_owes() -> None:
    pace = Pace(10.0)
    thread = threading.Thread(target=pace.owe, args=(2,))
    thread.start()
    thread.join()

    async def wait() -> None:
        begun = time.monotonic()
        assert await pace.settle() > 0.1
        assert time.monotonic() - begun > 0.1
        assert await pace.settle() == 0

    asyncio.run(wait())


def test_a_wait_becomes_shorter_when_the_rate_grows() -> None:
    async def wait() -> None:
        pace = Pace(0.01)
        pace.owe(1)
        waiting = asyncio.create_task(pace.settle())
        await asyncio.sleep(0.01)
        pace.change(1000.0)
        async with asyncio.timeout(10):
            await waiting

    asyncio.run(wait())


def test_the_end_wakes_whoever_waits() -> None:
    pace = Pace(0.001)
    pace.owe(1)
    met: list[BaseException] = []

    def wait() -> None:
        try:
            pace.pay(1)
        except KeyError as error:
            met.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    why = KeyError("over")
    pace.end(why)
    thread.join(5)
    assert met == [why]
    assert asyncio.run(pace.settle()) == 0


def test_requests_are_reckoned_where_somebody_keeps_count_on_lanes_as_well() -> None:
    pace = Pace()
    pacing.owe(1000)
    with pace.kept():
        pacing.owe(1)
        side_by_side([lambda: pacing.owe(2), lambda: pacing.owe(3)])
        pacing.pay(4)
    pacing.pay(1000)
    assert pace.reckoned == 10


@pytest.mark.parametrize("entries", [0, 1, ENTRIES_PER_REQUEST, 10 * ENTRIES_PER_REQUEST + 1])
def test_a_listing_is_a_request_for_every_so_many_entries(entries: int) -> None:
    pace = Pace()
    assert list(pacing.listed(range(entries))) == list(range(entries))
    assert pace.reckoned == 0
    with pace.kept():
        assert list(pacing.listed(range(entries))) == list(range(entries))
    assert pace.reckoned == 1 + entries // ENTRIES_PER_REQUEST
