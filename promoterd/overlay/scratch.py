"""The scratch directory: a hidden place in the overlay, for links that exist for a moment and for removed ghosts (R17).

It is one root-owned directory of mode 0700 in the overlay's root, made through the overlay and proven to be pure upper.
Its coming and going leave the root's times as they were, which are part of the view (I2).
"""

import errno
import os
import re
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from itertools import count

from promoterd.errors import Refused
from promoterd.overlay import beneath, xattrs
from promoterd.paths import join, parent, show

DEFAULT_NAME = b".promoterd"
OURS = re.compile(rb"(link|lane|ghost)-[0-9]+-[0-9]+")
"""Names of what we put there: what for, the process id, a number."""

_MODE = 0o700
_serial = count()
_BROKEN = (errno.EIO, errno.ESTALE, errno.ENOTEMPTY, errno.ENOENT)
_ACLS = ("system.posix_acl_default", "system.posix_acl_access")
_OTHER_NAME = "choose another name with `scratch:` in the policy"


def temporary_name(purpose: str) -> bytes:
    """A name in the scratch directory that nothing has: for ``link`` or ``ghost``."""
    return b"%s-%d-%d" % (purpose.encode(), os.getpid(), next(_serial))


def open_scratch(root: int, name: bytes) -> int:
    """A descriptor of the scratch directory through the overlay. Raises Refused where it is not ours, or not there."""
    try:
        descriptor = beneath.open_beneath(root, name)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EXDEV):
            raise
        raise _refused(name, f"it is not a directory of this overlay ({error.strerror})") from error
    wrong = _not_ours(descriptor)
    if wrong:
        os.close(descriptor)
        raise _refused(name, wrong)
    return descriptor


@contextmanager
def lane(root: int, upper: int, name: bytes, number: int) -> Iterator[int]:
    """A directory inside the scratch directory, through the overlay, for one thread at a time.

    It is removed at the end of the ``with`` block with what a failure left in it, or where that fails found again the
    next time. Raises Refused as :func:`open_scratch`, OSError.
    """
    scratch = open_scratch(root, name)
    own = b"lane-%d-%d" % (os.getpid(), number)
    try:
        with suppress(FileExistsError):
            os.mkdir(own, _MODE, dir_fd=scratch)
        with beneath.opened(scratch, own) as descriptor:
            yield descriptor
    finally:
        with suppress(OSError), beneath.opened(upper, name) as real:
            _remove_tree(scratch, real, own)
        os.close(scratch)


def empty_in_upper(upper: int, name: bytes) -> int:
    """Remove what we left in the scratch directory behind the overlay's back, for ghosts that it cannot look at.

    Says how many entries that were; a reconfigure has to follow. Raises Refused where the directory is not ours.
    """
    with beneath.opened(upper, name, beneath.READ_DIRECTORY) as real:
        wrong = _not_ours(real)
        if wrong:
            raise _refused(name, wrong)
        return _empty(real, real)


@dataclass(frozen=True, slots=True)
class Scratch:
    """The scratch directory of one overlay. Descriptors are roots of the overlay and of its layers, O_PATH or not."""

    name: bytes = DEFAULT_NAME

    def ensure(self, root: int, upper: int, lowers: Sequence[int]) -> None:
        """Make the directory where it is missing, and empty it of what an interrupted run left.

        Raises Refused, before anything is changed, where a lower layer has the name or where what upper has under it
        is not ours; OSError.
        """
        for lower in lowers:
            if beneath.status_of(lower, self.name) is not None:
                raise _refused(self.name, "a lower layer has an entry of that name")
        there = beneath.status_of(upper, self.name)
        if there is None or xattrs.stat_is_whiteout(there.st_mode, there.st_rdev):
            _keeping_times(root, partial(self._create, root))
        self._verify(root, upper)
        self.empty(root, upper)

    def empty(self, root: int, upper: int) -> int:
        """Remove what we left there, and nothing else; says how many entries that were. Raises Refused, OSError."""
        if beneath.status_of(upper, self.name) is None:
            return 0
        self._verify(root, upper)
        with (
            beneath.opened(root, self.name, beneath.READ_DIRECTORY) as view,
            beneath.opened(upper, self.name, beneath.READ_DIRECTORY) as real,
        ):
            return _empty(view, real)

    def remove(self, root: int, upper: int) -> bool:
        """Empty the directory and remove it; False where something of another's is left in it. Raises as ``empty``."""
        there = beneath.status_of(upper, self.name)
        if there is None or xattrs.stat_is_whiteout(there.st_mode, there.st_rdev):
            return True
        self.empty(root, upper)
        try:
            _keeping_times(root, lambda: os.rmdir(self.name, dir_fd=root))
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                return False
            raise
        return True

    def _create(self, root: int) -> None:
        os.mkdir(self.name, _MODE, dir_fd=root)
        with beneath.opened(root, self.name, beneath.READ_DIRECTORY) as made:
            # a set-group-id root hands down its group and bit, a default ACL its entries
            for acl in _ACLS:
                xattrs.remove(xattrs.descriptor(made), acl)
            os.fchown(made, 0, 0)
            os.fchmod(made, _MODE)

    def _verify(self, root: int, upper: int) -> None:
        """That the directory is ours, in upper alone, and holds nothing of another's. Raises Refused."""
        os.close(open_scratch(root, self.name))
        try:
            with beneath.opened(upper, self.name, beneath.READ_DIRECTORY) as real:
                wrong = _not_ours(real)
                itself = xattrs.descriptor(real)
                if xattrs.get(itself, xattrs.ORIGIN) is not None or xattrs.get(itself, xattrs.REDIRECT) is not None:
                    wrong = "it is merged with a lower directory"
                strangers = [name for name in map(os.fsencode, os.listdir(real)) if not OURS.fullmatch(name)]
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EXDEV):
                raise
            raise _refused(self.name, "it is not in the upper layer alone") from error
        if strangers:
            wrong = f"it holds {show(strangers[0])[1:]}, which is not ours"
        if wrong:
            raise _refused(self.name, wrong)


