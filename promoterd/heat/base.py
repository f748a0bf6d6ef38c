"""What a heat source is, and how one is found.

A source hears what applications do on one mount and tells a sink which directories that concerns. Sources are classes
registered under the entry point group ``promoterd.heat_sources``. Two kinds are provided for: those that must be told
each directory to listen at (inotify), and those that hear everything at once (fanotify on the mount, tracepoints of the
NFS client). The latter have ``arms = False`` and leave out what our own process does. Those that are told inodes and no
paths want to learn all the same which directories there are.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar, Protocol

from promoterd import plugins
from promoterd.units import Share, ShareOrAmount

GROUP = "promoterd.heat_sources"
_HALF = Share(0.5)


class Kind(StrEnum):
    """What somebody did in a directory. A source may have words of its own besides."""

    OPEN = "open"
    """An entry was opened or executed."""
    LIST = "list"
    """The directory itself was opened."""
    MISS = "miss"
    """A name was looked up that does not exist."""
    FOUND = "found"
    """A name that exists was looked up on the server."""


class HeatSink(Protocol):
    """Who listens to a source. It is called from within :meth:`HeatSource.drain` only, and must not block."""

    def touched(self, path: bytes, weight: float, kind: str) -> None:
        """A directory was used; ``weight`` sums up all uses of this kind since the last time."""

    def overflowed(self) -> None:
        """Some events were lost: anything may have happened, and everything is to be reconsidered."""

    def appeared(self, path: bytes) -> None:
        """A directory was made or moved here through the mount; there may be others in it already."""

    def vanished(self, path: bytes) -> None:
        """A directory is no longer there under this path; ``b""`` says that the whole mount is gone.

        Directories below it that the source knew are reported one by one as well.
        """


@dataclass(frozen=True, slots=True)
class MountView:
    """What a source may know of its mount; no policy, and nothing open.

    ``device`` is the overlay's own device number. ``layers`` are the directories that the overlay was made of, upper
    first, for sources that are told inode numbers of a layer. ``may_promote`` says whether policy could promote a
    directory, ``may_promote_below`` whether it could promote that or anything in it; both are pure and quick.
    ``max_watches`` is a number of watches, or a share of what the kernel grants the user, ``max_directories`` what a
    source may keep in mind.
    """

    mountpoint: bytes
    device: tuple[int, int]
    may_promote: Callable[[bytes], bool]
    may_promote_below: Callable[[bytes], bool]
    layers: tuple[bytes, ...] = ()
    max_watches: ShareOrAmount = _HALF
    max_directories: int = 100_000


@dataclass(frozen=True, slots=True)
class Armed:
    """What became of the directories that were to be armed.

    ``refused`` for want of watches; ``gone`` are those that are not, or no longer, directories of this mount under
    this path, with what was known below them; ``failed`` have an errno beside them that says no such thing (EIO).
    """

    refused: tuple[bytes, ...] = ()
    gone: tuple[bytes, ...] = ()
    failed: tuple[tuple[bytes, int], ...] = ()


@dataclass(frozen=True, slots=True)
class SourceStats:
    """A source in numbers, for metrics and ``status``.

    ``limit`` is how many watches it may use at most (None: it needs none), ``watches`` how many it uses now, ``armed``
    how many directories are heard and ``refused`` how many should be and could not, nearly always for want of watches.
    ``events`` and ``overflows`` count from the start on; so do ``unattributed``, the events that could not be said to
    belong to a directory of this mount, and ``sampled``, those that were only counted in samples under overload.
    """

    limit: int | None
    watches: int
    armed: int
    refused: int
    events: int
    overflows: int
    unattributed: int = 0
    sampled: int = 0


@dataclass(frozen=True, slots=True)
class Part:
    """One of the sources that work on a mount: why it does, and in numbers."""

    name: str
    why: str
    stats: SourceStats


class HeatSource(ABC):
    """Hears one mount.

    ``start``, ``drain`` and ``close`` belong to one thread, the event loop's, and never wait for the mount. All others
    may be called from any thread; ``arm`` and ``rearm`` do wait for the mount, for as long as a dead server takes to
    come back, and keep no descriptor of it once they return (R16).
    """

    name: ClassVar[str]
    arms: bool = True
    """Whether directories have to be armed one by one."""
    wants_directories: bool = True
    """Whether it is of use to tell it which directories there are, by :meth:`arm`."""

    def __init__(self, view: MountView, sink: HeatSink) -> None:
        self.view = view
        self.sink = sink

    @classmethod
    def unfit(cls) -> str | None:
        """Why this machine cannot have this source, for ``doctor``; None if it can."""
        return None

    @abstractmethod
    def start(self) -> None:
        """Begin to hear. Raises PromoterdError where the kernel grants no means to."""

    @abstractmethod
    def close(self) -> None:
        """Stop, without waiting for arming under way; may be called twice."""

    @abstractmethod
    def fileno(self) -> int | None:
        """A descriptor that is readable when ``drain`` has something to do; None if it is to be called now and then.

        A busy mount makes it readable all the time: to call ``drain`` once a second instead saves most of the work.
        """

    @abstractmethod
    def drain(self) -> int:
        """Tell the sink what is pending, and return the number of events that it took; never waits."""

    @abstractmethod
    def stats(self) -> SourceStats:
        """The numbers as of now."""

    def parts(self) -> list[Part]:
        """The sources that this one is made of, each by its name."""
        return [Part(self.name, "the policy names it", self.stats())]

    def left(self) -> Mapping[str, str]:
        """Other sources that were considered and do not work here, with the reason."""
        return {}

    def paths(self) -> list[bytes]:
        """The directories that are armed."""
        return []

    def refused(self) -> list[bytes]:
        """The directories that should be armed and could not be; :meth:`arm` them again at times."""
        return []

    def catch_up(self) -> None:  # noqa: B027 - for sources whose events come a little later
        """See to it that the next drain has all that has happened so far; may wait for the mount. Raises OSError."""

    def unsure(self) -> list[bytes]:
        """The directories that are to be confirmed before it can be said what was heard of them; asked after a drain.

        For sources that are told inodes: what they know of a directory may be out of date.
        """
        return []

    def confirm(self, paths: Iterable[bytes]) -> None:  # noqa: B027 - for sources that are sure
        """Look at these directories, of which the source was unsure; waits for the mount. Raises OSError."""

    def arm(self, paths: Iterable[bytes]) -> Armed:  # noqa: ARG002 - for sources that hear everything
        """Hear these directories from now on, but for those that are disarmed and those that policy cannot promote.

        Raises MountGone, OSError where not even the mount's root answers.
        """
        return Armed()

    def disarm(self, paths: Iterable[bytes]) -> None:  # noqa: B027 - for sources that hear everything
        """Do not hear these directories until :meth:`rearm`, because we work there ourselves, whoever arms them."""

    def rearm(self, paths: Iterable[bytes]) -> Armed:  # noqa: ARG002 - for sources that hear everything
        """Hear these directories anew: after :meth:`disarm`, an overflow, or a mark that has taken effect on them.

        Otherwise as :meth:`arm`.
        """
        return Armed()


def names() -> list[str]:
    """Names of all registered sources, without importing them."""
    return plugins.names(GROUP)


def load(name: str) -> type[HeatSource]:
    """The source registered under ``name``. Raises UsageError with the known names, or with the import's failure."""
    return plugins.load(GROUP, name, HeatSource, "heat source")  # type: ignore[type-abstract]
