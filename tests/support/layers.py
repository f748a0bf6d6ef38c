"""A metadata layer filled by hand, in the format that the layer backend writes, for tests of what stands around it."""

import os
import shutil
import stat

from promoterd.overlay import xattrs
from promoterd.paths import ancestors, join
from support.overlays import MountedOverlay


def complete(mounted: MountedOverlay, path: bytes) -> None:
    """Build a directory of the first server layer, without those in it, as complete; cool the overlay afterwards.

    Files become stubs, other entries are made anew, child directories lead to the server's.
    """
    source = mounted.layers[0] + b"/" + path
    for above in ancestors(path):
        for half in (mounted.in_files(above), mounted.in_rest(above)):
            os.makedirs(half, exist_ok=True)
        os.setxattr(mounted.in_rest(above), xattrs.REDIRECT, b"/" + above)
    for half in (mounted.in_files(path), mounted.in_rest(path)):
        os.makedirs(half, exist_ok=True)
    with os.scandir(source) as entries:
        for entry in entries:
            _shadow(mounted, join(path, entry.name), entry)
    for half in (mounted.in_files(path), mounted.in_rest(path)):
        _alike(source, half)
    os.setxattr(mounted.in_rest(path), xattrs.REDIRECT, b"/" + path)
    os.setxattr(mounted.in_rest(path), xattrs.OPAQUE, xattrs.OPAQUE_YES)


def _shadow(mounted: MountedOverlay, path: bytes, entry: os.DirEntry[bytes]) -> None:
    if entry.is_file(follow_symlinks=False):
        stub = mounted.in_files(path)
        with open(stub, "wb") as file:
            file.truncate(entry.stat(follow_symlinks=False).st_size)
        os.setxattr(stub, xattrs.METACOPY, b"")
        os.setxattr(stub, xattrs.REDIRECT, b"/" + path)
        _alike(entry.path, stub)
    elif entry.is_dir(follow_symlinks=False):
        os.mkdir(mounted.in_rest(path))
        os.setxattr(mounted.in_rest(path), xattrs.REDIRECT, b"/" + path)
        _alike(entry.path, mounted.in_rest(path))
    elif entry.is_symlink():
        os.symlink(os.readlink(entry.path), mounted.in_rest(path))
        _alike(entry.path, mounted.in_rest(path))
    else:
        status = entry.stat(follow_symlinks=False)
        os.mknod(mounted.in_rest(path), status.st_mode, status.st_rdev)
        _alike(entry.path, mounted.in_rest(path))


def _alike(source: bytes, copy: bytes) -> None:
    status = os.lstat(source)
    os.chown(copy, status.st_uid, status.st_gid, follow_symlinks=False)
    if not stat.S_ISLNK(status.st_mode):
        shutil.copymode(source, copy)
    os.utime(copy, ns=(status.st_atime_ns, status.st_mtime_ns), follow_symlinks=False)
