"""The names by which the kernel knows this process and its threads.

A thread begins with the name of the one that starts it (clone(2)); from Python 3.14 on it takes that of its Thread
object then. A program that is executed has its file's name, so it is ``python3`` for ``python -m promoterd``.
"""

import os
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Final, TypeVarTuple

Ts = TypeVarTuple("Ts")

NAME: Final = "promoterd"
"""That of the process; those of its threads begin with it. The kernel keeps 15 bytes of a name."""
_TASKS = "/proc/self/task"
_ROUNDS = 100


def start(target: Callable[[*Ts], object], *args: *Ts, name: str) -> threading.Thread:
    """Start a thread that nothing waits for at the end of the process; ``name`` says what it is for."""
    thread = threading.Thread(target=target, args=args, name=f"{NAME} {name}", daemon=True)
    thread.start()
    return thread


def take_name() -> None:
    """Give this process its name, and all of its threads that have none of ours. Raises OSError."""
    for _ in range(_ROUNDS):
        if sum(_rename(thread) for thread in os.listdir(_TASKS)) == 0:  # else one may have started another meanwhile
            return
    raise OSError(f"the threads of this process do not keep their names in {_TASKS}")


def _rename(thread: str) -> bool:
    """Whether it had another name."""
    with (
        suppress(FileNotFoundError, ProcessLookupError),
        open(f"{_TASKS}/{thread}/comm", "r+b", buffering=0) as comm,
    ):
        if not comm.read().startswith(NAME.encode()):
            comm.write(NAME.encode())
            return True
    return False
