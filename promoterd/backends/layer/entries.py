"""One entry of a metadata layer: making it, and telling whether one that is there still is what lower has.

A file is a stub as in composefs: sparse, of the right size, with ``trusted.overlay.metacopy`` and an absolute redirect
that only the data-only layer resolves (overlayfs.rst, data-only lower layers). Everything else is what it is.
"""

import errno
import os
import stat
from collections.abc import Iterable

from promoterd.errors import Refused
from promoterd.overlay import xattrs
from promoterd.overlay.attributes import Attributes
from promoterd.paths import display, show

_NOT_OURS_TO_COPY = ("trusted.overlay.", "trusted.SGI_ACL_", "system.nfs4_acl", "security.selinux")
"""Private to overlayfs; other forms of a mode and an ACL; and a label, of which the policy is this machine's."""
ACCESS_ACL = "system.posix_acl_access"
CAPABILITY = "security.capability"

Xattrs = tuple[tuple[str, bytes], ...]
Dressed = tuple[Attributes, Xattrs]
"""What a directory is to look like."""


def read_xattrs(path: bytes) -> Xattrs:
    """The attributes that an entry of lower carries into the layer; ``path`` as :func:`promoterd.overlay.xattrs.entry`.

    Over NFS one request for the list, unless the mount knows of none, and one for each attribute. Raises OSError.
    """
    try:
        names = os.listxattr(path, follow_symlinks=path.count(b"/") == 4)  # noqa: PLR2004 - /proc/self/fd/N
    except OSError as error:
        if error.errno in (errno.EOPNOTSUPP, errno.ENOSYS):
            return ()
        raise
    wanted = [name for name in sorted(names) if not name.startswith(_NOT_OURS_TO_COPY)]
    return tuple((name, value) for name in wanted if (value := xattrs.get(path, name)) is not None)


def make_stub(directory: int, name: str, found: Attributes, redirect: bytes, extra: Xattrs = ()) -> None:
    """A file without data, whose data overlayfs finds at ``redirect``. Raises OSError; EFBIG where it is too large."""
    file = os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=directory)
    try:
        os.ftruncate(file, found.size)
        os.setxattr(file, xattrs.METACOPY, b"")
        os.setxattr(file, xattrs.REDIRECT, redirect)
        dress(file, found, extra)
    finally:
        os.close(file)


def dress(file: int, found: Attributes, extra: Xattrs = ()) -> None:
    """Give an open file or directory its owner, mode, attributes and times.

    In this order: a new owner takes away set-id bits and capabilities, and everything changes the times.
    """
    if (found.uid, found.gid) != (0, 0):
        os.fchown(file, found.uid, found.gid)
    os.fchmod(file, stat.S_IMODE(found.mode))
    for name, value in extra:
        os.setxattr(file, name, value)
    os.utime(file, ns=(found.atime_ns, found.mtime_ns))


def redress(directory: int, found: Attributes, extra: Xattrs | None) -> None:
    """As :func:`dress` for a directory that was dressed before; without ``extra`` it keeps its attributes."""
    itself = xattrs.descriptor(directory)
    if extra is not None:
        for name, _ in read_xattrs(itself):
            if name not in dict(extra):
                xattrs.remove(itself, name)
    os.chown(itself, found.uid, found.gid)
    os.chmod(itself, stat.S_IMODE(found.mode))
    for name, value in extra or ():
        xattrs.put(itself, name, value)
    os.utime(itself, ns=(found.atime_ns, found.mtime_ns))


def make_other(directory: int, name: str, found: Attributes, target: str, extra: Xattrs = ()) -> None:
    """A symlink (to ``target``), device, fifo or socket. Raises OSError."""
    if stat.S_ISLNK(found.mode):
        os.symlink(target, name, dir_fd=directory)
    else:
        os.mknod(name, stat.S_IFMT(found.mode) | 0o600, found.rdev, dir_fd=directory)
        os.chmod(xattrs.entry(directory, name), stat.S_IMODE(found.mode))
    if (found.uid, found.gid) != (0, 0):
        os.chown(name, found.uid, found.gid, dir_fd=directory, follow_symlinks=False)
        if not stat.S_ISLNK(found.mode):
            os.chmod(xattrs.entry(directory, name), stat.S_IMODE(found.mode))
    for attribute, value in extra:
        xattrs.put(xattrs.entry(directory, name), attribute, value)
    os.utime(name, ns=(found.atime_ns, found.mtime_ns), dir_fd=directory, follow_symlinks=False)


def make_directory(directory: int, name: str | bytes, found: Attributes, redirect: bytes, extra: Xattrs = ()) -> None:
    """A directory that is merged with lower's of the path ``redirect``; empty for one without a redirect."""
    os.mkdir(name, 0o700, dir_fd=directory)
    opened = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
    try:
        if redirect:
            os.setxattr(opened, xattrs.REDIRECT, redirect)
        dress(opened, found, extra)
    finally:
        os.close(opened)


def is_current(there: os.stat_result, found: Attributes) -> bool:
    """Whether an entry of the layer has lower's type, size, owner, mode, time and device; directories are not timed."""
    if (there.st_mode, there.st_uid, there.st_gid) != (found.mode, found.uid, found.gid):
        return False
    if stat.S_ISDIR(found.mode):
        return True
    if there.st_mtime_ns != found.mtime_ns or there.st_rdev != found.rdev:
        return False
    return there.st_size == found.size


def check_times_fit(there: os.stat_result, found: Attributes, path: bytes) -> None:
    """Raise Refused where the layer's file system cannot keep a modification time as lower has it."""
    if there.st_mtime_ns != found.mtime_ns:
        raise Refused(
            path=show(path),
            reason="the layer's file system does not keep its modification time to the nanosecond",
            hint="put the metadata layer on ext4 with inodes of 256 bytes or more, xfs, btrfs or tmpfs",
        )


def explain_failure(error: OSError, directory: bytes, name: str) -> Refused | None:
    """What an error means that no later attempt would change; None for every other one."""
    where = f"{show(directory)}/{display(os.fsencode(name))}"
    reasons = {
        errno.EFBIG: ("is larger than the layer's file system allows", "put the metadata layer on xfs"),
        errno.ENAMETOOLONG: ("has a longer name than the layer's file system allows", "put the layer on ext4 or xfs"),
        errno.EPERM: (
            "is a device node or has capabilities, which this process may not make",
            "add CAP_MKNOD or CAP_SETFCAP to what it may",
        ),
        errno.EOPNOTSUPP: (
            "has an ACL or another attribute that the layer's file system does not keep",
            "mount that with ACLs and user attributes, or say `xattrs: skip` in its rule if nothing needs them",
        ),
        errno.EOVERFLOW: ("has an owner that this machine cannot represent", "exclude it with `promote: never`"),
    }
    if error.errno not in reasons:
        return None
    what, hint = reasons[error.errno]
    return Refused(path=show(directory), reason=f"{where} {what}", hint=hint)


def reports_acls(path: bytes) -> Iterable[str]:
    """Which of the attributes that change who may do what a lower file system keeps, by asking for them at ``path``."""
    for attribute in (ACCESS_ACL, CAPABILITY):
        try:
            os.getxattr(path, attribute)
        except OSError as error:
            if error.errno != errno.ENODATA:
                continue
        yield attribute
