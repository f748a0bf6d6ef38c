"""What a backend is, and how one is found.

A backend owns three verbs, *shadow*, *complete* and *reopen*, and one question, *the state of this directory*, which
it answers from disk and never from memory. Backends are classes registered under the entry point group
``promoterd.backends``; ``docs/backends.md`` holds a worked example of one in a package of its own.
"""

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar

from promoterd import plugins
from promoterd.errors import PromoterdError
from promoterd.overlay.fitness import Facts, Finding
from promoterd.overlay.ghosts import Removed
from promoterd.overlay.listing import Layers, LowerListing
from promoterd.overlay.mounts import Overlay
from promoterd.payback import CAUTIOUS, Prices
from promoterd.provenance import Provenance

if TYPE_CHECKING:
    from promoterd.backends.data import DataStore

GROUP = "promoterd.backends"


class MarkState(StrEnum):
    """What is on disk for a directory."""

    NONE = "none"
    OPEN = "open"
    OURS = "ours"
    FOREIGN = "foreign"
    MOVED = "moved"


@dataclass(frozen=True, slots=True)
class OnDisk:
    """The state of a directory as its layers tell it.

    ``in_effect`` says whether the mark is known to be answering on the live mount: None where the file system gives
    no proof. A mark that is not ours is FOREIGN; ours on a directory that was renamed since is MOVED. OPEN is what was
    complete, or is being completed in place: lower is asked, but what stands in the way of its answers has to be kept
    true to it.
    """

    mark: MarkState
    provenance: Provenance | None = None
    in_effect: bool | None = None


@dataclass(frozen=True, slots=True)
class DirectoryTerms:
    """What policy demands of one directory of a closure, as plain values.

    ``forbidden`` is the reason why it must never be complete. An entry whose mtime or ctime is newer than
    ``oldest_allowed_ns`` is too young (R7). ``chain``: complete it for the sake of what is complete below it.
    ``copy_xattrs``: its entries' ACLs, capabilities and other attributes are looked for and taken over.
    ``wants_data``: which of its files, by path and size, are to have their data kept locally, if any are.
    """

    forbidden: str | None = None
    oldest_allowed_ns: int = 0
    break_hardlinks: bool = False
    hide_unlisted: bool = False
    ignore_watchers: bool = False
    chain: bool = True
    copy_xattrs: bool = True
    wants_data: Callable[[bytes, int], bool] | None = None


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
    data_room: dict[bytes, int] = field(default_factory=dict)
    """How many bytes of data may be copied into each directory besides what it has; by default none."""
    data_cost: int = 0
    """What copying data has asked of the server so far, in entries."""

    @cached_property
    def paths(self) -> frozenset[bytes]:
        """The directories of the closure."""
        return frozenset(directory.path for directory in self.directories)

    @property
    def renewed(self) -> list[bytes]:
        """Directories that the overlay will know by another inode: a watch on the one that it has now goes dead."""
        return [directory.path for directory in self.directories]

    @property
    def entries(self) -> int:
        """How many names are to be shadowed."""
        return sum(len(directory.listing.entries) for directory in self.directories)


@dataclass(frozen=True, slots=True)
class Traces:
    """Directories with provenance of ours, and those that only have to look as lower's do (R2)."""

    marked: list[bytes]
    followed: list[bytes]


class Busy(PromoterdError):
    """{path} cannot be changed now: {reason}."""

    default_hint = "it is tried again later"


