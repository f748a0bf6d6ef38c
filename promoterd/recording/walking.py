"""From paths that were looked up to the directories that this concerned, as path_resolution(7) has it.

Of a path, the directory counts in which its last name was looked up: those above are only walked through, and what is
asked of them once is known for the rest of the run. A symlink at the end counts in its own directory too, where it was
followed. Where a directory on the way does not exist, it is its parent that was searched in vain.
"""

import os
import stat
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from promoterd.heatlist import names
from promoterd.heatlist.model import HeatList, Uses
from promoterd.recording.tracelog import Lookup

_MOST_LINKS: Final = 40  # path_resolution(7)
_FOUND: Final = Uses(finds=1)


@dataclass(frozen=True, slots=True)
class Entry:
    """What is at a path, symlinks not followed: a directory, a symlink that leads somewhere, or something else."""

    is_directory: bool = False
    target: bytes | None = None


Look = Callable[[bytes], Entry | None]


def look(path: bytes) -> Entry | None:
    """What is there now; None for nothing, also where nobody may look."""
    try:
        mode = os.lstat(path).st_mode
        return Entry(stat.S_ISDIR(mode), os.readlink(path) if stat.S_ISLNK(mode) else None)
    except (OSError, ValueError):
        return None


class Walker:
    """Resolves paths; what it has looked at it does not look at again.

    ``closed``: directories that mean something else to each process (/proc), and are not entered.
    """

    def __init__(self, look: Look, closed: Iterable[bytes] = (b"/proc",)) -> None:
        self._look = look
        self._closed = frozenset(closed)
        self._known: dict[bytes, Entry | None] = {}

    def uses(self, lookup: Lookup) -> list[tuple[bytes, Uses]]:
        """The directories, absolute and without symlinks, that a lookup used, and how."""
        links: list[bytes] = []
        end = self._walk(lookup, links)
        return [*((directory, _FOUND) for directory in links), *([] if end is None else [_use(lookup, end)])]

    def _walk(self, lookup: Lookup, links: list[bytes]) -> "_End | None":
        """Where it ends; ``links`` gets the directories of the symlinks that were followed at its end.

        None where it ends in no directory, or in one that means something else to each process.
        """
        here, parts = b"/", deque(_parts(lookup.path))
        followed = 0
        while parts:
            name = parts.popleft()
            if name == b"..":
                here = os.path.dirname(here)
                continue
            path = here.rstrip(b"/") + b"/" + name
            if path in self._closed:
                return None
            entry = self._entry(path)
            if entry is not None and entry.target is not None and (parts or lookup.follows):
                followed += 1
                if followed > _MOST_LINKS:  # a circle
                    links.clear()
                    return _End(here, None, entry)
                if not parts:
                    links.append(here)
                here = b"/" if entry.target.startswith(b"/") else here
                parts.extendleft(reversed(_parts(entry.target)))
            elif entry is None or not parts or not entry.is_directory:
                return _End(here, path if not parts else None, entry)
            else:
                here = path
        return _End(here, here, Entry(is_directory=True)) if lookup.opens else None

    def _entry(self, path: bytes) -> Entry | None:
        if path not in self._known:
            self._known[path] = self._look(path)
        return self._known[path]


def _parts(path: bytes) -> list[bytes]:
    return [part for part in path.split(b"/") if part not in (b"", b".")]


@dataclass(frozen=True, slots=True)
class _End:
    """Where a walk ended: the directory that was searched last, what it led to, and what is there."""

    directory: bytes
    path: bytes | None
    """None where the walk ended before the path did."""
    entry: Entry | None


def _use(lookup: Lookup, end: _End) -> tuple[bytes, Uses]:
    if lookup.misses:
        return end.directory, Uses(misses=1)
    if not lookup.opens:
        return end.directory, _FOUND
    if end.path is not None and end.entry is not None and end.entry.is_directory:
        return end.path, Uses(listings=1)
    return end.directory, Uses(opens=1)


def heat_of(
    lookups: Iterable[tuple[Lookup, int]], walker: Walker, mount_of: Callable[[bytes], tuple[bytes, bytes] | None]
) -> HeatList:
    """What a run used of the mounts that ``mount_of`` knows: it splits a path into mount point and path inside."""
    heat = HeatList(runs=1)
    for lookup, count in lookups:
        for directory, uses in walker.uses(lookup):
            place = mount_of(directory)
            if place is not None and len(place[1]) < names.LONGEST:  # no such path can be looked up at once
                heat.add(*place, Uses(*(number * count for number in uses)))
    return heat
