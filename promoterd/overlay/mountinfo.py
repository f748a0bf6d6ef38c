"""The mount table of a mount namespace: ``/proc/PID/mountinfo`` (proc_pid_mountinfo(5)), and notice of its changes."""

import os
import select
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from promoterd.overlay.escapes import unescape_octal

MOUNTINFO = "/proc/self/mountinfo"
_NETWORK = ("nfs", "fuse", "cifs", "smb", "ceph", "9p", "afs", "lustre", "gpfs", "beegfs")


@dataclass(frozen=True, slots=True)
class MountEntry:
    """One line of mountinfo. ``root`` is what of the file system is mounted; ``super_options`` are still escaped."""

    mount_id: int
    parent_id: int
    device: tuple[int, int]
    root: bytes
    mountpoint: bytes
    options: tuple[str, ...]
    fstype: str
    source: bytes
    super_options: bytes

    def inside(self, path: bytes) -> bytes:
        """Where a path at or below the mount point is in the file system that is mounted."""
        inside = os.path.normpath(self.root + b"/" + path[len(self.mountpoint) :])
        return inside.replace(b"//", b"/")  # POSIX lets two slashes stand in front, and so does normpath()


def parse(mountinfo: bytes) -> list[MountEntry]:
    """All mounts, in the kernel's order. A line that is cut off or not understood is left out."""
    return list(_entries(mountinfo))


def read(pid: str = "self") -> list[MountEntry]:
    """The mounts that a process sees. Raises OSError."""
    with open(f"/proc/{pid}/mountinfo", "rb") as file:
        return parse(file.read())


def _entries(mountinfo: bytes) -> Iterator[MountEntry]:
    for line in mountinfo.split(b"\n"):
        fields = line.split(b" ")
        try:
            dash = fields.index(b"-", 6)
            mount_id, parent_id = int(fields[0]), int(fields[1])
            major, minor = fields[2].split(b":")
            fstype, source, super_options = fields[dash + 1 : dash + 4]
            yield MountEntry(
                mount_id,
                parent_id,
                (int(major), int(minor)),
                unescape_octal(fields[3]),
                unescape_octal(fields[4]),
                tuple(fields[5].decode().split(",")),
                unescape_octal(fstype).decode("utf-8", "replace"),
                unescape_octal(source),
                super_options,
            )
        except ValueError:
            continue


def is_at_or_below(path: bytes, directory: bytes) -> bool:
    """Whether an absolute path is ``directory`` or lies in it."""
    return path == directory or path.startswith(directory.rstrip(b"/") + b"/")


def is_network(fstype: str) -> bool:
    """Whether a file system of this type asks somebody else, who may not answer; of FUSE it is assumed."""
    return fstype.startswith(_NETWORK)


@dataclass
class MountTree:
    """Which mount answers at a path, told from the table alone: no path is touched, so no dead server is asked."""

    entries: Sequence[MountEntry]
    _children: defaultdict[int, list[MountEntry]] = field(init=False)

    def __post_init__(self) -> None:
        self._children = defaultdict(list)
        for entry in self.entries:
            if entry.parent_id != entry.mount_id:
                self._children[entry.parent_id].append(entry)

    def at(self, path: bytes) -> MountEntry | None:
        """The mount that holds an absolute path without symlinks; None in an empty table."""
        known = {entry.mount_id for entry in self.entries}
        roots = [
            entry
            for entry in self.entries
            if is_at_or_below(path, entry.mountpoint)
            and (entry.parent_id not in known or entry.parent_id == entry.mount_id)
        ]
        if not roots:
            return None
        current = min(roots, key=lambda entry: len(entry.mountpoint))
        while below := [entry for entry in self._children[current.mount_id] if is_at_or_below(path, entry.mountpoint)]:
            # the walk down the path meets the nearest mount point first, and one on the mount's own root before all
            current = min(below, key=lambda entry: len(entry.mountpoint))
        return current

    def is_visible(self, entry: MountEntry) -> bool:
        """Whether nothing is mounted over it or over a directory above it."""
        return self.at(entry.mountpoint) is entry


class MountWatch:
    """Becomes readable whenever mounts of this namespace came or went.

    mountinfo is always ready for reading and reports a change as POLLPRI and POLLERR once per open file (mounts_poll,
    fs/proc_namespace.c). ``fileno`` is an epoll descriptor around it, so that a selector or an event loop can wait
    for it as for anything else. Waiting for it takes the notice: it is readable once per change.
    """

    def __init__(self) -> None:
        self._file = os.open(MOUNTINFO, os.O_RDONLY | os.O_CLOEXEC)
        self._epoll = select.epoll()
        self._epoll.register(self._file, select.EPOLLPRI | select.EPOLLERR)

    def fileno(self) -> int:
        """The descriptor to wait for."""
        return self._epoll.fileno()

    def wait(self, timeout: float) -> bool:
        """Whether mounts changed since the last notice; waits up to ``timeout`` seconds for it."""
        return bool(self._epoll.poll(timeout))

    def close(self) -> None:
        """Stop watching; may be called twice."""
        if not self._epoll.closed:
            self._epoll.close()
            os.close(self._file)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