class Backend(ABC):
    """How entries get shadowed, and how a directory is marked.

    One object serves one mount. Every method blocks and is called from a worker thread with layers opened for that
    call alone; none keeps a descriptor.
    """

    name: ClassVar[str]
    marks: ClassVar[bool]
    """False for a backend that never changes anything."""
    requests_per_entry: ClassVar[float] = 0.1
    """About how many requests to the server shadowing an entry takes: what a batch may have of them goes by it."""
    uses_scratch: ClassVar[bool] = False
    """Whether it needs the scratch directory in the overlay (R17)."""
    resyncs: ClassVar[bool] = False
    """Whether a directory that the server changed is brought in line with it; otherwise it is reopened."""
    reopens_live: ClassVar[bool] = False
    """Whether any directory can be reopened under writers, with what is complete below it.

    Otherwise it is reopened with what is complete above it, and while nobody can write (R5, R6).
    """
    effect_shows_in_inode: ClassVar[bool] = False
    """Whether a mark took effect if, and only if, the overlay made the directory's inode after it (R13)."""

    def __init__(self, overlay: Overlay, *, scratch: bytes, batch: int = 512, lanes: int = 2) -> None:
        """``batch``: entries between two looks at the throttle, it may change; ``lanes``: directories at a time."""
        self.overlay = overlay
        self.scratch = scratch
        self.batch = batch
        self.lanes = lanes
        self.data: DataStore | None = None
        """Copies of files' data, for a backend that keeps any."""

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

    def prices(self, *, with_data: bool) -> Prices:
        """What its promotions cost the server, and what they spare it, for choosing what to promote, and in what order.

        ``with_data``: policy wants files' data kept locally. By default the dearest that is known.
        """
        del with_data
        return CAUTIOUS

    # What a backend that changes nothing leaves as it is

    held: Sequence[bytes] = ()
    """What was removed, but is still shown, since a process holds it; :meth:`sweep` finds what was let go."""

    @property
    def place(self) -> bytes:
        """Where its shadows are: the directory whose file system they fill, and that only one process writes to."""
        return self.overlay.upper or b"/"

    def resync(self, layers: Layers, path: bytes, terms: Terms) -> Plan:
        """The plan that brings a directory in line with the server after a change; see ``resyncs``.

        It is shadowed and completed as any other; complete() marks nothing that policy forbids for now.
        """
        raise NotImplementedError

    def abandon(self, plan: Plan) -> None:
        """Forget what :meth:`shadow` has prepared for a plan, whether it was completed or not."""
        del plan

    def read_back(self, layers: Layers, path: bytes) -> str | None:
        """What is wrong with a directory whose mark is in effect, as an application sees it; None where nothing is."""
        del layers, path
        return None

    def unshadowed(self, layers: Layers, path: bytes, listing: LowerListing) -> set[str]:
        """Names of lower that have no local entry which could stand without it."""
        return set(listing.entries).difference(layers.list_upper(path))

    def checkable(self, layers: Layers, path: bytes) -> list[str]:
        """Files whose shadows hold nothing but lower's attributes: to be compared with the server's (R8)."""
        del layers, path
        return []

    def files_root(self, layers: Layers) -> int:
        """The root of the layer that holds the shadows of files."""
        return layers.upper

    def differs(self, shadows: int, name: str, now: os.stat_result) -> bool:
        """Whether a file on the server is another than its shadow in the directory ``shadows`` says.

        Its owner and mode may be the user's doing. Raises OSError.
        """
        shadow = os.stat(name, dir_fd=shadows, follow_symlinks=False)
        return (now.st_size, now.st_mtime_ns) != (shadow.st_size, shadow.st_mtime_ns)

    def traces(self, layers: Layers, path: bytes) -> Traces:
        """What is ours at ``path`` and below. Raises OSError."""
        del layers, path
        return Traces([], [])

    def sweep(self, layers: Layers) -> int:
        """Remove what nothing refers to any more; how much has to stay because something still may.

        What is shown although it was removed counts as well: as long as there is any, activations come again.
        """
        del layers
        return 0

    def finish_promotion(self, layers: Layers, path: bytes) -> None:
        """Undo the half of an interrupted promotion that no later one would build on."""
        del layers, path

    def finish_reopening(self, layers: Layers, path: bytes) -> int:
        """Finish or undo an interrupted reopening; how many directories it was about. Raises Busy, Refused, OSError."""
        del layers, path
        return 0

    def remove_ghost(self, layers: Layers, path: bytes) -> Removed:
        """Remove our shadows at and below ``path``, which no lower layer has; never what a user made (R1)."""
        del layers
        return Removed(path, 0, ())

    def follow(self, layers: Layers, path: bytes) -> bool:
        """Make an incomplete directory of ours look as lower's does again; whether it did not (R2). Raises OSError."""
        del layers, path
        return False

    def followers(self, layers: Layers, path: bytes) -> list[bytes]:
        """Directories in a complete one that are not complete, and freeze how they look until they follow lower."""
        del layers, path
        return []


def names() -> list[str]:
    """Names of all registered backends, without importing them."""
    return plugins.names(GROUP)


def load(name: str) -> type[Backend]:
    """The backend registered under ``name``. Raises UsageError with the known names, or with the import's failure."""
    return plugins.load(GROUP, name, Backend, "backend")  # type: ignore[type-abstract]
