"""Which directory of an overlay an open file lies in, told from its path, its mount and the mount tables.

A link of /proc/self/fd says where a file lies seen from the root of this process; for a file on a mount of another
namespace, seen from the root of that namespace (prepend_path(), fs/d_path.c). So the mount is asked for first, by its
number, and its own place is taken off the path. What does not fit together belongs nowhere: nothing is guessed.
"""

import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain

from promoterd.heat.base import Kind
from promoterd.overlay import mountinfo, syscalls
from promoterd.overlay.mountinfo import MountEntry, is_at_or_below
from promoterd.paths import join, parent

_DELETED = b" (deleted)"
_DELETED_ROOT = b"//deleted"
_MOST_NAMESPACES = 64


@dataclass(frozen=True, slots=True)
class Place:
    """A mount of the overlay: where links to files on it begin, and which directory of the overlay lies there."""

    at: bytes
    root: bytes

    def inside(self, link: bytes) -> bytes | None:
        """The path in the overlay of what a link leads to; None where it cannot lie on this mount."""
        if not is_at_or_below(link, self.at):
            return None
        below = link[len(self.at) :].strip(b"/")
        return join(self.root, below) if below else self.root


def place(entries: Iterable[MountEntry], mount_id: int, device: tuple[int, int], seen_from: bytes) -> Place | None:
    """A mount by its number; ``seen_from`` is the root of the process whose table that is, in its namespace."""
    for entry in entries:
        if entry.mount_id == mount_id and entry.device == device and not entry.root.endswith(_DELETED_ROOT):
            at = seen_from.rstrip(b"/") + entry.mountpoint
            return Place(at.rstrip(b"/") or b"/", entry.root.strip(b"/"))
    return None


class Places:
    """The mounts of one overlay in this and other namespaces, looked for as files on them turn up.

    Good for as long as the files are held open that it is asked about: the numbers of mounts are used again. The mount
    table of a namespace is read once at most.
    """

    def __init__(self, device: tuple[int, int], home: int, home_place: Place) -> None:
        self._device = device
        self._known: dict[int, Place | None] = {home: home_place}
        self._tables: list[_Table] = []
        self._namespaces: set[str] = set()
        self._rest: Iterator[str] | None = None

    def of(self, mount_id: int, pid: int) -> Place | None:
        """Where a mount lies, ``pid`` being a process that used it; None where nobody can be found who knows it."""
        if mount_id not in self._known:
            tables = self._read_tables(pid)
            found = (place(table.entries, mount_id, self._device, table.seen_from) for table in tables)
            self._known[mount_id] = next((one for one in found if one is not None), None)
        return self._known[mount_id]

    def _read_tables(self, pid: int) -> Iterator["_Table"]:
        """Those that were read, then that of the user, who may have ended, then one of every other namespace."""
        yield from list(self._tables)
        if self._rest is None:
            self._rest = (entry for entry in os.listdir("/proc") if entry.isdecimal())
        for process in chain(("self", str(pid)), self._rest):
            if len(self._namespaces) > _MOST_NAMESPACES:
                return
            with suppress(OSError):
                namespace = os.readlink(f"/proc/{process}/ns/mnt")
                if namespace not in self._namespaces:
                    table = _Table(mountinfo.read(process), os.readlink(b"/proc/%s/root" % process.encode()))
                    self._namespaces.add(namespace)
                    self._tables.append(table)
                    yield table


@dataclass(frozen=True, slots=True)
class _Table:
    """A mount table, and the root of the process whose it is."""

    entries: list[MountEntry]
    seen_from: bytes


def use_of(descriptor: int, pid: int, places: Places) -> tuple[bytes | None, Kind]:
    """The directory in which a process opened what the descriptor refers to, None where that cannot be told; and how.

    Asks no server: what kind of file it is was known when it was opened.
    """
    try:
        found = syscalls.statx(descriptor, no_sync=True)
        link = os.readlink(b"/proc/self/fd/%d" % descriptor)
    except OSError:
        return None, Kind.OPEN
    is_directory = stat.S_ISDIR(found.mode)
    if is_directory and not found.nlink and link.endswith(_DELETED):
        return None, Kind.LIST
    place = places.of(found.mount_id, pid)
    inside = None if place is None else place.inside(link)
    if inside is None or is_directory:
        return inside, Kind.LIST
    return parent(inside), Kind.OPEN
