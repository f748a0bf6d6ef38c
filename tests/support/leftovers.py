"""What a test may leave behind: nothing. Mounts below its directory and child processes are found and removed."""

import contextlib
import ctypes
import os
import re
import signal
import time
from collections.abc import Iterator

from promoterd.overlay import syscalls

_PR_SET_CHILD_SUBREAPER = 36
_BESIDE = ("multiprocessing.resource_tracker", "multiprocessing.forkserver")
_OCTAL = re.compile(rb"\\([0-7]{3})")


def _unescape(match: re.Match[bytes]) -> bytes:
    return bytes([int(match[1], 8)])


def adopt_orphans() -> None:
    """Become the parent of grandchildren whose parents end, so that they can be found (PR_SET_CHILD_SUBREAPER)."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def mounts_below(directory: str) -> list[str]:
    """Mount points below the directory, the latest mounted first."""
    with open("/proc/self/mountinfo", "rb") as file:
        points = [os.fsdecode(_OCTAL.sub(_unescape, line.split(b" ")[4])) for line in file]
    return [point for point in reversed(points) if point.startswith(directory.rstrip("/") + "/")]


def detach(points: list[str]) -> None:
    """Unmount lazily whatever is still there."""
    for point in points:
        with contextlib.suppress(OSError):
            syscalls.umount(os.fsencode(point), syscalls.MNT_DETACH)


def children() -> set[int]:
    """The living children of this process, of whatever thread; those that have ended are reaped or left to Popen.

    What multiprocessing runs beside it, its fork server say, lives as long as it does, by design: the children of that
    count instead.
    """
    living = dict(_parents())
    own = {pid for pid, parent in living.items() if parent == os.getpid()}
    beside = {pid for pid in own if any(name in command(pid) for name in _BESIDE)}
    return own - beside | {pid for pid, parent in living.items() if parent in beside}


def _parents() -> Iterator[tuple[int, int]]:
    """Every living process with its parent."""
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        with contextlib.suppress(OSError), open(f"/proc/{name}/stat", "rb") as file:
            state, parent = file.read().rpartition(b")")[2].split()[:2]
            if state not in (b"Z", b"X"):
                yield int(name), int(parent)


def command(pid: int) -> str:
    """What the process runs, for people."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/cmdline", "rb") as file:
        return file.read().replace(b"\0", b" ").decode(errors="replace").strip()
    return "?"


def new_children(before: set[int], grace: float = 1.0) -> dict[int, str]:
    """Children that were not there before and do not end within ``grace`` seconds, with what they run."""
    deadline = time.monotonic() + grace
    while True:
        left = {pid: command(pid) for pid in children() - before}
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(0.02)


def kill(pids: dict[int, str]) -> None:
    """End our own leftover children."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
