"""What a backend is, and how one is found.

A backend owns three verbs, *shadow*, *complete* and *reopen*, and one question, *the state of this directory*, which
it answers from disk and never from memory. Backends are classes registered under the entry point group
``promoterd.backends``; ``docs/backends.md`` holds a worked example of one in a package of its own.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from typing import ClassVar

from promoterd import plugins
from promoterd.errors import PromoterdError
from promoterd.overlay.fitness import Facts, Finding
from promoterd.overlay.listing import Layers, LowerListing
from promoterd.overlay.mounts import Overlay
from promoterd.provenance import Provenance

GROUP = "promoterd.backends"


class MarkState(StrEnum):
    """What is on disk for a directory."""

    NONE = "none"
    OURS = "ours"
    FOREIGN = "foreign"
    MOVED = "moved"


@dataclass(frozen=True, slots=True)
class OnDisk:
    """The state of a directory as its layers tell it.

    ``in_effect`` says whether the mark is known to be answering on the live mount: None where the file system gives
    no proof. A mark that is not ours is FOREIGN; ours on a directory that was renamed since is MOVED.
    """

    mark: MarkState
    provenance: Provenance | None = None
    in_effect: bool | None = None


@dataclass(frozen=True, slots=True)
class DirectoryTerms:
    """What policy demands of one directory of a closure, as plain values.

    ``forbidden`` is the reason why it must never be complete. An entry whose mtime or ctime is newer than
    ``oldest_allowed_ns`` is too young (R7).
    """

    forbidden: str | None = None
    oldest_allowed_ns: int = 0
    break_hardlinks: bool = False
    hide_unlisted: bool = False
    ignore_watchers: bool = False


@dataclass(frozen=True, slots=True)
class Terms:
    """What policy demands of one promotion: of the closure as a whole, and ``of`` each directory in it."""

    max_entries: int
    recursive: bool
    of: Callable[[bytes], DirectoryTerms]


@dataclass(slots=True)
class PlannedDirectory:
    """One directory of a closure: its contributing lower layers and what they list."""

    path: bytes
    layers: tuple[int, ...]
    listing: LowerListing
    others: set[str] = field(default_factory=set)
    """Names of lower under which upper holds something else than a copy of it; known once it was verified."""


@dataclass
class Plan:
    """A directory with its whole closure of child directories, children before parents."""

    path: bytes
    directories: list[PlannedDirectory] = field(default_factory=list)
    broken_hardlinks: list[bytes] = field(default_factory=list)
    max_entries: int | None = None
    """What a backend that lists the directory only when it shadows it has to stop at."""

    @cached_property
    def paths(self) -> frozenset[bytes]:
        """The directories of the closure."""
        return frozenset(directory.path for directory in self.directories)

    @property
    def entries(self) -> int:
        """How many names are to be shadowed."""
        return sum(len(directory.listing.entries) for directory in self.directories)


class Busy(PromoterdError):
    """{path} changed while it was being shadowed: {reason}."""

    default_hint = "it is tried again later"


class Backend(ABC):
    """How entries get shadowed, and how a directory is marked.

    One object serves one mount. Every method blocks and is called from a worker thread with layers opened for that
    call alone; none keeps a descriptor.
    """

    name: ClassVar[str]
    marks: ClassVar[bool]
    """False for a backend that never changes anything."""

    def __init__(self, overlay: Overlay, *, scratch: bytes, batch: int = 512, lanes: int = 2) -> None:
        """``batch``: entries between two looks at the throttle; ``lanes``: directories worked on side by side."""
        self.overlay = overlay
        self.scratch = scratch
        self.batch = batch
        self.lanes = lanes

    @classmethod
    @abstractmethod
    def findings(cls, overlay: Overlay, facts: Facts) -> list[Finding]:
        """What speaks against this backend on this mount; one ``refuse`` is enough to make it unfit."""

    @abstractmethod
    def plan(self, layers: Layers, path: bytes, terms: Terms) -> Plan:
        """The closure that has to be completed with ``path``. Raises Refused, before anything is changed."""

    @abstractmethod
    def shadow(self, plan: Plan) -> Iterator[int]:
        """Give every entry of the plan a local one, in batches.

        Yields the size of each batch *before* doing it, so that the caller can hold it back. Raises Busy, Refused,
        OSError.
        """

    def lasts(self, times: int) -> float | None:
        """For a backend that marks nothing: how many seconds after its beginning :meth:`shadow` is to be done again.

        ``times``: how many times in a row it will have been done then. None where it does nothing, and is not called.
        """
        del times
        return None

    @abstractmethod
    def complete(self, plan: Plan) -> list[bytes]:
        """Verify that the plan's directories are shadowed, make that durable, and mark them, children first.

        Returns the paths that carry a mark now. Raises Busy where something changed meanwhile.
        """

    @abstractmethod
    def on_disk(self, layers: Layers, path: bytes) -> OnDisk:
        """The state of a directory, from disk."""

    @abstractmethod
    def reopen(self, paths: Sequence[bytes], *, check_quiet: Callable[[], None]) -> None:
        """Undo the completion of these directories, given top-down, while nothing can write there (R5, R6).

        Nobody may have changed their names in the quiet period before, nor until the effect is proven. ``check_quiet``
        raises Busy where somebody did in that period, which goes on; it is called once the directories are watched, and
        before anything is changed. Raises Busy also where it did not take effect or somebody wrote meanwhile: the marks
        are then as before. Raises Refused, before anything is changed.
        """


def names() -> list[str]:
    """Names of all registered backends, without importing them."""
    return plugins.names(GROUP)


def load(name: str) -> type[Backend]:
    """The backend registered under ``name``. Raises UsageError with the known names, or with the import's failure."""
    return plugins.load(GROUP, name, Backend, "backend")  # type: ignore[type-abstract]
