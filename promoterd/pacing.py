"""The pace of what is asked of a server, in requests per second, kept by whoever asks: threads and coroutines alike.

Requests are reckoned where they are made, with :func:`owe` and :func:`pay`, for the pace that the calling thread's
context has. Who has something open on the mount only owes, and the debt is waited for when nothing is open any more.
"""

import asyncio
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

T = TypeVar("T")

ENTRIES_PER_REQUEST = 50
"""Of a READDIRPLUS, at the least."""
_GRAIN = 0.002
"""Seconds of debt that are not worth going to sleep for."""


class Pace:
    """At most ``rate`` requests per second in the long run, None for no limit; it may change at any time.

    What is owed is waited for by whoever asks next, first come, first served. ``waited_for`` is called in a thread
    after each of its waits, which are no sign of a server that does not answer.
    """

    def __init__(
        self,
        rate: float | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        waited_for: Callable[[], None] = lambda: None,
    ) -> None:
        self.rate = rate
        self.reckoned = 0.0
        """Requests that were owed or paid for, in all."""
        self.waited = 0.0
        """Seconds that were waited for the pace, in all."""
        self._clock = clock
        self._waited_for = waited_for
        self._free_at = 0.0
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._end: BaseException | None = None

    def owe(self, requests: float) -> float:
        """Count requests that are made now; returns the seconds that somebody who asks afterwards has to wait."""
        with self._lock:
            self.reckoned += requests
            now = self._clock()
            self._free_at = max(self._free_at, now)
            if self.rate is not None:
                self._free_at += requests / self.rate
            return self._free_at - now

    def pay(self, requests: float) -> None:
        """Wait in this thread until what was owed before is settled, and owe these. Raises what :meth:`end` says."""
        debt = self.debt()
        if debt >= _GRAIN:
            self._ended.wait(debt)
            self.waited += debt
            self._waited_for()
        if self._end is not None:
            raise self._end
        self.owe(requests)

    async def settle(self) -> float:
        """Wait until what was owed is settled; returns the seconds that took."""
        waited = 0.0
        while (debt := self.debt()) >= _GRAIN and not self._ended.is_set():
            await asyncio.sleep(min(debt, 1.0))  # the pace may be another by then
            waited += min(debt, 1.0)
        self.waited += waited
        return waited

    def change(self, rate: float | None) -> None:
        """Another rate, for what is owed already as well."""
        with self._lock:
            now = self._clock()
            debt = max(0.0, self._free_at - now)
            if self.rate is not None and rate is not None:
                self._free_at = now + debt * self.rate / rate
            elif rate is None:
                self._free_at = now
            self.rate = rate

    def end(self, why: BaseException) -> None:
        """Nobody waits any more: threads that would, or do, raise ``why``."""
        self._end = why
        self._ended.set()

    def debt(self) -> float:
        """The seconds until what was owed is settled; none, or less, where it is."""
        with self._lock:
            return self._free_at - self._clock()

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Within the block, what this thread asks is reckoned here."""
        token = _PACE.set(self)
        try:
            yield
        finally:
            _PACE.reset(token)


_PACE: ContextVar[Pace | None] = ContextVar("pace", default=None)


def owe(requests: float) -> None:
    """Count requests to the server, where anybody keeps count."""
    pace = _PACE.get()
    if pace is not None:
        pace.owe(requests)


def debt() -> float:
    """The seconds that :func:`pay` would wait."""
    pace = _PACE.get()
    return 0.0 if pace is None or (seconds := pace.debt()) < _GRAIN else seconds


def pay(requests: float = 0.0) -> None:
    """Count them, once what was owed before is settled. Only where nothing is open that may be kept waiting."""
    pace = _PACE.get()
    if pace is not None:
        pace.pay(requests)


def listed(entries: Iterable[T]) -> Iterator[T]:
    """The entries of a directory as they come, a request for every so many of them."""
    pace = _PACE.get()
    if pace is None:
        yield from entries
        return
    pace.owe(1)
    for number, entry in enumerate(entries, 1):
        yield entry
        if number % ENTRIES_PER_REQUEST == 0:
            pace.pay(1)
