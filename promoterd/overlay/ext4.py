"""The size of an ext4 file system's inodes, which no system call tells: read from its superblock on the device."""

import os
import stat
import struct

from promoterd.overlay.mountinfo import MountEntry

_SUPERBLOCK = 1024
_MAGIC, _MAGIC_AT, _INODE_SIZE_AT = 0xEF53, 0x38, 0x58  # s_magic, s_inode_size: fs/ext4/ext4.h
_FIELD = struct.Struct("<H")


def inode_size(mount: MountEntry) -> int | None:
    """Bytes of each inode of a mounted file system; None where it is not ext4, or its device cannot be read here."""
    if mount.fstype != "ext4":
        return None
    try:
        device = os.open(mount.source, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return _read(device, os.makedev(*mount.device))
    except OSError:
        return None
    finally:
        os.close(device)


def _read(device: int, number: int) -> int | None:
    status = os.fstat(device)
    if not stat.S_ISBLK(status.st_mode) or status.st_rdev != number:
        return None  # in another container, or since it was mounted, the name may stand for something else
    superblock = os.pread(device, _INODE_SIZE_AT + _FIELD.size, _SUPERBLOCK)
    if len(superblock) < _INODE_SIZE_AT + _FIELD.size or _FIELD.unpack_from(superblock, _MAGIC_AT)[0] != _MAGIC:
        return None
    return int(_FIELD.unpack_from(superblock, _INODE_SIZE_AT)[0])
