"""System calls that the standard library does not offer, through libc.

Numbers of the new-style calls are the same on every architecture but alpha (``include/uapi/asm-generic/unistd.h``).
Every function raises OSError with the kernel's errno.
"""

import ctypes
import errno
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass

_libc = ctypes.CDLL(None, use_errno=True)

_SYS_FSCONFIG, _SYS_FSPICK, _SYS_OPENAT2 = 431, 433, 437
_FSPICK_CLOEXEC, _FSPICK_NO_AUTOMOUNT, _FSPICK_EMPTY_PATH = 0x1, 0x4, 0x8
_FSCONFIG_CMD_RECONFIGURE = 7
_AT_FDCWD = -100
_AT_SYMLINK_NOFOLLOW, _AT_EMPTY_PATH = 0x100, 0x1000
_AT_STATX_FORCE_SYNC, _AT_STATX_DONT_SYNC = 0x2000, 0x4000
_STATX_BASIC_STATS, _STATX_BTIME, _STATX_MNT_ID = 0x7FF, 0x800, 0x1000
_UTIME_OMIT = (1 << 30) - 2
_RENAME_EXCHANGE = 2

RESOLVE_NO_XDEV, RESOLVE_NO_MAGICLINKS, RESOLVE_NO_SYMLINKS, RESOLVE_BENEATH = 0x1, 0x2, 0x4, 0x8
STATX_ATTR_IMMUTABLE, STATX_ATTR_APPEND = 0x10, 0x20

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT = 1, 2, 4, 8, 32
MS_NOATIME, MS_NODIRATIME, MS_BIND, MS_REC, MS_PRIVATE, MS_RELATIME = 1024, 2048, 4096, 16384, 1 << 18, 1 << 21
MNT_DETACH = 2
CLONE_NEWNS = 0x00020000

NANOSECONDS = 1_000_000_000


def _check(result: int, *what: bytes | str) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), *(os.fsdecode(name) for name in what))
    return result


class _Timespec(ctypes.Structure):
    _fields_ = (("tv_sec", ctypes.c_long), ("tv_nsec", ctypes.c_long))


