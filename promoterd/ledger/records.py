"""The rows of the ledger. Paths are bytes relative to the mount, times are seconds since the epoch."""

from dataclasses import dataclass

from promoterd.states import State


@dataclass(frozen=True, slots=True)
class UpperRecord:
    """An upper layer that was seen: its id, and where it stood the last time."""

    id: str
    mountpoint: bytes
    layers: tuple[bytes, ...]
    first_seen: float
    retired: bool = False
    paused: str | None = None
    """Why nothing is promoted there, or None."""


@dataclass(frozen=True, slots=True)
class DirectoryRecord:
    """A directory and where it stands in its life."""

    path: bytes
    state: State
    since: float
    reason: str | None = None
    backend: str | None = None
    entries: int = 0
    attempts: int = 0
    retry_at: float | None = None
    marked_at: float | None = None
    last_checked: float | None = None


@dataclass(frozen=True, slots=True)
class AncestorRecord:
    """A directory that was copied up only because a promoted one lies below it (R2)."""

    path: bytes


@dataclass(frozen=True, slots=True)
class DeferredReopen:
    """A reopening that has to wait for an unmounted or read-only overlay, and why (R6)."""

    path: bytes
    reason: str
    since: float


@dataclass(frozen=True, slots=True)
class JournalEntry:
    """An operation that was begun and not finished: what a start after a crash has to finish or undo."""

    path: bytes
    operation: str
    step: str
    started: float


@dataclass(frozen=True, slots=True)
class HeatRecord:
    """A directory's decayed heat by one kind of use, as it was at a moment; "" where the kind is not known."""

    path: bytes
    heat: float
    at: float
    kind: str = ""
