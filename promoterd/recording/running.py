"""A child process whose signals are its own, and waiting for it."""

import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Final

from promoterd.errors import CommandNotFound
from promoterd.signals import held

TICK: Final = 0.2
"""Seconds between two looks at what else there is to do."""
_OURS: Final = frozenset({signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT})
_HELD: Final = _OURS | {signal.SIGCHLD}
_BY_DEFAULT: Final = (signal.SIGPIPE, signal.SIGXFSZ)  # what Python ignores, and a child would go on ignoring


@contextmanager
def signals_held() -> Iterator["Signals"]:
    """SIGINT, SIGTERM, SIGHUP and SIGQUIT are received by the waiting functions, and end nothing by themselves."""
    with held(_HELD) as before:
        yield Signals(before)


@dataclass
class Signals:
    """The right to wait for children and signals, within :func:`signals_held`."""

    before: set[Any] = field(default_factory=set)
    """The signals that were blocked before."""

    def spawn(self, program: str, arguments: list[str], **options: Any) -> int:
        """Start a program with our streams; its process id."""
        return os.posix_spawn(program, arguments, os.environ, setsigmask=self.before, setsigdef=_BY_DEFAULT, **options)

    def wait_forwarding(self, child: int, tick: Callable[[], object] = lambda: None) -> int:
        """Until a child of our process group ends; its status, as of wait(2). It gets the signals that we get.

        Those of a terminal go to the whole process group, so the child has them already: the kernel's are left out.
        """
        while True:
            received = signal.sigtimedwait(_HELD, TICK)
            tick()
            pid, status = os.waitpid(child, os.WNOHANG)
            if pid:
                return status
            # si_code is positive for what the kernel sends (sigaction(2))
            if received is not None and received.si_signo in _OURS and received.si_code <= 0:
                with suppress(ProcessLookupError):
                    os.kill(child, received.si_signo)

    def wait_until(self, is_over: Callable[[], bool], seconds: float | None) -> None:
        """Until something is so, for at most so many seconds, or until one of our signals."""
        deadline = None if seconds is None else time.monotonic() + seconds
        while not is_over():
            left = TICK if deadline is None else min(TICK, deadline - time.monotonic())
            if left <= 0:
                return
            received = signal.sigtimedwait(_HELD, left)
            if received is not None and received.si_signo in _OURS:
                return

    def end(self, child: int, patience: float) -> int:
        """Ask a child to end; its status. One that does not within ``patience`` seconds is killed."""
        deadline = time.monotonic() + patience
        sent = signal.SIGTERM
        os.kill(child, sent)
        while True:
            pid, status = os.waitpid(child, os.WNOHANG)
            if pid:
                return status
            if time.monotonic() > deadline and sent is not signal.SIGKILL:
                sent = signal.SIGKILL
                os.kill(child, sent)
            signal.sigtimedwait({signal.SIGCHLD}, TICK)


def program_of(command: Sequence[str]) -> str:
    """The program that a command starts with. Raises CommandNotFound."""
    found = shutil.which(command[0])
    if found is None:
        raise CommandNotFound(command=command[0])
    return found


def exit_code_of(status: int) -> int:
    """What a shell reports for a status of wait(2): 128 and its number where a signal ended the process."""
    return 128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
