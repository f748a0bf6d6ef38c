"""Signals that wait until somebody can take them."""

import signal
from collections.abc import Collection, Iterator
from contextlib import contextmanager


@contextmanager
def held(numbers: Collection[signal.Signals]) -> Iterator[set[int | signal.Signals]]:
    """Within the block these wait, and those that nobody has taken by its end have no effect.

    Gives the signals that were blocked before, for the children that are started meanwhile.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield before
    finally:
        while signal.sigtimedwait(numbers, 0):
            pass
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
