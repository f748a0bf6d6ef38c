"""Noticing that somebody changed an upper directory's names: the overlay's own activity shows up there as events."""

from collections.abc import Sequence
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
    """Watches upper directories; a context manager. It pins upper inodes only, never a dentry of the overlay."""

    def __init__(self, upper: int, paths: Sequence[bytes]) -> None:
        self._inotify = inotify.Inotify()
        try:
            for path in paths:
                with beneath.opened(upper, path) as directory:
                    self._inotify.add(directory, _CHANGES)
        except BaseException:
            self._inotify.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._inotify.close()

    def changed(self, *, expected: frozenset[bytes] = frozenset()) -> bool:
        """Whether a name changed since the last call, names that we change ourselves aside.

        An event without a name (an overflow, the directory itself moved) always counts.
        """
        return any(event.name not in expected or not event.name for event in self._inotify.read())
