"""One writer per upper layer (R12), and who else has it mounted."""

import contextlib
import fcntl
import os
from collections.abc import Iterable, Iterator, Sequence
from types import TracebackType
from typing import Self

from promoterd.errors import AlreadyLocked
from promoterd.overlay import mountinfo
from promoterd.overlay.beneath import READ_DIRECTORY
from promoterd.overlay.mounts import ModuleDefaults, Overlay, overlay_of
from promoterd.paths import display

_LOCKS = "/proc/locks"
_FLOCK_FIELDS = 6
_LONGEST_COMMAND = 120


class WriterLock:
    """The exclusive right to change an upper layer: flock(2) on its root directory, gone with the process.

    It holds one descriptor on the upper file system and none on the overlay. Raises AlreadyLocked, naming the holder,
    and OSError where the directory cannot be opened.
    """

    def __init__(self, upper: bytes) -> None:
        self.upper = upper
        self._descriptor: int | None = None

    @property
    def held(self) -> bool:
        """Whether this object holds the lock."""
        return self._descriptor is not None

    def acquire(self) -> None:
        """Take the lock, or raise at once."""
        if self._descriptor is not None:
            return
        descriptor = os.open(self.upper, READ_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = _holder(descriptor) or "it cannot be seen from here which"
            raise AlreadyLocked(upper=display(self.upper), holder=holder) from None
        else:
            self._descriptor, descriptor = descriptor, -1
        finally:
            if descriptor >= 0:
                os.close(descriptor)

    def release(self) -> None:
        """Give the lock back; may be called without holding it."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def writer_of(upper: bytes) -> str:
    """Who holds the lock on an upper layer; empty if nobody does. Raises OSError."""
    descriptor = os.open(upper, READ_DIRECTORY | os.O_CLOEXEC)
    try:
        return _holder(descriptor)
    finally:
        os.close(descriptor)


def _holder(descriptor: int) -> str:
    """The process that /proc/locks names for this inode, with its command."""
    status = os.fstat(descriptor)
    device = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}"
    others: list[int] = []
    for pid, where, inode in _flocks():
        if inode != status.st_ino:
            continue
        if where == device:
            return describe_process(pid)
        others.append(pid)
    # /proc/locks has the superblock's device number (lock_get_status, fs/locks.c), a btrfs subvolume one of its own
    return describe_process(others[0]) if others and _has_private_device(status.st_dev) else ""


def _flocks() -> Iterator[tuple[int, str, int]]:
    with contextlib.suppress(OSError), open(_LOCKS) as file:
        for line in file:
            fields = line.split()
            if len(fields) >= _FLOCK_FIELDS and fields[1] == "FLOCK":
                major, minor, inode = fields[5].split(":")
                yield int(fields[4]), f"{major}:{minor}", int(inode)


def _has_private_device(device: int) -> bool:
    return os.major(device) == 0 and all(entry.device != (0, os.minor(device)) for entry in mountinfo.read())


def describe_process(pid: int) -> str:
    """``pid 123 (promoterd run)``; a process of another pid namespace has no number here."""
    if pid <= 0:
        return "a process of another pid namespace"
    command = b""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/cmdline", "rb") as file:
        command = file.read(4096).replace(b"\0", b" ").strip()
    text = display(command)
    text = text if len(text) <= _LONGEST_COMMAND else text[: _LONGEST_COMMAND - 1] + "…"
    return f"pid {pid} ({text})" if text else f"pid {pid}"


def second_users(overlay: Overlay) -> list[str]:
    """Other overlays, of any mount namespace that a process lives in, on this one's upper, work or layer directories.

    The kernel only warns of that unless index=on (ovl_get_upper, fs/overlayfs/super.c). The same superblock in another
    place is the same overlay. What runs in a namespace that may not be looked at is left out.
    """
    ours = [path for path in (overlay.upper, overlay.work, *overlay.metadata) if path is not None]
    found: dict[tuple[int, int], str] = {}
    for pid, other, table in _overlays_everywhere():
        if other.device != overlay.device:
            _note_users(ours, pid, table, other, (other.upper, other.work, *other.metadata), found)
    return sorted(found.values())


def users_of(directory: bytes) -> list[str]:
    """Overlays, of any mount namespace that a process lives in, that have a directory as a layer, upper or lower.

    One that was mounted with a relative path counts if that could mean the directory. One that was detached from its
    mount point while in use (``umount -l``) is in no mount table, and cannot be found.
    """
    found: dict[tuple[int, int], str] = {}
    for pid, other, table in _overlays_everywhere():
        relative = any(
            not path.startswith(b"/") and (b"/" + directory).endswith(b"/" + path.removeprefix(b"./"))
            for path in other.layers
        )
        if relative:
            found.setdefault(
                other.device, f"the overlay at {display(other.mountpoint)}{_whose(pid)}, by a relative path"
            )
        _note_users([directory], pid, table, other, other.layers, found)
    return sorted(found.values())


def _overlays_everywhere() -> Iterator[tuple[str, Overlay, mountinfo.MountTree]]:
    """Overlays with a process that sees them, and the mount table that it sees them in."""
    defaults = ModuleDefaults.read()
    for pid in _one_process_per_namespace():
        with contextlib.suppress(OSError):
            table = mountinfo.MountTree(mountinfo.read(pid))
            for entry in table.entries:
                if entry.fstype == "overlay":
                    yield pid, overlay_of(entry, defaults), table


def _note_users(
    ours: Sequence[bytes],
    pid: str,
    table: mountinfo.MountTree,
    other: Overlay,
    paths: Iterable[bytes | None],
    found: dict[tuple[int, int], str],
) -> None:
    inodes = {path: _inode(path) for path in ours}
    for path in paths:
        if path is None or other.device in found or not _may_be_one_of(path, table, inodes):
            continue
        shared = _shared(path, pid, inodes)
        if shared is not None:
            found[other.device] = f"the overlay at {display(other.mountpoint)}{_whose(pid)}, on {shared}"


def _may_be_one_of(path: bytes, table: mountinfo.MountTree, ours: dict[bytes, tuple[int, int] | None]) -> bool:
    """False for a layer on another network file system than ours, by the mount table: a dead server is not asked."""
    entry = table.at(path)
    if entry is None or not mountinfo.is_network(entry.fstype):
        return True
    devices = {(os.major(inode[0]), os.minor(inode[0])) for inode in ours.values() if inode is not None}
    return not devices or entry.device in devices


def _shared(path: bytes, pid: str, ours: dict[bytes, tuple[int, int] | None]) -> str | None:
    """Which of our directories another overlay's layer path means, seen from its namespace or, failing that, ours."""
    if not path.startswith(b"/"):
        return None
    inode = _inode(b"/proc/%s/root%s" % (pid.encode(), path)) or _inode(path)
    for own, own_inode in ours.items():
        if inode == own_inode if inode is not None else path == own:
            return display(own)
    return None


def _inode(path: bytes) -> tuple[int, int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _one_process_per_namespace() -> list[str]:
    """``self`` and one process for every other mount namespace."""
    seen: dict[str, str] = {}
    for pid in ["self", *(name for name in os.listdir("/proc") if name.isdigit())]:
        with contextlib.suppress(OSError):
            seen.setdefault(os.readlink(f"/proc/{pid}/ns/mnt"), pid)
    return list(seen.values())


def _whose(pid: str) -> str:
    return "" if pid == "self" else f" in the mount namespace of {describe_process(int(pid))}"
