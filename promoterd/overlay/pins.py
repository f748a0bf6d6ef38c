"""Which processes hold a directory, so that a mark on it cannot take effect yet."""

import os
from dataclasses import dataclass

_LINKS = ("cwd", "root", "exe")
_DELETED = b" (deleted)"


@dataclass(frozen=True, slots=True)
class Holder:
    """A process that holds something in a directory, and by what: cwd, root, exe, fd or map."""

    pid: int
    command: str
    by: str


def holders(absolute: bytes, *, own_pid: int | None = None) -> list[Holder]:
    """Processes that hold ``absolute`` or anything below it, as far as this process may look.

    Mapped libraries pin their directory for the life of the process. What lives in another mount namespace under
    another path is not found.
    """
    found = []
    for entry in os.listdir("/proc"):
        if not entry.isdecimal() or int(entry) == (own_pid or os.getpid()):
            continue
        ways = _ways(entry.encode(), absolute)
        if ways:
            found.append(Holder(int(entry), _command(entry), "+".join(sorted(ways))))
    return found


def _ways(pid: bytes, absolute: bytes) -> set[str]:
    inside = absolute.rstrip(b"/") + b"/"
    ways = set()

    def holds(target: bytes) -> bool:
        return target == absolute or target.startswith(inside) or target.removesuffix(_DELETED) == absolute

    for link in _LINKS:
        if holds(_target(b"/proc/%s/%s" % (pid, link.encode()))):
            ways.add(link)
    descriptors = b"/proc/%s/fd/" % pid
    if any(holds(_target(descriptors + number)) for number in _listed(descriptors)):
        ways.add("fd")
    if any(holds(path) or holds(path.replace(rb"\012", b"\n")) for path in _mapped(pid)):
        ways.add("map")
    return ways


def _target(link: bytes) -> bytes:
    """Where a link of /proc leads; empty where that cannot be seen any more."""
    try:
        return os.readlink(link)
    except OSError:
        return b""


def _listed(directory: bytes) -> list[bytes]:
    try:
        return os.listdir(directory)
    except OSError:
        return []


def _mapped(pid: bytes) -> set[bytes]:
    """The files that a process has mapped, as the kernel shows them: newlines escaped, and nothing else (proc(5))."""
    try:
        with open(b"/proc/%s/maps" % pid, "rb") as maps:
            return {line.split(None, 5)[-1].rstrip(b"\n") for line in maps if b"/" in line}
    except OSError:
        return set()


def _command(pid: str) -> str:
    try:
        with open(f"/proc/{pid}/comm", "rb") as comm:
            return comm.read().strip().decode("utf-8", "backslashreplace")
    except OSError:
        return "?"
