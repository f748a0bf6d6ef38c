"""What a backend that keeps copies of files' data locally offers, besides shadowing them."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from promoterd.backends.base import Plan
from promoterd.overlay.listing import Layers

Wants = Callable[[bytes, int], bool]
"""Whether a file, by its path inside the mount and its size, is to have its data kept locally."""


@dataclass(frozen=True, slots=True)
class Holding:
    """The copies of one directory, in files and bytes: all, those that nobody wants any more, and those that lack.

    ``smallest``: the size of the smallest file that wants a copy and has none.
    """

    files: int = 0
    held: int = 0
    unwanted: int = 0
    lacking: int = 0
    missing: int = 0
    smallest: int = 0


class DataStore(ABC):
    """Copies of data, directory by directory. As with a backend, methods block, and none keeps a descriptor."""

    @abstractmethod
    def was_used(self, layers: Layers) -> bool:
        """Whether there may be copies: none was ever made where not. Raises OSError."""

    @abstractmethod
    def forget_use(self, layers: Layers) -> None:
        """There are no copies any more. Raises OSError."""

    @abstractmethod
    def holding(self, layers: Layers, path: bytes, wants: Wants | None) -> Holding:
        """What there is in a directory, from disk; nothing where there is no such directory. Raises OSError."""

    @abstractmethod
    def wanted(self, plan: Plan) -> dict[bytes, int]:
        """How many bytes of data each directory of a plan wants, once it is shadowed; it may hold some of them."""

    @abstractmethod
    def fill(self, path: bytes, wants: Wants, *, oldest_allowed_ns: int, room: int) -> Iterator[int]:
        """Give a complete directory copies that it lacks, at most so many bytes.

        Yields what each batch will ask of the server, in entries, *before* doing it. Nothing younger is copied (R7).
        Raises Busy, Refused, OSError.
        """

    @abstractmethod
    def evict(self, path: bytes, wants: Wants | None, at_least: int) -> int:
        """Have a directory's files fetch their data from the server again: those that nobody wants, and more of them.

        Goes on until ``at_least`` so many bytes are freed; says how many were. Raises Busy, OSError.
        """

    @abstractmethod
    def mend(self, layers: Layers, path: bytes) -> None:
        """Bring in order what a crash may have left in a directory while copies came or went. Raises OSError."""
