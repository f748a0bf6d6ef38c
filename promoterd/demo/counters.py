"""The page of 64-bit words that a counting file system and whoever watches it share.

Words ``0 … len(Op) - 1`` are counts that only the file system writes; the words of :class:`Word` are written by the
watcher and read by the file system at each request, so that a change takes effect at once.
"""

import mmap
import os
from enum import IntEnum
from typing import Self

_PAGE = 4096
_WORD = 8


class Op(IntEnum):
    """What the file system was asked; each request is counted under exactly one kind, when it arrives."""

    LOOKUP = 0
    """A name that exists; a revalidation of a known name is a lookup too."""
    LOOKUP_NEGATIVE = 1
    """A name that does not exist."""
    GETATTR = 2
    OPENDIR = 3
    READDIR = 4
    OPEN = 5
    READ = 6
    GETXATTR = 7
    LISTXATTR = 8
    READLINK = 9
    STATFS = 10
    OTHER = 11
    """Anything that would change the file system, which is read-only."""


class Word(IntEnum):
    """What the watcher sets and the file system obeys, and its one answer."""

    READY = 508
    """1 once the kernel's first request has been answered: the mount works."""
    FAIL = 509
    """An errno that every request ends with; 0: none."""
    HANG = 510
    """1: requests are counted and then not answered until this is 0 again."""
    LATENCY = 511
    """Microseconds that every request is held before it is answered."""


class Counters:
    """The shared page, mapped. Create it with ``create=True`` before the file system is started."""

    def __init__(self, path: str, *, create: bool = False) -> None:
        flags = os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT | os.O_TRUNC if create else 0)
        descriptor = os.open(path, flags, 0o600)
        try:
            if create:
                os.ftruncate(descriptor, _PAGE)
            self._map = mmap.mmap(descriptor, _PAGE)
        finally:
            os.close(descriptor)
        self.words = memoryview(self._map).cast("Q")

    def counts(self) -> list[int]:
        """All counts since the file system was started, in the order of :class:`Op`."""
        return self.words[: len(Op)].tolist()

    def close(self) -> None:
        """Unmap the page."""
        self.words.release()
        self._map.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
