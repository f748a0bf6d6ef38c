"""Which watch descriptor stands for which directory, both ways, and what events mean for that; no I/O."""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from promoterd.heat.base import Kind
from promoterd.inotify import (
    IN_CREATE,
    IN_DELETE,
    IN_DELETE_SELF,
    IN_IGNORED,
    IN_ISDIR,
    IN_MASK_ADD,
    IN_MOVE_SELF,
    IN_MOVED_FROM,
    IN_MOVED_TO,
    IN_ONLYDIR,
    IN_OPEN,
    IN_Q_OVERFLOW,
    IN_UNMOUNT,
    RawEvent,
)
from promoterd.paths import join

HEARD = IN_OPEN | IN_CREATE | IN_DELETE | IN_DELETE_SELF | IN_MOVED_FROM | IN_MOVED_TO | IN_MOVE_SELF | IN_ONLYDIR
"""What a directory is watched for. Not IN_DONT_FOLLOW: watches are added through magic links."""
STRUCTURE = (HEARD & ~IN_OPEN) | IN_MASK_ADD
"""What a directory is watched for that only has such directories below it; takes nothing from a watch that is there."""
_COMES = IN_CREATE | IN_MOVED_TO
_GOES = IN_DELETE | IN_MOVED_FROM
WEIGHTS = {Kind.OPEN: 1.0, Kind.LIST: 1.0}


class Displaced(NamedTuple):
    """What a new entry of the table took the place of."""

    wd: int | None
    """The watch that the path had before."""
    path: bytes | None
    """The path that the watch had before: the directory was renamed without our hearing of it."""


class WatchTable:
    """Watches of directories, by descriptor and by path; one that is not ``heard`` is there for its structure alone."""

    __slots__ = ("_by_path", "_by_wd", "_heard", "_sorted")

    def __init__(self) -> None:
        self._by_wd: dict[int, bytes] = {}
        self._by_path: dict[bytes, int] = {}
        self._heard: set[bytes] = set()
        self._sorted: list[bytes] | None = None

    def __len__(self) -> int:
        return len(self._by_path)

    def __contains__(self, path: bytes) -> bool:
        return path in self._by_path

    def is_heard(self, path: bytes) -> bool:
        """Whether what happens in the directory is heat."""
        return path in self._heard

    def heard(self) -> list[bytes]:
        """All directories whose events are heat."""
        return list(self._heard)

    def heard_count(self) -> int:
        """How many these are."""
        return len(self._heard)

    def path(self, wd: int) -> bytes | None:
        """The directory that a watch stands for."""
        return self._by_wd.get(wd)

    def watches(self) -> set[int]:
        """All watch descriptors."""
        return set(self._by_wd)

    def put(self, wd: int, path: bytes, *, heard: bool) -> Displaced:
        """Enter a watch; one of another path or another watch of this path is displaced."""
        old_path, old_wd = self._by_wd.get(wd), self._by_path.get(path)
        if old_path is not None and old_path != path:
            self.drop(old_path)
        if old_wd is not None and old_wd != wd:
            del self._by_wd[old_wd]
        if path not in self._by_path:
            self._sorted = None
        self._by_wd[wd] = path
        self._by_path[path] = wd
        if heard:
            self._heard.add(path)
        return Displaced(old_wd if old_wd != wd else None, old_path if old_path != path else None)

    def drop(self, path: bytes) -> int | None:
        """Forget a directory; returns the watch that it had."""
        wd = self._by_path.pop(path, None)
        if wd is not None:
            del self._by_wd[wd]
            self._heard.discard(path)
        return wd

    def below(self, path: bytes) -> list[bytes]:
        """All directories of the table that are ``path`` or lie in it, parents first."""
        itself = [path] if path in self._by_path else []
        if not path:
            return itself + sorted(self._by_path.keys() - {path})
        # all that starts with "path/" lies together in the order of bytes, up to "path0", "0" being what follows "/";
        # what was dropped since the last sorting is still in the list, what was put has undone it
        if self._sorted is None:
            self._sorted = sorted(self._by_path)
        start, end = bisect_left(self._sorted, path + b"/"), bisect_left(self._sorted, path + b"0")
        return itself + [found for found in self._sorted[start:end] if found in self._by_path]


@dataclass(slots=True)
class Digest:
    """What a batch of events comes to.

    ``changes`` are (path, whether it appeared) in the order in which they happened, and ``gone`` the paths that
    vanished and did not appear again; ``dead`` are watches to be removed, ``unclaimed`` events of watches that the
    table does not know.
    """

    touched: dict[tuple[bytes, Kind], float] = field(default_factory=lambda: defaultdict(float))
    changes: list[tuple[bytes, bool]] = field(default_factory=list)
    dead: list[int] = field(default_factory=list)
    gone: set[bytes] = field(default_factory=set)
    unclaimed: list[RawEvent] = field(default_factory=list)
    overflows: int = 0
    unmounted: bool = False


def digest(events: Iterable[RawEvent], table: WatchTable, may_promote_below: Callable[[bytes], bool]) -> Digest:
    """Take events in, keeping the table true to what they say."""
    result = Digest()
    for event in events:
        if event.mask & IN_Q_OVERFLOW:
            result.overflows += 1
            continue
        path = table.path(event.wd)
        if path is None:
            if not event.mask & IN_IGNORED:  # of a watch that we removed; the kernel's own removals say why before
                result.unclaimed.append(event)
        elif event.mask & IN_UNMOUNT:
            result.unmounted = True
            break  # one inode is told after the other, but the superblock is gone for all of them
        elif event.mask & (IN_DELETE_SELF | IN_MOVE_SELF | IN_IGNORED):
            _vanish(path, table, result)
        elif event.name and event.mask & IN_ISDIR:
            # that a child is opened is a use of the child, and not of the parent, which is told of it too
            if event.mask & (_COMES | _GOES):
                _child(join(path, event.name), event.mask, table, may_promote_below, result)
        elif event.mask & IN_OPEN and table.is_heard(path):
            kind = Kind.OPEN if event.name else Kind.LIST
            result.touched[path, kind] += WEIGHTS[kind]
    return result


def _child(
    child: bytes, mask: int, table: WatchTable, may_promote_below: Callable[[bytes], bool], result: Digest
) -> None:
    """A child directory has come or gone."""
    if mask & _COMES:
        if child in table:  # a rename onto an empty directory, or an exchange
            _vanish(child, table, result)
        if may_promote_below(child):
            result.changes.append((child, True))
            result.gone.discard(child)
    elif child in table or (child not in result.gone and may_promote_below(child)):  # the child may have told before
        _vanish(child, table, result)


def _vanish(path: bytes, table: WatchTable, result: Digest) -> None:
    known = table.below(path)
    for gone in known:
        wd = table.drop(gone)
        if wd is not None:
            result.dead.append(wd)
    for gone in known if path in known else [path, *known]:
        result.changes.append((gone, False))
        result.gone.add(gone)
        for kind in WEIGHTS:
            result.touched.pop((gone, kind), None)
