"""Copies of files' data in the layer, and what stands beside each: the state of the server's file that it is of.

A copy is a whole file: without metacopy and redirect, overlayfs reads it where it lies. It is made only of what stands
still: size, times and inode, asked of the server before and after, have to be those that were expected.
"""

import hashlib
import os
import stat
from contextlib import suppress
from dataclasses import dataclass

from promoterd import records
from promoterd.backends.layer import entries
from promoterd.overlay import beneath, syscalls, xattrs
from promoterd.overlay.attributes import Attributes
from promoterd.overlay.syscalls import Statx
from promoterd.pacing import owe

_CHUNK = 1 << 16
_REQUESTS, _PER_REQUEST = 3, _CHUNK


@dataclass(frozen=True, slots=True)
class Copy:
    """Of which state of the server's file the data is (nanoseconds, bytes), and its digest, for fsck."""

    ctime_ns: int
    mtime_ns: int
    inode: int
    size: int
    sha256: str

    def encode(self) -> bytes:
        """The attribute's value."""
        return records.encode(
            ctime=self.ctime_ns, mtime=self.mtime_ns, inode=self.inode, size=self.size, sha256=self.sha256
        )

    def is_of(self, found: Attributes) -> bool:
        """Whether the server's file still is what was copied. Its size and mtime alone would not tell."""
        return (self.ctime_ns, self.mtime_ns, self.inode, self.size) == (
            found.ctime_ns,
            found.mtime_ns,
            found.inode,
            found.size,
        )


def decode(value: bytes | None) -> Copy | None:
    """The record in an attribute's value; None where there is none that this version can read."""
    return records.decode(
        value,
        lambda fields: Copy(
            int(fields["ctime"]),
            int(fields["mtime"]),
            int(fields["inode"]),
            int(fields["size"]),
            str(fields["sha256"]),
        ),
    )


def copy_at(directory: int, name: str) -> Copy | None:
    """The record of a copy in the files half; None for a stub. Raises OSError."""
    return decode(xattrs.get(xattrs.entry(directory, name), xattrs.DATA))


def cost(size: int) -> int:
    """What copying a file of this size asks of the server, in entries: open, read and close, and more to read."""
    return _REQUESTS + size // _PER_REQUEST


def now_at(lower: int, name: str) -> Attributes | None:
    """What a file is on the server now, asked anew; None where there is none. Raises OSError."""
    try:
        found = syscalls.statx(lower, name, force_sync=True)
    except FileNotFoundError:
        return None
    return Attributes(
        0,
        found.mode,
        found.uid,
        found.gid,
        found.nlink,
        0,
        found.size,
        found.atime_ns,
        found.mtime_ns,
        found.ctime_ns,
        found.ino,
    )


def pull(lower: int, name: str, expected: Attributes, directory: int, target: str, extra: entries.Xattrs = ()) -> bool:
    """Make ``target``, a file with the data of lower's file ``name``, which has to be what is ``expected``.

    False, with nothing left behind, where it is not, or does not stay so, or cannot be read. Raises OSError for what
    the layer's file system refuses.
    """
    file = os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=directory)
    try:
        digest = _copy(lower, name, expected, file)
        if digest is not None:
            record = Copy(expected.ctime_ns, expected.mtime_ns, expected.inode, expected.size, digest)
            os.setxattr(file, xattrs.DATA, record.encode())
            entries.dress(file, expected, extra)
            return True
    except BaseException:
        _discard(directory, target)
        raise
    finally:
        os.close(file)
    _discard(directory, target)
    return False


def _copy(lower: int, name: str, expected: Attributes, file: int) -> str | None:
    """Copy the data and return its digest; None where the server's file is, or becomes, another, or is denied."""
    digest = hashlib.sha256()
    copied = 0
    owe(cost(expected.size))
    try:
        source = _open_source(lower, name, expected)
    except OSError:
        return None
    if source < 0:
        return None
    try:
        os.posix_fadvise(source, 0, 0, os.POSIX_FADV_DONTNEED)  # what the client knows of it may be older
        # no readahead, which would be several READs at once: what is asked for is read (force_page_cache_ra())
        os.posix_fadvise(source, 0, 0, os.POSIX_FADV_RANDOM)
        while copied <= expected.size:
            try:
                data = os.read(source, _CHUNK)
            except OSError:
                return None
            if not data:
                break
            digest.update(data)
            _write(file, data)
            copied += len(data)
        os.posix_fadvise(source, 0, 0, os.POSIX_FADV_DONTNEED)  # nobody else reads it there
    finally:
        os.close(source)
    try:
        after = syscalls.statx(lower, name, force_sync=True)
    except OSError:
        return None
    return digest.hexdigest() if copied == expected.size and _is_as(after, expected) else None


def _open_source(lower: int, name: str, expected: Attributes) -> int:
    """Lower's file, opened for reading; -1 where it is not what is expected, whatever has taken its place.

    It is looked at before it is opened: opening a device or a fifo does something. Raises OSError.
    """
    with beneath.opened(lower, os.fsencode(name), os.O_PATH) as handle:
        if not _is_as(syscalls.statx(handle, force_sync=True), expected):
            return -1
        itself = xattrs.descriptor(handle)
        try:
            return os.open(itself, os.O_RDONLY | os.O_NOATIME | os.O_CLOEXEC)
        except PermissionError:  # not ours, and without CAP_FOWNER (open(2), O_NOATIME)
            return os.open(itself, os.O_RDONLY | os.O_CLOEXEC)


def _is_as(found: Statx, expected: Attributes) -> bool:
    return stat.S_ISREG(found.mode) and (found.mode, found.size, found.mtime_ns, found.ctime_ns, found.ino) == (
        expected.mode,
        expected.size,
        expected.mtime_ns,
        expected.ctime_ns,
        expected.inode,
    )


def _write(file: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(file, view) :]


def _discard(directory: int, name: str) -> None:
    with suppress(FileNotFoundError):
        os.unlink(name, dir_fd=directory)
