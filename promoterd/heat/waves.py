"""Visits to directories that belong together, because each goes to a directory whose parent is being visited; pure."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from promoterd.paths import parent

FEWEST: Final = 20
"""Directories from which on a wave can be a walk: what goes through fewer costs little, and may be a program."""
COMPLETE: Final = 0.7
"""The share of the directories that a walk could have listed which it has listed."""
WITH_PARENTS: Final = 0.5
"""The share of a wave whose parents are in it as well, from which on it is certain to go down a tree."""
LISTED: Final = 0.8
"""The share of a wave that a walk has listed, where listings are heard: who walks to a file looks names up above it."""
IN_VAIN: Final = 0.1
"""The share of a wave, at most, in which something was done that walks do not do, as looking for what is not there."""


@dataclass(slots=True)
class Visit:
    """``last``: when the directory, or anything in it, was used; ``alone_since``: since when nothing in it but itself.

    ``has_parent``: whether it came from a visit to a directory above. ``held`` is what it comes to so far, by kind;
    None where it counts.
    """

    wave: "Wave"
    last: float
    alone_since: float
    has_parent: bool
    lists: float = 0.0
    held: dict[str, float] | None = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class Wave:
    """Visits in the order in which they were used last, and how many of them had a parent among them."""

    first: bytes
    latest: bytes
    last: float
    grew: float
    visits: dict[bytes, Visit] = field(default_factory=dict)
    members: int = 0
    with_parents: int = 0
    listed: int = 0
    freed: int = 0
    judged_at: int = FEWEST
    is_walk: bool = False

    def grow(self, path: bytes, now: float, *, has_parent: bool) -> Visit:
        """One more visit."""
        visit = Visit(self, now, now, has_parent)
        self.take(path, visit, now)
        return visit

    def take(self, path: bytes, visit: Visit, now: float) -> None:
        """One more visit, which belonged to another wave."""
        visit.wave = self
        self.visits[path] = visit
        self.members += 1
        self.with_parents += visit.has_parent
        self.listed += visit.lists > 0
        self.freed += visit.held is None
        self.grew, self.latest = now, path

    def give(self, path: bytes) -> None:
        """One visit less: it belongs to another wave."""
        visit = self.visits.pop(path)
        self.members -= 1
        self.with_parents -= visit.has_parent
        self.listed -= visit.lists > 0
        self.freed -= visit.held is None

    def use(self, path: bytes, now: float) -> None:
        """A directory is used, and with it what is above: who goes through a tree comes back there."""
        self.last = self.visits[path].last = now
        self.visits[path] = self.visits.pop(path)
        while path:
            path = parent(path)
            above = self.visits.get(path)
            if above is not None:
                above.last = above.alone_since = now
                self.visits[path] = self.visits.pop(path)

    def leave_behind(self, before: float) -> list[bytes]:
        """Drop the visits that were over by then; returns their directories."""
        over = []
        for path, visit in self.visits.items():
            if visit.last >= before:
                break
            over.append(path)
        for path in over:
            del self.visits[path]
        return over

    # Judging

    @property
    def goes_down(self) -> bool:
        """Whether it is certain to go down a tree."""
        return self.with_parents >= WITH_PARENTS * self.members

    def may_be_a_walk(self, *, lists_are_heard: bool) -> bool:
        """Whether it does what walks do, and nothing else, in nearly all of the directories."""
        lists = not lists_are_heard or self.listed >= LISTED * self.members
        return lists and self.freed <= IN_VAIN * self.members

    def heads(self) -> set[bytes]:
        """The directories that it visited, and those beside it: whose child directories it could have visited."""
        return {parent(path) for path in self.visits if path} | self.visits.keys()

    def is_complete(self, could: Mapping[bytes, int]) -> bool:
        """Whether it has left out hardly any; ``could``: how many child directories each of its heads has."""
        seen, of = self._coverage(could, self.heads())
        return seen >= COMPLETE * of

    def is_complete_so_far(self, could: Mapping[bytes, int]) -> bool:
        """Whether it has left out hardly any where it will not come back to: not above where it is now."""
        above, path = {self.latest}, self.latest
        while path:
            path = parent(path)
            above.add(path)
        seen, of = self._coverage(could, self.heads() - above)
        return seen >= max(FEWEST / 2, COMPLETE * of)

    def _coverage(self, could: Mapping[bytes, int], heads: set[bytes]) -> tuple[int, int]:
        """How many of the child directories of these it visited, and could have."""
        seen = Counter(parent(path) for path in self.visits if path)
        return sum(seen[head] for head in heads), sum(max(could.get(head, 0), seen[head]) for head in heads)
