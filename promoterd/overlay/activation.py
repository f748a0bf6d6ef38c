"""Making a mark take effect on the live mount, and proving from the outside that it has."""

import errno
import os
import time
from collections.abc import Callable, Iterable
from typing import TypeVar

from promoterd.overlay import beneath, syscalls
from promoterd.overlay.listing import Layers
from promoterd.overlay.mounts import Overlay
from promoterd.paths import parent

T = TypeVar("T")

TRIES = 20
"""How many reconfigures something may take before it counts as held: anybody may look in at the moment of one."""
_PAUSE = 0.05

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


def reconfigure_until(overlay: Overlay, things: Iterable[T], done: Callable[[T], bool]) -> list[T]:
    """Reconfigure until all of these are done, once at least; those that are held. Raises OSError, MountGone."""
    left = list(things)
    for _ in range(TRIES):
        reconfigure(overlay)
        left = [thing for thing in left if not done(thing)]
        if not left:
            break
        time.sleep(_PAUSE)
    return left


def is_let_go(root: int, path: bytes) -> bool:
    """Whether the overlay shows something else, or nothing, for an entry that was removed from upper.

    A dentry that is held at a reconfigure stays, for everybody, and shows what was removed: without a link
    (ovl_getattr() passes that of a file on), or with an error (EIO, ESTALE) where its data or the directory's lower one
    are gone. So what cannot be looked at counts as held.
    """
    try:
        with beneath.opened(root, parent(path)) as above:
            return os.stat(path.rpartition(b"/")[2], dir_fd=above, follow_symlinks=False).st_nlink > 0
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False


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
