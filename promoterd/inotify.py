"""inotify(7) through pyinotify, with names as bytes and watches added through descriptors.

pyinotify's notifier decodes names strictly and so fails on the first odd one, and its watch manager goes by paths. Used
of it are the system call wrapper, the flags and the sysctls; reading and parsing are done here.
"""

import errno
import os
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from types import TracebackType
from typing import Any, Final, NamedTuple, Self

import pyinotify

from promoterd.errors import InstanceLimitReached, WatchLimitReached

_FLAGS: Final[dict[str, int]] = pyinotify.EventsCodes.ALL_FLAGS

IN_ACCESS: Final = _FLAGS["IN_ACCESS"]
IN_MODIFY: Final = _FLAGS["IN_MODIFY"]
IN_ATTRIB: Final = _FLAGS["IN_ATTRIB"]
IN_CLOSE_WRITE: Final = _FLAGS["IN_CLOSE_WRITE"]
IN_CLOSE_NOWRITE: Final = _FLAGS["IN_CLOSE_NOWRITE"]
IN_OPEN: Final = _FLAGS["IN_OPEN"]
IN_MOVED_FROM: Final = _FLAGS["IN_MOVED_FROM"]
IN_MOVED_TO: Final = _FLAGS["IN_MOVED_TO"]
IN_CREATE: Final = _FLAGS["IN_CREATE"]
IN_DELETE: Final = _FLAGS["IN_DELETE"]
IN_DELETE_SELF: Final = _FLAGS["IN_DELETE_SELF"]
IN_MOVE_SELF: Final = _FLAGS["IN_MOVE_SELF"]
IN_UNMOUNT: Final = _FLAGS["IN_UNMOUNT"]
IN_Q_OVERFLOW: Final = _FLAGS["IN_Q_OVERFLOW"]
IN_IGNORED: Final = _FLAGS["IN_IGNORED"]
IN_ONLYDIR: Final = _FLAGS["IN_ONLYDIR"]
IN_MASK_ADD: Final = _FLAGS["IN_MASK_ADD"]
IN_ISDIR: Final = _FLAGS["IN_ISDIR"]

_HEADER = struct.Struct("iIII")  # struct inotify_event, include/uapi/linux/inotify.h
_READ_BYTES = 256 * 1024


class RawEvent(NamedTuple):
    """One event as the kernel gives it; ``name`` is empty where the watched directory itself is meant.

    An overflow (IN_Q_OVERFLOW) has the watch descriptor -1.
    """

    wd: int
    mask: int
    cookie: int
    name: bytes


class WatchedInode(NamedTuple):
    """An inode as fdinfo names it: the kernel's own numbers, which need not be those that stat(2) gives."""

    sdev: int
    ino: int


class Closed(ValueError):
    """An instance was used after it was closed."""


def watch_limit() -> int:
    """How many watches one user may have, over all processes (fs.inotify.max_user_watches)."""
    return int(pyinotify.ProcINotify("max_user_watches").get_val())


def instance_limit() -> int:
    """How many inotify instances one user may have (fs.inotify.max_user_instances)."""
    return int(pyinotify.ProcINotify("max_user_instances").get_val())


def parse_watch(line: bytes) -> tuple[int, WatchedInode] | None:
    """Watch descriptor and inode of an fdinfo line; None for a line of another kind.

    ``inotify wd:1f ino:9e7e sdev:800013 mask:...``, all in hexadecimal (inotify_fdinfo, fs/notify/fdinfo.c).
    """
    if not line.startswith(b"inotify wd:"):
        return None
    fields = dict(field.split(b":", 1) for field in line.split()[1:4])
    return int(fields[b"wd"], 16), WatchedInode(int(fields[b"sdev"], 16), int(fields[b"ino"], 16))


@cache
def _system_calls() -> Any:
    wrapper = pyinotify.INotifyWrapper.create()
    if wrapper is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS), "inotify")
    return wrapper


class Inotify:
    """One inotify instance; a context manager.

    Threads may add and remove while another one reads. A directory on a dead server can hold ``add`` for as long as
    the server is dead; ``close`` does not wait for it, and the descriptor number is not given back to the system
    before the last call that uses it has returned. Every use after ``close`` raises Closed.

    Raises InstanceLimitReached.
    """

    def __init__(self) -> None:
        calls = _system_calls()
        descriptor: int = calls.inotify_init()
        if descriptor < 0:
            code: int = calls.get_errno()
            if code == errno.EMFILE:
                raise InstanceLimitReached(limit=instance_limit())
            raise OSError(code, os.strerror(code), "inotify_init")
        os.set_inheritable(descriptor, False)  # noqa: FBT003 - takes no keywords
        os.set_blocking(descriptor, False)
        self._calls = calls
        self._descriptor = descriptor
        self._lock = threading.Lock()
        self._users = 0
        self._closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def fileno(self) -> int:
        """The descriptor, for poll(2)."""
        return self._descriptor

    def add(self, descriptor: int, mask: int) -> int:
        """Watch what an open descriptor, of O_PATH too, refers to; returns the watch descriptor.

        An inode that is watched already keeps its watch descriptor and gets the new mask. Raises WatchLimitReached,
        or OSError (ENOTDIR under IN_ONLYDIR; what the file system answers to a permission check).
        """
        with self._in_use() as own:
            # the magic link leads to the open file itself, whatever has happened to its name (proc(5))
            wd: int = self._calls.inotify_add_watch(own, f"/proc/self/fd/{descriptor}", mask)
            code: int = self._calls.get_errno() if wd < 0 else 0
        if code == errno.ENOSPC:
            raise WatchLimitReached(limit=watch_limit())
        if code:
            raise OSError(code, os.strerror(code), "inotify_add_watch")
        return wd

    def remove(self, wd: int) -> None:
        """Stop watching; nothing happens where the kernel has dropped the watch already. An IN_IGNORED follows."""
        with self._in_use() as own:
            failed: bool = self._calls.inotify_rm_watch(own, wd) < 0
            code: int = self._calls.get_errno() if failed else 0
        if code not in (0, errno.EINVAL):
            raise OSError(code, os.strerror(code), "inotify_rm_watch")

    def read(self) -> list[RawEvent]:
        """What is pending, without waiting: up to 256 KiB of it, so that the caller's loop stays responsive."""
        with self._in_use() as own:
            try:
                buffer = os.read(own, _READ_BYTES)
            except BlockingIOError:
                return []
        events = []
        at = 0
        while at < len(buffer):
            wd, mask, cookie, length = _HEADER.unpack_from(buffer, at)
            at += _HEADER.size
            events.append(RawEvent(wd, mask, cookie, buffer[at : at + length].rstrip(b"\0")))
            at += length
        return events

    def identities(self) -> dict[int, WatchedInode]:
        """The inode behind every live watch, in one reading of our own fdinfo."""
        with self._in_use() as own, open(f"/proc/self/fdinfo/{own}", "rb") as lines:
            return dict(found for found in map(parse_watch, lines) if found)

    def close(self) -> None:
        """Drop all watches; may be called twice."""
        with self._lock:
            last = not self._closed and not self._users
            self._closed = True
        if last:
            os.close(self._descriptor)

    @contextmanager
    def _in_use(self) -> Iterator[int]:
        """Keeps the descriptor from being closed under a system call of another thread."""
        with self._lock:
            if self._closed:
                raise Closed("I/O operation on a closed inotify instance")
            self._users += 1
        try:
            yield self._descriptor
        finally:
            self._leave()

    def _leave(self) -> None:
        with self._lock:
            self._users -= 1
            last = self._closed and not self._users
        if last:
            os.close(self._descriptor)