class _OpenHow(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


_Times = _Timespec * 2


def utimensat_keep_mtime(directory: int, name: bytes | str, atime_ns: int) -> None:
    """Set the access time and omit the modification time, never following a symlink: a copy-up that changes nothing.

    ``os.utime`` cannot say UTIME_OMIT, and two UTIME_OMIT would copy nothing up at all (utimensat(2)).
    """
    times = _Times(_Timespec(atime_ns // NANOSECONDS, atime_ns % NANOSECONDS), _Timespec(0, _UTIME_OMIT))
    raw = os.fsencode(name)
    if raw:
        _check(_libc.utimensat(directory, raw, times, _AT_SYMLINK_NOFOLLOW), raw)
    else:
        _check(_libc.futimens(directory, times))


def openat2(directory: int, path: bytes, flags: int, resolve: int) -> int:
    """openat2(2), Linux 5.6: open ``path`` below ``directory`` under the RESOLVE_* constraints."""
    how = _OpenHow(flags | os.O_CLOEXEC, 0, resolve)
    return _check(
        _libc.syscall(_SYS_OPENAT2, directory, ctypes.c_char_p(path), ctypes.byref(how), ctypes.sizeof(how)), path
    )


def reconfigure_superblock(root: int) -> None:
    """A no-op reconfigure of the file system below the descriptor ``root``: no option and no mount flag changes.

    reconfigure_super() calls shrink_dcache_sb(), which drops the unused dentries of this superblock and of no other
    (fs/super.c). Needs fspick(2), Linux 5.2, and CAP_SYS_ADMIN.
    """
    context = _check(
        _libc.syscall(
            _SYS_FSPICK,
            root,
            ctypes.c_char_p(b""),
            ctypes.c_uint(_FSPICK_CLOEXEC | _FSPICK_NO_AUTOMOUNT | _FSPICK_EMPTY_PATH),
        )
    )
    try:
        _check(_libc.syscall(_SYS_FSCONFIG, context, _FSCONFIG_CMD_RECONFIGURE, None, None, 0))
    finally:
        os.close(context)


def mount(source: bytes, target: bytes, fstype: bytes, flags: int = 0, data: bytes = b"") -> None:
    """mount(2)."""
    _check(_libc.mount(source or None, target, fstype or None, ctypes.c_ulong(flags), data or None), target)


def umount(target: bytes, flags: int = 0) -> None:
    """umount2(2)."""
    _check(_libc.umount2(target, flags), target)


def unshare_mounts() -> None:
    """Give this process a mount namespace of its own, from which nothing propagates back (unshare(2))."""
    _check(_libc.unshare(CLONE_NEWNS))
    mount(b"none", b"/", b"", MS_REC | MS_PRIVATE)


def exchange(first: int, first_name: bytes | str, second: int, second_name: bytes | str) -> None:
    """Swap two entries, of whatever types, so that neither name is missing at any instant (RENAME_EXCHANGE)."""
    one, other = os.fsencode(first_name), os.fsencode(second_name)
    _check(_libc.renameat2(first, one, second, other, ctypes.c_uint(_RENAME_EXCHANGE)), one, other)


def syncfs(descriptor: int) -> None:
    """Write back the whole file system that the descriptor lies on; errors of the write-back are raised (syncfs(2))."""
    _check(_libc.syncfs(descriptor))


@dataclass(frozen=True, slots=True)
class Statx:
    """What statx(2) tells; times in nanoseconds, a birth that is not kept 0.

    ``attributes`` are STATX_ATTR_*, of those in ``attributes_mask``.
    """

    mode: int
    nlink: int
    uid: int
    gid: int
    ino: int
    size: int
    blocks: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int
    btime_ns: int
    dev: tuple[int, int]
    rdev: tuple[int, int]
    attributes: int
    attributes_mask: int
    mount_id: int


# struct statx, include/uapi/linux/stat.h
_ATTRIBUTES = struct.Struct("=Q")
_STATX = struct.Struct("=IIQIIIHxxQQQQqIxxxxqIxxxxqIxxxxqIxxxxIIIIQ")


def statx(directory: int, name: bytes | str = b"", *, force_sync: bool = False, no_sync: bool = False) -> Statx:
    """statx(2) of an entry, or of the directory itself, never following a symlink.

    ``force_sync`` asks the server even where the NFS client's attribute cache would answer (AT_STATX_FORCE_SYNC);
    ``no_sync`` asks nobody, and takes what is known, of whatever age (AT_STATX_DONT_SYNC).
    """
    buffer = ctypes.create_string_buffer(256)
    sync = _AT_STATX_FORCE_SYNC if force_sync else _AT_STATX_DONT_SYNC if no_sync else 0
    flags = _AT_SYMLINK_NOFOLLOW | _AT_EMPTY_PATH | sync
    raw = os.fsencode(name)
    _check(_libc.statx(directory, raw, flags, _STATX_BASIC_STATS | _STATX_BTIME | _STATX_MNT_ID, buffer), raw)
    (
        _mask, _blksize, attributes, nlink, uid, gid, mode, ino, size, blocks, attributes_mask,
        atime, atime_ns, btime, btime_ns, ctime, ctime_ns, mtime, mtime_ns,
        rdev_major, rdev_minor, dev_major, dev_minor, mount_id,
    ) = _STATX.unpack_from(buffer)  # fmt: skip
    return Statx(
        mode, nlink, uid, gid, ino, size, blocks,
        atime * NANOSECONDS + atime_ns, mtime * NANOSECONDS + mtime_ns, ctime * NANOSECONDS + ctime_ns,
        btime * NANOSECONDS + btime_ns,
        (dev_major, dev_minor), (rdev_major, rdev_minor), attributes, attributes_mask, mount_id,
    )  # fmt: skip


def attributes_of(directory: int) -> Callable[[str], int]:
    """A function that tells an entry's STATX_ATTR_*, never following a symlink; for one thread.

    It costs a third of what :func:`statx` does.
    """
    buffer = ctypes.create_string_buffer(256)

    def attributes(name: str) -> int:
        _check(_libc.statx(directory, os.fsencode(name), _AT_SYMLINK_NOFOLLOW, 0, buffer), name)
        found: int = _ATTRIBUTES.unpack_from(buffer, 8)[0]
        return found

    return attributes


def is_unsupported(error: OSError) -> bool:
    """Whether an error says that the kernel or the file system does not know the call."""
    return error.errno in (errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
