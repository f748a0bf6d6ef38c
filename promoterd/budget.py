"""How much data each directory of a mount holds locally, and which of them makes room for which (pure)."""

from collections.abc import Callable, Collection
from dataclasses import dataclass

from promoterd.backends.data import Holding

MARGIN = 2.0
"""How much hotter than the one that loses its copies a directory has to be: to copy and to evict costs requests too."""


@dataclass(frozen=True, slots=True)
class Victim:
    """A directory, and how many bytes of its data would have to go."""

    path: bytes
    size: int


class Budget:
    """At most ``limit`` bytes of data, in all directories together; what is being copied counts as if it were there."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._holdings: dict[bytes, Holding] = {}
        self._reserved: dict[bytes, int] = {}
        self._taken = 0
        self.is_counted = False
        """Whether it is known what all directories hold."""
        self.fill_again: dict[bytes, float] = {}
        """When directories are due again in which something kept files from being copied."""

    @property
    def held(self) -> int:
        """Bytes of data that all directories hold."""
        return sum(holding.held for holding in self._holdings.values())

    @property
    def files(self) -> int:
        """Files of which there is a copy."""
        return sum(holding.files for holding in self._holdings.values())

    @property
    def excess(self) -> int:
        """Bytes beyond the limit."""
        return max(0, self.held - self.limit)

    def of(self, path: bytes) -> Holding:
        """What a directory holds, and lacks."""
        return self._holdings.get(path, Holding())

    def note(self, path: bytes, holding: Holding) -> None:
        """What was found in a directory; what it had reserved is over."""
        self._taken -= self._takes(path)
        self._reserved.pop(path, None)
        if holding == Holding():
            self._holdings.pop(path, None)
        else:
            self._holdings[path] = holding
        self._taken += self._takes(path)

    def release(self, paths: Collection[bytes]) -> None:
        """Nothing more is copied into these directories."""
        for path in paths:
            self._taken -= self._takes(path)
            self._reserved.pop(path, None)
            self._taken += self._takes(path)

    def keep_only(self, is_there: Callable[[bytes], bool]) -> None:
        """Forget directories that are complete no more: their data went with them."""
        for path in [path for path in self._holdings if not is_there(path)]:
            self.note(path, Holding())

    def reserve(self, path: bytes, wanted: int) -> int:
        """Keep room for so many bytes in a directory; how many of them fit besides what it has."""
        granted = max(0, min(wanted, self._free(path)))
        self._taken -= self._takes(path)
        self._reserved[path] = granted
        self._taken += self._takes(path)
        return max(0, granted - self.of(path).held)

    def victim(
        self, path: bytes, wanted: int, heat: Callable[[bytes], float], may_lose: Callable[[bytes], bool]
    ) -> Victim | None:
        """The coldest directory whose data should make room for so many bytes in ``path``; None where none should."""
        short = wanted - self._free(path)
        if short <= 0 or heat(path) <= 0:
            return None
        colder = [
            (heat(other), other)
            for other, holding in self._holdings.items()
            if holding.held and other != path and may_lose(other)
        ]
        lowest, coldest = min(colder, default=(0.0, b""))
        if not colder or lowest * MARGIN >= heat(path):
            return None
        return Victim(coldest, short)

    def coldest(self, heat: Callable[[bytes], float], may_lose: Callable[[bytes], bool]) -> Victim | None:
        """The directory to lose data first while there is more than the limit; None while there is not."""
        holders = [path for path, holding in self._holdings.items() if holding.held and may_lose(path)]
        if not self.excess or not holders:
            return None
        return Victim(min(holders, key=lambda path: (heat(path), path)), self.excess)

    def unwanted(self) -> list[bytes]:
        """Directories that hold data which nobody wants any more."""
        return sorted(path for path, holding in self._holdings.items() if holding.unwanted)

    def lacking(self) -> list[bytes]:
        """Directories with files that want a copy and have none."""
        return sorted(path for path, holding in self._holdings.items() if holding.lacking)

    def _free(self, path: bytes) -> int:
        """What all others leave."""
        return self.limit - (self._taken - self._takes(path))

    def _takes(self, path: bytes) -> int:
        return max(self.of(path).held, self._reserved.get(path, 0))
