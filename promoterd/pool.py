"""Blocking file-system calls: threads of their own for each mount, and a rate for the work they do.

A thread in uninterruptible sleep cannot be ended: signals do not reach it, and a call to a dead NFS server sleeps so
for as long as the server is dead (``hard``, nfs(5)). ``concurrent.futures`` joins its threads when the interpreter
ends, so a single such thread would hold up the shutdown; these are daemon threads, and nothing ever waits for one.
"""

import asyncio
import contextvars
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar, TypeVarTuple, cast

from asyncio_throttle.throttler import Throttler

from promoterd import threads
from promoterd.paths import show

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class PoolClosed(RuntimeError):
    """The pool was closed: its mount is gone, or the daemon ends. Whether a running call went through is not known."""


@dataclass(eq=False)
class _Call:
    work: Callable[[], Any]
    description: str
    future: asyncio.Future[Any]
    context: contextvars.Context = field(default_factory=contextvars.copy_context)
    started: float = 0.0


class Pool:
    """At most ``workers`` threads for the calls of one mount, started when there is work for them.

    A call that runs for ``stuck_after`` seconds by ``clock`` counts as stuck. When every thread is stuck, further calls
    wait; other pools go on. Use it from event loops only; an awaiter that is cancelled leaves its thread alone.
    """

    def __init__(
        self,
        name: str,
        workers: int,
        stuck_after: float = 30.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = name
        self.workers = workers
        self.stuck_after = stuck_after
        self._clock = clock
        self._wake = threading.Condition()
        self._waiting: deque[_Call] = deque()
        self._running: dict[_Call, None] = {}
        self._threads = 0
        self._idle = 0
        self._closed = False
        self._drained: list[asyncio.Future[None]] = []
        self._own = threading.local()

    async def run(self, work: Callable[[*Ts], T], *args: *Ts, what: str | None = None) -> T:
        """Call ``work`` in a thread, with the caller's context variables, and wait for what it returns or raises.

        ``what`` describes the call for :meth:`stuck`; by default its name and its paths do. Raises PoolClosed.
        """
        future = asyncio.get_running_loop().create_future()
        call = _Call(partial(work, *args), what or _describe(work, args), future)
        with self._wake:
            if self._closed:
                raise PoolClosed(self.name)
            self._waiting.append(call)
            if self._idle >= len(self._waiting) or self._threads == self.workers:
                self._wake.notify()
            else:
                self._threads += 1
                threads.start(self._serve, name=f"{self.name}-{self._threads}")
        try:
            return cast("T", await call.future)
        except asyncio.CancelledError:
            with self._wake, suppress(ValueError):
                self._waiting.remove(call)
            raise

    def stuck(self) -> list[tuple[str, float]]:
        """The calls that run for too long, each with the seconds since its start, the longest first."""
        now = self._clock()
        with self._wake:
            running = [(call.description, now - call.started) for call in self._running]
        return sorted((entry for entry in running if entry[1] >= self.stuck_after), key=lambda entry: -entry[1])

    def goes_on(self) -> None:
        """The call in this thread has waited for a reason of its own: its time begins anew."""
        call: _Call | None = getattr(self._own, "call", None)
        if call is not None:
            call.started = self._clock()

    @property
    def running(self) -> int:
        """Calls in a thread."""
        return len(self._running)

    async def drain(self) -> None:
        """Take no more calls, let those that wait see PoolClosed, and return when no thread runs one.

        Who awaits a running call gets what it returns or raises, and a call that nobody awaits any more is waited for
        as well. The pool refuses calls from then on, also where the drain is cancelled.
        """
        drained = asyncio.get_running_loop().create_future()
        with self._wake:
            refused = self._refuse()
            if self._running:
                self._drained.append(drained)
            else:
                drained.set_result(None)
        self._abandon(refused)
        await drained

    def close(self) -> None:
        """Take no more calls, and let everyone who awaits one see PoolClosed. Joins nothing."""
        with self._wake:
            abandoned = [*self._refuse(), *self._running]
        self._abandon(abandoned)

    def _refuse(self) -> list[_Call]:
        """Take no more calls; returns those that waited, and wait no longer."""
        self._closed = True
        refused = list(self._waiting)
        self._waiting.clear()
        self._wake.notify_all()
        return refused

    def _abandon(self, calls: Iterable[_Call]) -> None:
        for call in calls:
            _deliver(call.future, None, PoolClosed(self.name))

    def _serve(self) -> None:
        while (call := self._next()) is not None:
            result, error = None, None
            self._own.call = call
            try:
                result = call.context.run(call.work)
            except BaseException as caught:  # noqa: BLE001 - it belongs to the awaiter, whatever it is
                error = caught
            with self._wake:
                del self._running[call]
                drained = [] if self._running else self._drained.copy()
            _deliver(call.future, result, error)
            for future in drained:
                _deliver(future, None, None)
            self._own.call = None
            del call, result, error  # an idle thread must not keep the last result alive

    def _next(self) -> _Call | None:
        with self._wake:
            while True:
                while not self._waiting:
                    if self._closed:
                        self._threads -= 1
                        return None
                    self._idle += 1
                    self._wake.wait()
                    self._idle -= 1
                call = self._waiting.popleft()
                if not call.future.cancelled():
                    call.started = self._clock()
                    self._running[call] = None
                    return call


def _deliver(future: asyncio.Future[Any], result: object, error: BaseException | None) -> None:
    try:
        future.get_loop().call_soon_threadsafe(_settle, future, result, error)
    except RuntimeError:  # the loop was closed meanwhile, and nobody waits
        return


def _settle(future: asyncio.Future[Any], result: object, error: BaseException | None) -> None:
    if future.done():
        return
    if isinstance(error, StopIteration):  # a future cannot raise it: it would end the coroutine's own iteration
        wrapped = RuntimeError("the call raised StopIteration")
        wrapped.__cause__ = error
        error = wrapped
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)


def _describe(work: Callable[..., object], args: tuple[object, ...]) -> str:
    name = getattr(work, "__qualname__", None) or type(work).__qualname__
    return " ".join([name, *(show(arg) for arg in args if isinstance(arg, bytes))])


class Throttle:
    """A rate for work that comes in batches: in the long run at most ``rate`` entries per second, None for no limit.

    One acquisition admits a whole batch, and the next is admitted when the time that the batch is worth has passed.
    Batches worth less than ``GRAIN`` seconds are admitted together, since asyncio's timers are no finer. First come,
    first served; an awaiter that is cancelled is not counted.
    """

    GRAIN = 0.02

    def __init__(self, rate: float | None) -> None:
        self.rate = rate
        self.waited = 0.0
        """Seconds that :meth:`take` has waited, in all."""
        self._admitted: int | None = None
        self._turn = asyncio.Lock()
        self._throttler = Throttler(rate_limit=1)

    async def take(self, entries: int) -> float:
        """Wait until so many entries may be worked on; returns the seconds that took."""
        rate = self.rate
        if rate is None:
            return 0.0
        begun = time.monotonic()
        async with self._turn:
            due = (self._admitted or 0) / rate
            if self._admitted is None or due >= self.GRAIN:
                self._throttler.period = due
                self._throttler.retry_interval = min(max(due / 32, 0.001), 0.25)
                await self._throttler.acquire()  # type: ignore[no-untyped-call]
                self._admitted = 0
            self._admitted += entries
        waited = time.monotonic() - begun
        self.waited += waited
        return waited