def _refused(name: bytes, reason: str) -> Refused:
    return Refused(path=show(name), reason=f"the scratch directory cannot be there: {reason}", hint=_OTHER_NAME)


def _not_ours(directory: int) -> str:
    """Why a directory cannot be our scratch directory; empty if it can."""
    status = os.fstat(directory)
    if not stat.S_ISDIR(status.st_mode):
        return "it is not a directory"
    if status.st_uid or status.st_gid or stat.S_IMODE(status.st_mode) != _MODE:
        mode = stat.S_IMODE(status.st_mode)
        return f"it has owner {status.st_uid}:{status.st_gid} and mode {mode:04o}, not 0:0 and 0700"
    return ""


def _keeping_times(root: int, change: Callable[[], None]) -> None:
    """Make a change in the root directory and set its times back, unless somebody else changed it meanwhile."""
    before = os.stat(b".", dir_fd=root)
    change()
    changed = os.stat(b".", dir_fd=root)
    if os.stat(b".", dir_fd=root).st_mtime_ns == changed.st_mtime_ns:
        os.utime(b".", ns=(before.st_atime_ns, before.st_mtime_ns), dir_fd=root)


def _empty(view: int, real: int) -> int:
    leftovers = [name for name in map(os.fsencode, os.listdir(real)) if OURS.fullmatch(name)]
    for name in leftovers:
        _remove_tree(view, real, name)
    return len(leftovers)


def _remove_tree(view: int, real: int, name: bytes) -> None:
    """Remove an entry of the scratch directory through the overlay, or in upper where the overlay cannot.

    A metacopy whose lower file is gone gives EIO or ESTALE, to unlink as well (ovl_lookup, fs/overlayfs/namei.c); a
    ghost that came back on the server meanwhile is merged with it, and not empty. Trees can be deeper than a recursion.
    """
    waiting = [(name, False)]
    while waiting:
        path, emptied = waiting.pop()
        with suppress(FileNotFoundError), beneath.opened(real, parent(path)) as above:
            last = path.rpartition(b"/")[2]
            if not stat.S_ISDIR(os.stat(last, dir_fd=above, follow_symlinks=False).st_mode):
                if not _done(os.unlink, path, view):
                    os.unlink(last, dir_fd=above)
            elif emptied:
                if not _done(os.rmdir, path, view):
                    _remove_names(real, path)
                    os.rmdir(last, dir_fd=above)
            else:
                waiting.append((path, True))
                waiting.extend((join(path, child), False) for child in _names(real, path))


def _names(root: int, path: bytes) -> list[bytes]:
    with beneath.opened(root, path, beneath.READ_DIRECTORY) as directory:
        return [os.fsencode(name) for name in os.listdir(directory)]


def _remove_names(real: int, path: bytes) -> None:
    """What is left in a directory that was emptied through the overlay: whiteouts."""
    with beneath.opened(real, path) as directory:
        for name in _names(real, path):
            os.unlink(name, dir_fd=directory)


def _done(remove: Callable[..., None], path: bytes, root: int) -> bool:
    """Remove the entry; False where the overlay cannot."""
    try:
        with beneath.opened(root, parent(path)) as directory:
            remove(path.rpartition(b"/")[2], dir_fd=directory)
    except OSError as error:
        if error.errno not in _BROKEN:
            raise
        return False
    return True
