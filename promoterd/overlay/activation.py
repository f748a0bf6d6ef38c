"""Making a mark take effect on the live mount, and proving from the outside that it has."""

import errno
import os
from collections.abc import Iterable

from promoterd.overlay import beneath, syscalls
from promoterd.overlay.listing import Layers
from promoterd.overlay.mounts import Overlay

_FLAGS = {
    os.ST_RDONLY: syscalls.MS_RDONLY,
    os.ST_NOSUID: syscalls.MS_NOSUID,
    os.ST_NODEV: syscalls.MS_NODEV,
    os.ST_NOEXEC: syscalls.MS_NOEXEC,
    os.ST_NOATIME: syscalls.MS_NOATIME,
    os.ST_NODIRATIME: syscalls.MS_NODIRATIME,
    os.ST_RELATIME: syscalls.MS_RELATIME,
    0x2000: 0x100,  # ST_NOSYMFOLLOW, MS_NOSYMFOLLOW (include/linux/statfs.h, include/uapi/linux/mount.h)
}


def reconfigure(overlay: Overlay) -> None:
    """Drop this overlay's unused dentries by a no-op reconfigure; the layers' caches stay.

    Where fspick(2) does not exist: MS_REMOUNT with the flags that the mount has. Raises OSError, MountGone.
    """
    root = beneath.open_mount_root(overlay.mountpoint, overlay.device)
    try:
        syscalls.reconfigure_superblock(root)
    except OSError as error:
        if error.errno != errno.ENOSYS:
            raise
        flags = os.fstatvfs(root).f_flag
        same = sum(mount_flag for flag, mount_flag in _FLAGS.items() if flags & flag)
        syscalls.mount(b"none", overlay.mountpoint, b"", syscalls.MS_REMOUNT | same)
    finally:
        os.close(root)


def mark_in_effect(root: int, upper: int, path: bytes) -> bool | None:
    """Whether lookups at ``path`` have stopped asking the lower layers; None where the file system gives no proof.

    A merged directory reports one link, a pure upper one the upper directory's own count, which is two or more
    (ovl_getattr, fs/overlayfs/inode.c) except on btrfs. st_ino proves nothing: without xino it moves by itself (R13).
    """
    with beneath.opened(upper, path) as directory:
        if os.fstat(directory).st_nlink < 2:  # noqa: PLR2004 - "." and the name itself
            return None
    with beneath.opened(root, path) as directory:
        return os.fstat(directory).st_nlink > 1


def inodes(layers: Layers, paths: Iterable[bytes]) -> dict[bytes, int]:
    """The inode numbers that the overlay shows for directories; those that it does not show are left out.

    A number is drawn when the overlay makes the inode (get_next_ino, without xino). Another number than before a
    reconfigure therefore means that the layers were looked up anew since.
    """
    found = {}
    for path in paths:
        try:
            with beneath.opened(layers.root, path) as directory:
                found[path] = os.fstat(directory).st_ino
        except OSError:
            continue
    return found
