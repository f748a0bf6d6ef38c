"""Working on a mount without a daemon: under the same policy, lock and ledger, for the length of one command."""

import asyncio
import signal
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, TypeVar

from promoterd import log
from promoterd.adapting import adapted
from promoterd.cli.output import warn
from promoterd.errors import Interrupted, MountGone
from promoterd.ledger import Ledger
from promoterd.metrics import Metrics
from promoterd.mounted import Mounted
from promoterd.opening import OpenedMount
from promoterd.overlay.mounts import overlay_at
from promoterd.policy import MountPolicy, Policy
from promoterd.pool import Pool, PoolClosed
from promoterd.reconcile import reconcile
from promoterd.signals import held

T = TypeVar("T")
Work = Callable[[Mounted], Awaitable[T]]

_CLOSE_PATIENCE = 2.0
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def work_on(policy: Policy, mount: MountPolicy, work: Work[T]) -> T:
    """Take a mount into work, do something with it, and give it back. What was interrupted there before is settled.

    A first Ctrl-C lets the step that is under way end, a second one does not. Raises MountNotFound,
    AlreadyLocked, UnfitMount, Interrupted, and what ``work`` raises.
    """
    with held(_SIGNALS):  # Ctrl-C never falls into the making or closing of an event loop
        return asyncio.run(_work_on(policy, mount, work, writing=True))


def look_at(policy: Policy, mount: MountPolicy, work: Work[T]) -> T:
    """As :func:`work_on`, for work that changes nothing: without the lock, so that it is possible at any time."""
    with held(_SIGNALS):  # Ctrl-C never falls into the making or closing of an event loop
        return asyncio.run(_work_on(policy, mount, work, writing=False))


async def _work_on(policy: Policy, configured: MountPolicy, work: Work[T], *, writing: bool) -> T:
    log_errors_only()
    overlay = overlay_at(configured.mountpoint_bytes)
    opener = Pool("open", 1)
    stack = ExitStack()
    with Ledger(policy.state_dir) as ledger, _interruptible() as interruption:
        opening = OpenedMount(
            overlay,
            configured,
            ledger=ledger,
            metrics=Metrics(),
            log=log.get_logger("promoterd"),
            clock=time.time,
            writing=writing,
        )
        try:
            mount = await interruption.wait_for(opener.run(stack.enter_context, opening))
            try:
                interruption.mount = mount
                if writing:
                    await interruption.wait_for(reconcile(mount, rebuild=not mount.book.counts()))
                async with adapted(mount):
                    return await interruption.wait_for(work(mount))
            finally:
                await _until_idle(mount.pool)
        except PoolClosed as error:
            raise MountGone(mountpoint=configured.mountpoint) from error
        finally:
            with suppress(TimeoutError):  # the server does not answer; the lock goes with the process
                async with asyncio.timeout(_CLOSE_PATIENCE):
                    await opener.run(stack.close)
            opener.close()


def log_errors_only() -> None:
    """Say what went wrong; what went well is the command's own to say."""
    log.configure("console", "error")


async def _until_idle(pool: Pool) -> None:
    """A call that nobody awaits any more is not cut off in the middle, unless its server does not answer."""
    with suppress(TimeoutError):
        async with asyncio.timeout(_CLOSE_PATIENCE):
            await pool.drain()


class _Interruption:
    """What Ctrl-C does to the work of this command."""

    def __init__(self) -> None:
        self.mount: Mounted | None = None
        self._task: asyncio.Future[Any] | None = None
        self._asked = False

    async def wait_for(self, work: Awaitable[T]) -> T:
        """What ``work`` returns. Raises Interrupted."""
        if self._asked:
            raise Interrupted(what="stopped by the user")
        task = asyncio.ensure_future(work)
        self._task = task
        try:
            return await task
        except asyncio.CancelledError:
            if self._asked:
                raise Interrupted(what="stopped by the user", hint=_WHAT_IS_LEFT) from None
            raise
        finally:
            self._task = None

    def ask(self) -> None:
        """Stop after the step that is under way, if one is; at once when asked again."""
        again, self._asked = self._asked, True
        mount = self.mount
        if mount is not None:
            mount.stopping = True
        begun = mount is not None and bool(mount.upper_ledger.unfinished())
        if begun and not again:
            warn("promoterd: stopping after this step; Ctrl-C again stops at once")
        elif self._task is not None:
            self._task.cancel()


_WHAT_IS_LEFT = "no reader sees a difference; the same command goes on from here"


@contextmanager
def _interruptible() -> Iterator[_Interruption]:
    """Within :func:`promoterd.signals.held`."""
    interruption = _Interruption()
    loop = asyncio.get_running_loop()
    for number in _SIGNALS:
        loop.add_signal_handler(number, interruption.ask)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    try:
        yield interruption
    finally:
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        for number in _SIGNALS:
            loop.remove_signal_handler(number)
