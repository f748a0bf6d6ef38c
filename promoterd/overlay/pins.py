"""Which processes hold a directory, so that a mark on it cannot take effect yet."""

import os
from dataclasses import dataclass

_LINKS = ("cwd", "root", "exe")


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
        return target == absolute or target.startswith(inside)

    for link in _LINKS:
        try:
            if holds(os.readlink(b"/proc/%s/%s" % (pid, link.encode()))):
                ways.add(link)
        except OSError:
            continue
    try:
        for descriptor in os.listdir(b"/proc/%s/fd" % pid):
            try:
                if holds(os.readlink(b"/proc/%s/fd/%s" % (pid, descriptor))):
                    ways.add("fd")
                    break
            except OSError:
                continue
    except OSError:
        pass
    try:
        with open(b"/proc/%s/maps" % pid, "rb") as maps:
            if any(holds(_unescape(line.split(None, 5)[-1].rstrip(b"\n"))) for line in maps if b"/" in line):
                ways.add("map")
    except OSError:
        pass
    return ways


def _unescape(path: bytes) -> bytes:
    return path.replace(b"\\012", b"\n").removesuffix(b" (deleted)")


def _command(pid: str) -> str:
    try:
        with open(f"/proc/{pid}/comm", "rb") as comm:
            return comm.read().strip().decode("utf-8", "backslashreplace")
    except OSError:
        return "?"
