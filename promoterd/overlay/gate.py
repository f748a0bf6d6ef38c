"""Noticing that somebody changed an upper directory's names: the overlay's own activity shows up there as events."""

import errno
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Self

from promoterd import inotify
from promoterd.overlay import beneath

_CHANGES = (
    inotify.IN_CREATE
    | inotify.IN_DELETE
    | inotify.IN_MOVED_FROM
    | inotify.IN_MOVED_TO
    | inotify.IN_DELETE_SELF
    | inotify.IN_MOVE_SELF
)


class UpperGate:
    """Watches upper directories; a context manager. It pins upper inodes only, never a dentry of the overlay.

    Raises OSError where one of them is not there, and WatchLimitReached.
    """

    def __init__(self, upper: int, paths: Sequence[bytes]) -> None:
        self._upper = upper
        self._inotify = inotify.Inotify()
        self._paths: dict[int, bytes] = {}
        self._inodes: dict[bytes, tuple[int, int]] = {}
        self._expected: set[tuple[bytes, bytes]] = set()
        try:
            for path in paths:
                with beneath.opened(upper, path) as directory:
                    self._paths[self._inotify.add(directory, _CHANGES)] = path
                    self._inodes[path] = _inode(directory)
        except BaseException:
            self._inotify.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._inotify.close()

    def expect(self, path: bytes, name: str) -> None:
        """Say before making a name in a watched directory that this will be us; once for each time."""
        self._expected.add((path, os.fsencode(name)))

    def changes(self) -> set[bytes]:
        """The directories in which somebody else changed a name since the last call; all where events were lost."""
        changed: set[bytes] = set()
        while events := self._inotify.read():
            for event in events:
                path = self._paths.get(event.wd)
                if path is None:
                    changed.update(self._paths.values())
                elif event.mask & inotify.IN_CREATE and (path, event.name) in self._expected:
                    self._expected.remove((path, event.name))
                else:
                    changed.add(path)
        return changed

    def changed(self) -> bool:
        """Whether somebody else changed a name since the last look."""
        return bool(self.changes())

    @contextmanager
    def opened(self, path: bytes) -> Iterator[int]:
        """The directory that is watched as ``path``. Raises FileNotFoundError where another one is there now."""
        with beneath.opened(self._upper, path) as directory:
            if _inode(directory) != self._inodes[path]:
                raise FileNotFoundError(errno.ENOENT, "another directory is there now", os.fsdecode(path))
            yield directory


def _inode(directory: int) -> tuple[int, int]:
    status = os.fstat(directory)
    return status.st_dev, status.st_ino
