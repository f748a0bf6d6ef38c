"""Extended attributes that overlayfs reads, and our own beside them.

The kernel keeps every ``trusted.overlay.*`` attribute private: it is neither listed nor read through the mount
(ovl_is_private_xattr, fs/overlayfs/xattrs.c), which is why our own provenance lives under that prefix.
"""

import errno
import os
import stat

OPAQUE = "trusted.overlay.opaque"
REDIRECT = "trusted.overlay.redirect"
METACOPY = "trusted.overlay.metacopy"
ORIGIN = "trusted.overlay.origin"
WHITEOUT = "trusted.overlay.whiteout"
PROVENANCE = "trusted.overlay.promoterd.mark"
ANCESTOR = "trusted.overlay.promoterd.ancestor"
TIMES = "trusted.overlay.promoterd.times"
DATA = "trusted.overlay.promoterd.data"
TAKEN = "trusted.overlay.promoterd.taken"
LATE = "trusted.overlay.promoterd.late"
UPPER_ID = "trusted.overlay.promoterd.id"

OPAQUE_YES, OPAQUE_XWHITEOUTS, OPAQUE_FINALIZED = b"y", b"x", b"z"

_ABSENT = (errno.ENODATA, errno.EOPNOTSUPP, errno.ENOSYS)


def entry(directory: int, name: str | bytes) -> bytes:
    """A path that the xattr calls accept for an entry of an open directory, also of one opened with O_PATH."""
    return b"/proc/self/fd/%d/%s" % (directory, os.fsencode(name))


def descriptor(directory: int) -> bytes:
    """A path that the xattr calls accept for an open directory, also for one opened with O_PATH."""
    return b"/proc/self/fd/%d" % directory


def _follows(path: bytes) -> bool:
    """A bare descriptor is a magic link and has to be followed; an entry never is, symlinks can be anywhere."""
    return path.count(b"/") == 4  # noqa: PLR2004 - /proc/self/fd/N


def get(path: bytes, attribute: str) -> bytes | None:
    """The value, or None where the attribute or the file system's support for it is absent. Raises OSError.

    ``path`` comes from :func:`entry` or :func:`descriptor`, here and below.
    """
    try:
        return os.getxattr(path, attribute, follow_symlinks=_follows(path))
    except OSError as error:
        if error.errno in _ABSENT:
            return None
        raise


def put(path: bytes, attribute: str, value: bytes) -> None:
    """Set an attribute, whether or not it was there. Raises OSError."""
    os.setxattr(path, attribute, value, follow_symlinks=_follows(path))


def remove(path: bytes, attribute: str) -> bool:
    """Remove an attribute; False where it was not there. Raises OSError."""
    try:
        os.removexattr(path, attribute, follow_symlinks=_follows(path))
    except OSError as error:
        if error.errno in _ABSENT:
            return False
        raise
    return True


def has_trusted(directory: int) -> bool:
    """Whether the file system of an open directory can hold trusted attributes at all (NFS and most FUSE cannot)."""
    try:
        os.getxattr(descriptor(directory), OPAQUE)
    except OSError as error:
        return error.errno == errno.ENODATA
    return True


def stat_is_whiteout(mode: int, rdev: int) -> bool:
    """Whether an inode is a whiteout: a character device 0:0 (overlayfs.rst, whiteouts and opaque directories)."""
    return rdev == 0 and stat.S_ISCHR(mode)
