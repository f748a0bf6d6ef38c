"""Which directory of an overlay an inode of a lower layer is, and what was heard of inodes comes to; no I/O.

An event names the device and the inode of a lower directory. What is believed of inodes was seen some time ago, and a
directory may have been renamed since; so what is heard of one waits until its path was confirmed afterwards, and what
belongs to no directory, or to more than one, belongs to none.
"""

from collections import Counter, OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import islice
from typing import NamedTuple

CONFIRMED_FOR = 10.0
"""Seconds for which a directory that was seen under a path is believed to be there still."""
HELD_FOR = 60.0
"""Seconds for which an event waits to be understood: a directory may be found, or confirmed, a moment later."""
MOST_HELD = 16_384
"""Inodes for which events may wait."""
MOST_FOREIGN = 65_536
_FORGOTTEN_AT_ONCE = 16
SEARCH_FROM = 20
"""Events of inodes that nobody knows, from which on they are worth a search."""
SEARCH_EVERY, SEARCH_EVERY_MOST = 300.0, 6 * 3600.0
"""Seconds between two searches: twice as many each time that one was asked for."""


class Inode(NamedTuple):
    """A directory of a lower layer, as the kernel names it in events: ``device`` in its own encoding."""

    device: int
    number: int


@dataclass(slots=True)
class _Known:
    inodes: tuple[Inode, ...]
    shared: tuple[Inode, ...]
    confirmed: float


@dataclass(slots=True)
class _Held:
    since: float
    weights: Counter[str] = field(default_factory=Counter)


class Attribution:
    """What is known of at most ``capacity`` directories; ``now`` is in seconds of any clock that goes on steadily.

    Where there is no room, those are forgotten that were confirmed the longest time ago.
    """

    def __init__(self, capacity: int, now: float) -> None:
        self.capacity = capacity
        self.unattributed = 0
        """Events that turned out to belong to no directory, or not to one alone."""
        self._known: dict[bytes, _Known] = {}
        self._paths: dict[Inode, tuple[bytes, ...]] = {}
        self._held: dict[Inode, _Held] = {}
        self._strangers: Counter[Inode] = Counter()
        self._foreign: OrderedDict[Inode, None] = OrderedDict()
        self._search_every = SEARCH_EVERY
        self._search_at = now + SEARCH_EVERY

    def __len__(self) -> int:
        return len(self._known)

    def __contains__(self, path: bytes) -> bool:
        return path in self._known

    def paths(self) -> list[bytes]:
        """All directories that are known."""
        return list(self._known)

    def confirm(self, path: bytes, inodes: Iterable[Inode], shared: Iterable[Inode], now: float) -> None:
        """A directory was seen under its path: the inodes that it is merged of.

        ``shared`` are those of them that another overlay shows as well, so that events do not tell whose they are.
        """
        self.forget(path)
        if len(self._known) >= self.capacity:
            for oldest in list(islice(self._known, max(1, self.capacity // _FORGOTTEN_AT_ONCE))):
                self.forget(oldest)
        known = self._known[path] = _Known(tuple(dict.fromkeys(inodes)), tuple(shared), now)
        for inode in known.inodes:
            self._paths[inode] = (*self._paths.get(inode, ()), path)
            self._foreign.pop(inode, None)
            self._strangers.pop(inode, None)

    def forget(self, path: bytes) -> None:
        """There is no such directory any more; what waits for its inodes waits on, for another path of theirs."""
        known = self._known.pop(path, None)
        for inode in () if known is None else known.inodes:
            others = tuple(other for other in self._paths.pop(inode) if other != path)
            if others:
                self._paths[inode] = others

    def hear(self, inode: Inode, kind: str, weight: int, now: float) -> None:
        """So many events of an inode."""
        held = self._held.get(inode)
        if held is None:
            if inode in self._foreign or len(self._held) >= MOST_HELD:
                self.unattributed += weight
                return
            held = self._held[inode] = _Held(now)
        held.weights[kind] += weight

    def settle(self, now: float) -> Counter[tuple[bytes, str]]:
        """What can be said now of what was heard: directories and kinds, each with its number of events."""
        touched: Counter[tuple[bytes, str]] = Counter()
        for inode, held in list(self._held.items()):
            paths = self._paths.get(inode, ())
            is_sure = bool(paths) and all(self._known[path].confirmed >= held.since - CONFIRMED_FOR for path in paths)
            if is_sure and (path := self._sole(inode)) is not None:
                for kind, weight in held.weights.items():
                    touched[path, kind] += weight
            elif is_sure or now - held.since > HELD_FOR:
                self.unattributed += held.weights.total()
                if not paths and len(self._strangers) < MOST_HELD:
                    self._strangers[inode] += held.weights.total()
            else:
                continue
            del self._held[inode]
        return touched

    def doubtful(self, most: int) -> list[bytes]:
        """At most so many directories that have to be confirmed before it can be said what was heard of them."""
        found: dict[bytes, None] = {}
        for inode, held in self._held.items():
            for path in sorted(self._paths.get(inode, ())):
                if self._known[path].confirmed < held.since:
                    found[path] = None
            if len(found) >= most:
                break
        return list(found)[:most]

    def wants_search(self, now: float) -> bool:
        """Whether enough was heard of inodes that nobody knows; rarely, as a search costs the server much.

        What the search does not find is not searched for again: it lies outside the overlay, or policy forbids it.
        """
        if now < self._search_at or self._strangers.total() < SEARCH_FROM:
            return False
        self._search_every = min(self._search_every * 2, SEARCH_EVERY_MOST)
        self._search_at = now + self._search_every
        self._foreign.update(dict.fromkeys(self._strangers))
        self._strangers.clear()
        while len(self._foreign) > MOST_FOREIGN:
            self._foreign.popitem(last=False)
        return True

    def _sole(self, inode: Inode) -> bytes | None:
        """The directory that an inode is, if it is one alone, here and in other overlays."""
        paths = self._paths[inode]
        return None if len(paths) > 1 or inode in self._known[paths[0]].shared else paths[0]
