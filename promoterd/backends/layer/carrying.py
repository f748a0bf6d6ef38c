"""Which files of a directory carry their data when it is staged."""

import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from promoterd.backends.base import DirectoryTerms, PlannedDirectory
from promoterd.backends.layer import copying, entries, links
from promoterd.overlay import beneath, xattrs
from promoterd.overlay.attributes import Attributes
from promoterd.paths import join

_AT_ONCE = 8 << 20
"""Bytes between two looks at the throttle and the free space."""


@dataclass(slots=True)
class Carrying:
    """The copies of one directory: which are wanted, and how many bytes there is room for besides those it has."""

    path: bytes
    wants: Callable[[bytes, int], bool] | None
    oldest_allowed_ns: int
    room: int
    copy_xattrs: bool
    cost: int = 0
    """What was asked of the server for them, in entries."""
    _carried: set[tuple[int, int]] = field(default_factory=set)
    """Files with several names that have their data, by layer and inode."""

    @classmethod
    def of(cls, directory: PlannedDirectory, demands: DirectoryTerms, room: int) -> "Carrying":
        """For a planned directory; one that is too young itself gets no new copies (R7)."""
        changed = (max(stamp.mtime_ns, stamp.ctime_ns) for stamp in directory.listing.stamps)
        oldest = demands.oldest_allowed_ns if max(changed, default=0) <= demands.oldest_allowed_ns else -1
        return cls(directory.path, demands.wants_data, oldest, room, demands.copy_xattrs)

    def chunk(self, rows: Iterator[tuple[str, Attributes]], most: int) -> list[tuple[str, Attributes]]:
        """The next entries, at most so many, and with not much more data than is copied at once."""
        chunk: list[tuple[str, Attributes]] = []
        data = 0
        for name, found in rows:
            chunk.append((name, found))
            if stat.S_ISREG(found.mode) and self._wants(name, found):
                data += found.size
            if len(chunk) >= most or data >= _AT_ONCE:
                break
        return chunk

    def provide(  # noqa: PLR0913, PLR0917 - from where, what, to where
        self,
        lower: int,
        files: int,
        there: int,
        first: str,
        name: str,
        found: Attributes,
        extra: entries.Xattrs,
    ) -> bool:
        """Whether a file has its data, in place (``there``, -1: nowhere yet) or staged in ``files``; else it is a stub.

        ``first``: the first of its names, which decides for all. Raises OSError.
        """
        if first != name:
            return (found.layer, found.inode) in self._carried and (
                links.are_linked(files, there, first, name) or links.link(files, there, first, name)
            )
        before = copying.copy_at(there, name) if there >= 0 and beneath.status_of(there, name) is not None else None
        wanted = self._wants(name, found)
        has = wanted and before is not None and before.is_of(found) and self._is_dressed(there, name, found, extra)
        if before is not None and not has:
            self.room += before.size
        if wanted and not has and self._may_be_copied(found):
            has = copying.pull(lower, name, found, files, name, extra)
            self.cost += copying.cost(found.size)
            self.room -= found.size if has else 0
        if has and found.nlink > 1:
            self._carried.add((found.layer, found.inode))
        return has

    def _wants(self, name: str, found: Attributes) -> bool:
        return self.wants is not None and self.wants(join(self.path, os.fsencode(name)), found.size)

    def _may_be_copied(self, found: Attributes) -> bool:
        return found.size <= self.room and max(found.mtime_ns, found.ctime_ns) <= self.oldest_allowed_ns

    def _is_dressed(self, there: int, name: str, found: Attributes, extra: entries.Xattrs) -> bool:
        if not entries.is_current(os.stat(name, dir_fd=there, follow_symlinks=False), found):
            return False
        return not self.copy_xattrs or entries.read_xattrs(xattrs.entry(there, name)) == extra
