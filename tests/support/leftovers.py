"""What a test may leave behind: nothing. Mounts below its directory and child processes are found and removed."""

import contextlib
import ctypes
import os
import re
import signal
import time

from promoterd.overlay import syscalls

_PR_SET_CHILD_SUBREAPER = 36
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
    """The living children of this process, of whatever thread; those that have ended are reaped or left to Popen."""
    mine = str(os.getpid()).encode()
    found = set()
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        with contextlib.suppress(OSError), open(f"/proc/{name}/stat", "rb") as file:
            state, parent = file.read().rpartition(b")")[2].split()[:2]
            if parent == mine and state not in (b"Z", b"X"):
                found.add(int(name))
    return found


def command(pid: int) -> str:
    """What the process runs, for people."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/cmdline", "rb") as file:
        return file.read().replace(b"\0", b" ").decode(errors="replace").strip()
    return "?"


def new_children(before: set[int], grace: float = 1.0) -> dict[int, str]:
    """Children that were not there before and do not end within ``grace`` seconds, with what they run."""
    deadline = time.monotonic() + grace
    while True:
        # multiprocessing's tracker lives as long as its parent, by design
        left = {
            pid: text for pid in children() - before if "multiprocessing.resource_tracker" not in (text := command(pid))
        }
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(0.02)


def kill(pids: dict[int, str]) -> None:
    """End our own leftover children."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
