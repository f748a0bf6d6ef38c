"""The directory that holds a metadata layer: its two halves, the stage beside them, and the graveyard.

Both halves are lower layers of the overlay; the other two are on the same file system, so that rename(2) moves what is
built into place and what is taken out away, and no lookup through the overlay ever meets them.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from itertools import count
from types import TracebackType
from typing import Self

from promoterd.overlay import beneath, syscalls, xattrs
from promoterd.overlay.listing import Layers
from promoterd.overlay.mounts import GRAVEYARD, STAGE
from promoterd.paths import parent

_MODE = 0o700
_OTHER_ATTRIBUTES = 512
_serial = count()


class Home:
    """Descriptors of a metadata layer for one piece of work, from layers that are open already."""

    def __init__(self, layers: Layers) -> None:
        self.layers = layers
        self.files, self.rest = layers.metadata
        self.stage = -1
        self.graveyard = -1
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            home = self.layers.overlay.layer_home
            assert home is not None  # noqa: S101 - a mount without a metadata layer was found unfit
            root = beneath.open_root(home)
            stack.callback(os.close, root)
            self.stage, self.graveyard = (
                stack.enter_context(beneath.opened(root, _made(root, name), beneath.READ_DIRECTORY))
                for name in (STAGE, GRAVEYARD)
            )
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    @property
    def halves(self) -> tuple[int, int]:
        """The files half and the rest half."""
        return self.files, self.rest

    def sync(self) -> None:
        """Make everything written to the layer's file system so far durable. Raises OSError."""
        syscalls.syncfs(self.stage)

    def xattr(self, path: bytes, attribute: str) -> bytes | None:
        """An attribute of the rest half's directory at ``path``; None where either is absent."""
        return layer_xattr(self.layers, path, attribute)


def layer_xattr(layers: Layers, path: bytes, attribute: str) -> bytes | None:
    """An attribute of the rest half's directory at ``path``; None where either is absent."""
    try:
        with beneath.opened(layers.metadata[1], path) as directory:
            return xattrs.get(xattrs.descriptor(directory), attribute)
    except (FileNotFoundError, NotADirectoryError):
        return None


def longest_path(directory: int) -> int:
    """How long a path may be, in bytes, for the layer's file system to keep it in an attribute beside our own.

    ext4 has one block for all attributes of an inode (Documentation/filesystems/ext4/attributes.rst).
    """
    return os.fstatvfs(directory).f_bsize - _OTHER_ATTRIBUTES


@contextmanager
def private_place(directory: int) -> Iterator[int]:
    """A fresh directory inside the stage, removed with all that is left in it at the end of the ``with`` block."""
    name = fresh_name()
    os.mkdir(name, _MODE, dir_fd=directory)
    try:
        with beneath.opened(directory, name, beneath.READ_DIRECTORY) as place:
            yield place
    finally:
        remove_tree(directory, name)


def fresh_name() -> bytes:
    """A name that nothing in the stage or the graveyard has."""
    return b"%d-%d" % (os.getpid(), next(_serial))


def remove_tree(directory: int, name: bytes | str) -> None:
    """Remove an entry of the stage or the graveyard with everything in it; what is gone already is fine."""
    shutil.rmtree(os.fsdecode(name), dir_fd=directory, ignore_errors=True)


def empty(directory: int) -> None:
    """Remove everything in the stage."""
    for name in os.listdir(directory):
        remove_tree(directory, name)


@contextmanager
def parents_times_kept(home: Home, path: bytes) -> Iterator[None]:
    """Put the times of the directory that holds ``path`` back after the block, in both halves: the view has them (I2).

    A moment in between shows the time of the change.
    """
    with ExitStack() as stack:
        before = []
        for half in home.halves:
            with suppress(FileNotFoundError):
                above = stack.enter_context(beneath.opened(half, parent(path)))
                status = os.stat(xattrs.descriptor(above))
                before.append((above, (status.st_atime_ns, status.st_mtime_ns)))
        try:
            yield
        finally:
            for above, times in before:
                os.utime(xattrs.descriptor(above), ns=times)


def _made(root: int, name: bytes) -> bytes:
    with suppress(FileExistsError):
        os.mkdir(name, _MODE, dir_fd=root)
    return name
