"""Opening things inside a mount or a layer, and nowhere else (I8).

Every path is resolved by the kernel from a root descriptor, beneath it, without symlinks and without crossing into
another mount (openat2(2)); a path that is exchanged for a symlink meanwhile gives ELOOP, never another file.
"""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager

from promoterd.errors import KernelTooOld, MountGone, UsageError
from promoterd.overlay import syscalls
from promoterd.paths import display, show

_RESOLVE = (
    syscalls.RESOLVE_BENEATH | syscalls.RESOLVE_NO_SYMLINKS | syscalls.RESOLVE_NO_MAGICLINKS | syscalls.RESOLVE_NO_XDEV
)
_PATH_MAX = 4096
"""What one system call takes (limits.h), the NUL included; a path inside a mount can be longer."""
PATH_DIRECTORY = os.O_PATH | os.O_DIRECTORY
"""A descriptor to walk from: needs no permission, causes no open on the server and no inotify event."""
READ_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY


def open_root(path: bytes) -> int:
    """A descriptor of the root of a mount or layer. Raises OSError."""
    return os.open(path, PATH_DIRECTORY | os.O_CLOEXEC)


def open_mount_root(mountpoint: bytes, device: tuple[int, int]) -> int:
    """A descriptor of a mount's root, checked to be the file system with that device number.

    Raises MountGone where something else, or nothing, is mounted there.
    """
    try:
        root = open_root(mountpoint)
    except OSError as error:
        raise MountGone(mountpoint=display(mountpoint)) from error
    # an overlay's directories carry the overlay's own device number (Documentation/filesystems/overlayfs.rst, inode
    # properties), so this costs no call to the layers beyond the root's attributes
    try:
        found = syscalls.statx(root).dev
    except OSError:
        os.close(root)
        raise
    if found != device:
        os.close(root)
        raise MountGone(mountpoint=display(mountpoint))
    return root


def open_beneath(root: int, path: bytes, flags: int = PATH_DIRECTORY) -> int:
    """Open ``path`` beneath ``root``; ``b""`` is the root itself.

    Raises OSError: ENOENT, ELOOP for a symlink on the way, EXDEV for a mount point on the way, ENOTDIR.
    """
    if len(path) >= _PATH_MAX:
        cut = path.rindex(b"/", 0, _PATH_MAX)
        with opened(root, path[:cut]) as halfway:
            return open_beneath(halfway, path[cut + 1 :], flags)
    try:
        return syscalls.openat2(root, path or b".", flags | os.O_NOFOLLOW, _RESOLVE)
    except OSError as error:
        if error.errno == errno.ENOSYS:
            raise KernelTooOld(needed="openat2 (Linux 5.6)") from error
        raise


@contextmanager
def opened(root: int, path: bytes, flags: int = PATH_DIRECTORY) -> Iterator[int]:
    """:func:`open_beneath` for the length of a ``with`` block."""
    descriptor = open_beneath(root, path, flags)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def exists_beneath(root: int, path: bytes) -> bool:
    """Whether ``path`` exists as a directory beneath ``root``, reached without symlinks."""
    try:
        os.close(open_beneath(root, path))
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            return False
        raise
    return True


def status_of(directory: int, name: str | bytes) -> os.stat_result | None:
    """What an entry of an open directory is, symlinks not followed; None where there is none. Raises OSError."""
    try:
        return os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return None


def is_directory(directory: int, name: str | bytes) -> bool:
    """Whether an open directory has a directory of that name. Raises OSError."""
    status = status_of(directory, name)
    return status is not None and stat.S_ISDIR(status.st_mode)


_NO_DIRECTORY = {
    errno.ENOENT: "there is no such directory on the mount",
    errno.ENOTDIR: "it is not a directory",
    errno.ELOOP: "it is a symlink, or one lies on the way",
    errno.EXDEV: "another file system is mounted there",
    errno.ENAMETOOLONG: "the name is too long",
}


def require_directory(root: int, path: bytes) -> None:
    """Raise UsageError where there is no directory at ``path`` beneath ``root``, reached without symlinks."""
    try:
        os.close(open_beneath(root, path))
    except OSError as error:
        reason = _NO_DIRECTORY.get(error.errno or 0)
        if reason is None:
            raise
        raise UsageError(f"{show(path)}: {reason}", hint="name a directory by its path without symlinks") from error
