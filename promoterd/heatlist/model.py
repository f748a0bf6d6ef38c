"""Heat lists as values (pure): merging, cutting, and which directory comes first."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final, NamedTuple

KINDS: Final = ("open", "list", "miss", "found")
"""What is counted, in the words of :class:`promoterd.heat.base.Kind`, in the order of the fields of :class:`Uses`."""


class Uses(NamedTuple):
    """How often a directory was used, by kind."""

    opens: int = 0
    listings: int = 0
    misses: int = 0
    finds: int = 0

    @property
    def total(self) -> int:
        """All uses."""
        return sum(self)

    def count(self, by: str | None) -> int:
        """The uses of one kind, or all."""
        return sum(self) if by is None else self[KINDS.index(by)]

    @classmethod
    def of(cls, kind: str, count: int = 1) -> "Uses":
        """So many uses of one kind; a kind that only some source knows counts as an open."""
        counts = [0] * len(KINDS)
        counts[KINDS.index(kind) if kind in KINDS else 0] = count
        return cls(*counts)


def both(one: Uses, other: Uses) -> Uses:
    """The sums."""
    return Uses(one[0] + other[0], one[1] + other[1], one[2] + other[2], one[3] + other[3])


Directories = dict[bytes, Uses]


@dataclass(slots=True)
class HeatList:
    """What ``runs`` runs used: for each mount point, its directories by their paths inside the mount.

    Merging adds counts and runs up, so it does not matter in which order and in how many steps lists are merged.
    """

    runs: int = 0
    mounts: dict[bytes, Directories] = field(default_factory=dict)

    def __len__(self) -> int:
        return sum(map(len, self.mounts.values()))

    def add(self, mountpoint: bytes, path: bytes, uses: Uses) -> None:
        """Count uses of one directory."""
        directories = self.mounts.setdefault(mountpoint, {})
        before = directories.get(path)
        directories[path] = uses if before is None else both(before, uses)

    def merge(self, other: "HeatList") -> None:
        """Add another list to this one."""
        self.runs += other.runs
        for mountpoint, directories in other.mounts.items():
            self.mounts.setdefault(mountpoint, {})
            for path, uses in directories.items():
                self.add(mountpoint, path, uses)

    def cut(self, *, min_count: int = 0, top: int | None = None, by: str | None = None) -> "HeatList":
        """The directories that were used at least ``min_count`` times, and of these the ``top`` most used.

        ``by``: only uses of this kind count.
        """
        kept = [(mountpoint, path) for mountpoint, path, uses in self._ranked(by) if uses.count(by) >= min_count]
        return self.only(kept[:top])

    def only(self, wanted: Iterable[tuple[bytes, bytes]]) -> "HeatList":
        """The same list with these directories alone; every mount point stays."""
        fresh = HeatList(self.runs, {mountpoint: {} for mountpoint in self.mounts})
        for mountpoint, path in wanted:
            fresh.mounts[mountpoint][path] = self.mounts[mountpoint][path]
        return fresh

    def _ranked(self, by: str | None) -> list[tuple[bytes, bytes, Uses]]:
        """All directories of all mounts, the most used first."""
        everything = [
            (mountpoint, path, uses)
            for mountpoint, directories in self.mounts.items()
            for path, uses in directories.items()
        ]
        everything.sort(key=lambda item: (-item[2].count(by), item[0], item[1]))
        return everything

    def hottest(self, mountpoint: bytes, by: str | None = None) -> list[bytes]:
        """The directories of one mount, the most used first; none for a mount that the list does not know."""
        directories = self.mounts.get(mountpoint, {})
        return sorted(directories, key=lambda path: (-directories[path].count(by), path))
