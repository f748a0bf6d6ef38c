"""fanotify(7) through libc: one mark for a whole file system, from which directories can be left out again.

The groups report open files. Marks that report names and file handles instead (FAN_REPORT_DFID_NAME) are refused for
the whole of an overlay, whose handles cannot be decoded, with EOPNOTSUPP (fanotify_test_fid(), fs/notify/fanotify).
"""

import ctypes
import errno
import os
import struct
from types import TracebackType
from typing import Final, NamedTuple, Self

_libc = ctypes.CDLL(None, use_errno=True)

FAN_CLOEXEC: Final = 0x1
FAN_NONBLOCK: Final = 0x2
FAN_UNLIMITED_MARKS: Final = 0x20

FAN_MARK_ADD: Final = 0x1
FAN_MARK_REMOVE: Final = 0x2
FAN_MARK_IGNORED_SURV_MODIFY: Final = 0x40
FAN_MARK_FLUSH: Final = 0x80
FAN_MARK_FILESYSTEM: Final = 0x100
FAN_MARK_EVICTABLE: Final = 0x200
FAN_MARK_IGNORE: Final = 0x400

FAN_OPEN: Final = 0x20
FAN_Q_OVERFLOW: Final = 0x4000
FAN_EVENT_ON_CHILD: Final = 0x0800_0000
FAN_ONDIR: Final = 0x4000_0000

FILES: Final = FAN_OPEN | FAN_EVENT_ON_CHILD
"""To leave out of a directory: opens of the files in it."""
EVERYTHING: Final = FILES | FAN_ONDIR
"""To leave out of a directory: all opens of it and in it, those of the directories in it too."""

_AT_FDCWD: Final = -100
# not O_WRONLY or O_RDWR, which would copy the file up; O_PATH is refused
_OPEN_FLAGS: Final = os.O_RDONLY | os.O_LARGEFILE | os.O_CLOEXEC | os.O_NONBLOCK
_IGNORING: Final = FAN_MARK_IGNORE | FAN_MARK_IGNORED_SURV_MODIFY
_METADATA = struct.Struct("=IBBHQii")  # struct fanotify_event_metadata, include/uapi/linux/fanotify.h
MOST_AT_ONCE: Final = 128
"""Events, and with them open files, that one reading gives at most."""


class RawEvent(NamedTuple):
    """One event; ``descriptor`` is an open file that the reader has to close, -1 where there is none.

    ``pid`` is the process as this one's pid namespace knows it, 0 where it does not.
    """

    mask: int
    descriptor: int
    pid: int


class Fanotify:
    """One fanotify group; a context manager. Raises OSError: EPERM, ENOSYS, EMFILE (fs.fanotify.max_user_groups)."""

    def __init__(self) -> None:
        flags = FAN_CLOEXEC | FAN_NONBLOCK | FAN_UNLIMITED_MARKS
        self._descriptor = _check(_libc.fanotify_init(ctypes.c_uint(flags), ctypes.c_uint(_OPEN_FLAGS)), "init")
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

    def mark_file_system(self, path: bytes) -> None:
        """Hear all opens of files and directories on the file system at ``path``, through any mount of it."""
        self._mark(FAN_MARK_ADD | FAN_MARK_FILESYSTEM, FAN_OPEN | FAN_ONDIR, path)

    def leave_out(self, directory: int, what: int) -> None:
        """Hear no more of an open directory, O_PATH too; ``what`` is FILES or EVERYTHING. Linux 6.0 (EINVAL before).

        For as long as the kernel keeps its inode, which the mark does not pin (FAN_MARK_EVICTABLE).
        """
        self._mark(FAN_MARK_ADD | FAN_MARK_EVICTABLE | _IGNORING, what, b"/proc/self/fd/%d" % directory)

    def let_in(self, directory: int) -> None:
        """Undo :meth:`leave_out`; nothing happens where nothing was left out."""
        try:
            self._mark(FAN_MARK_REMOVE | _IGNORING, EVERYTHING, b"/proc/self/fd/%d" % directory)
        except FileNotFoundError:
            return

    def let_all_in(self) -> None:
        """Undo every :meth:`leave_out`. The mark of the file system stays."""
        self._mark(FAN_MARK_FLUSH, 0, b"/")

    def read(self) -> list[RawEvent]:
        """What is pending, at most MOST_AT_ONCE; never waits for an event, but does for the file system.

        The kernel opens each file while it is read, as it was opened by whoever caused the event: over NFS that is a
        request, and one that a dead server does not answer. Raises OSError where such an open fails: that one event is
        lost, and the next reading goes on after it (copy_event_to_user(), fs/notify/fanotify/fanotify_user.c).
        """
        try:
            buffer = os.read(self._descriptor, _METADATA.size * MOST_AT_ONCE)
        except BlockingIOError:
            return []
        events = []
        at = 0
        while at < len(buffer):
            length, _version, _reserved, _header, mask, descriptor, pid = _METADATA.unpack_from(buffer, at)
            events.append(RawEvent(mask, descriptor, pid))
            at += length
        return events

    def close(self) -> None:
        """Drop the marks and what is pending; may be called twice, and not while another thread reads."""
        if not self._closed:
            self._closed = True
            os.close(self._descriptor)

    def _mark(self, flags: int, mask: int, path: bytes) -> None:
        _check(
            _libc.fanotify_mark(
                self._descriptor, ctypes.c_uint(flags), ctypes.c_uint64(mask), _AT_FDCWD, ctypes.c_char_p(path)
            ),
            "mark",
        )


def _check(result: int, what: str) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), f"fanotify_{what}")
    return result


def lack() -> str | None:
    """Why this machine and process cannot have a group as it is wanted here; None if they can."""
    try:
        with Fanotify() as group:
            root = os.open("/", os.O_PATH | os.O_CLOEXEC)
            try:
                group.leave_out(root, FILES)
            finally:
                os.close(root)
    except PermissionError:
        return "it needs CAP_SYS_ADMIN in the initial user namespace"
    except OSError as error:
        if error.errno == errno.ENOSYS:
            return "this kernel has no fanotify"
        if error.errno == errno.EINVAL:
            return "this kernel's fanotify cannot leave directories out (Linux 6.0)"
        if error.errno == errno.EMFILE:
            return "the kernel grants no more fanotify groups (fs.fanotify.max_user_groups)"
        return f"{error.filename}: {error.strerror}"
    return None
