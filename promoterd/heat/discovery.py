"""Finding the directories that a source is to be armed at, without a trace on the overlay.

The layers are read, not the overlay: no dentry of it is instantiated, and nobody's watch on it is told.
"""

import errno
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

from promoterd.overlay import beneath
from promoterd.overlay.parts import Places, merged, places
from promoterd.pacing import listed, owe
from promoterd.paths import ancestors, join

_UNREADABLE = frozenset({errno.EXDEV, errno.ESTALE, errno.ENAMETOOLONG, errno.EACCES})
"""A mount point, a stale file handle, a path that is too long, no permission: such directories are left out."""


class Walk:
    """Breadth-first over the directories of an overlay, as far as policy could promote something there.

    ``layers`` are the roots of the layers, upper first. Symlinks are not followed and other file systems not entered.
    What vanishes meanwhile is left out; redirects are followed, so that what is in a renamed directory is found.
    """

    def __init__(
        self,
        layers: Sequence[bytes],
        may_promote: Callable[[bytes], bool],
        may_promote_below: Callable[[bytes], bool],
        *,
        max_directories: int,
        batch: int = 256,
    ) -> None:
        self.layers = tuple(layers)
        self.may_promote = may_promote
        self.may_promote_below = may_promote_below
        self.max_directories = max_directories
        self.batch = batch
        self.listed = 0
        """How many directories were read."""
        self.truncated = False
        """Whether ``max_directories`` cut the walk short."""

    def batches(self, start: bytes = b"") -> Iterator[list[bytes]]:
        """Directories that policy can promote, from ``start`` downwards, at most ``batch`` at a time.

        They are read only when the next batch is asked for: whoever has armed them by then misses nothing that is made
        in them. A batch may be empty; each stands for at most ``batch`` directories to be read from the server, so that
        the caller can hold it back. Nothing stays open between batches. Raises OSError where a layer's root cannot be
        opened, or the server answers with an error that is not about one directory.
        """
        waiting: deque[tuple[bytes, Places | None]] = deque()
        if self.may_promote_below(start):
            with self._roots() as roots:
                waiting.append((start, _above(roots, start)))
        while waiting:
            room = min(self.batch, self.max_directories - self.listed)
            if room <= 0:
                self.truncated = True
                return
            chunk = [waiting.popleft() for _ in range(min(room, len(waiting)))]
            yield [path for path, _ in chunk if self.may_promote(path)]
            with self._roots() as roots:
                for path, above in chunk:
                    self.listed += 1
                    owe(2)
                    names, here = _children(roots, path, above)
                    children = (join(path, os.fsencode(name)) for name in names)
                    waiting.extend((child, here) for child in children if self.may_promote_below(child))

    @contextmanager
    def _roots(self) -> Iterator[list[int]]:
        with ExitStack() as stack:
            roots = []
            for layer in self.layers:
                roots.append(beneath.open_root(layer))
                stack.callback(os.close, roots[-1])
            yield roots


def _above(roots: Sequence[int], path: bytes) -> Places | None:
    """The places of the directory that holds ``path``; None for the root."""
    found: Places | None = None
    for ancestor in [b"", *ancestors(path)] if path else []:
        found = places(roots, found, ancestor.rpartition(b"/")[2], _UNREADABLE)
    return found


def _children(roots: Sequence[int], path: bytes, above: Places | None) -> tuple[list[str], Places]:
    """The names of the child directories, and the places of the directory itself."""
    is_directory: dict[str, bool] = {}
    found: list[bytes | None] = [None] * len(roots)
    name = path.rpartition(b"/")[2]
    for layer, place, directory in merged(roots, above, name, beneath.READ_DIRECTORY, _UNREADABLE):
        found[layer] = place
        try:
            with os.scandir(directory) as entries:
                for entry in listed(entries) if layer == len(roots) - 1 else entries:
                    itself = entry.is_dir(follow_symlinks=False)
                    if itself or layer != len(roots) - 1:  # a whiteout or file hides what the layers below have
                        is_directory.setdefault(entry.name, itself)
        except OSError as error:
            if error.errno not in (errno.ENOENT, *_UNREADABLE):
                raise
    return sorted(name for name, itself in is_directory.items() if itself), tuple(found)
