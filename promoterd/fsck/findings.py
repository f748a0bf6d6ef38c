"""What a check can find, how bad that is, and what can be done about it (pure)."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from enum import IntFlag, StrEnum
from typing import Any

from promoterd.errors import Interrupted, PromoterdError, UsageError
from promoterd.paths import join, show

MOST = 50
"""Findings of one directory that are told one by one; the others are counted."""


class Exit(IntFlag):
    """Exit codes, which add up as in fsck(8)."""

    CLEAN = 0
    CORRECTED = 1
    UNCORRECTED = 4
    OPERATIONAL = 8
    USAGE = 16
    CANCELLED = 32


def exit_code_of(error: PromoterdError) -> int:
    """What a check that could not be made exits with."""
    if isinstance(error, UsageError):
        return int(Exit.USAGE)
    return int(Exit.CANCELLED if isinstance(error, Interrupted) else Exit.OPERATIONAL)


class Area(StrEnum):
    """Where it was found."""

    LAYER = "layer"
    UPPER = "upper"
    HOME = "home"
    LEDGER = "ledger"


class Kind(StrEnum):
    """What is wrong, or worth knowing."""

    MISSING = "missing"
    EXTRA = "extra"
    TYPE = "type"
    SIZE = "size"
    TIME = "time"
    OWNER = "owner"
    MODE = "mode"
    TARGET = "target"
    DEVICE = "device"
    REDIRECT = "redirect"
    HARD_LINK = "hard-link"
    NO_DATA = "no-data"
    COPY = "copy"
    STRAY = "stray"
    XATTR = "xattr"
    TWIN = "twin"
    GHOST = "ghost"
    NO_PROVENANCE = "no-provenance"
    BAD_PROVENANCE = "bad-provenance"
    OTHER_LOWER = "other-lower"
    MERGED_CHILD = "merged-child"
    LEANING = "leaning"
    ROLL = "roll"
    UNFINISHED = "unfinished"
    TIMES = "times"
    STRAY_ROLL = "stray-roll"
    STAGE = "stage"
    SCRATCH = "scratch"
    GRAVE = "grave"
    RECORD = "record"
    UNREADABLE = "unreadable"
    MOVED = "moved"
    FOREIGN = "foreign"
    OPEN = "open"
    CHANGING = "changing"
    WAITING = "waiting"


INFORMATION = frozenset({Kind.MOVED, Kind.FOREIGN, Kind.OPEN, Kind.CHANGING, Kind.WAITING})
"""Kinds that are no error: a user's own, what the daemon has in hand, and what could not be judged."""

ENTRY = frozenset(
    {
        Kind.MISSING, Kind.EXTRA, Kind.TYPE, Kind.SIZE, Kind.TIME, Kind.OWNER, Kind.MODE, Kind.TARGET, Kind.DEVICE,
        Kind.REDIRECT, Kind.HARD_LINK, Kind.NO_DATA, Kind.COPY,
    }
)  # fmt: skip
"""Kinds that say of an entry that a reader would see something else than the server has."""

IN_HAND = frozenset({Kind.UNFINISHED, Kind.TIMES, Kind.TWIN})
"""What a directory passes through while it is worked on; an error only where nobody works."""
KEPT_IN_UPPER = frozenset({Kind.OWNER, Kind.MODE})
"""What an entry of upper keeps, whether it is marked or not: a changed one may be the user's."""

_WAYS: dict[Kind, str] = {
    Kind.GHOST: "the daemon takes it out at a recheck, unless much vanished at once; see to the server first",
    Kind.OTHER_LOWER: "mount the lower layers as they were; the daemon sees to directories of a new server",
    Kind.BAD_PROVENANCE: "use the promoterd that wrote it, or unmount and remove the directory from this layer",
    Kind.TWIN: "the daemon's next start settles it, and so does `fsck --offline --repair`",
    Kind.UNREADABLE: "see to that, and check again",
    Kind.GRAVE: "`fsck --offline --repair` empties the graveyard",
}
_WAYS_IN: dict[Area, str] = {
    Area.LAYER: "--repair lets the server answer for it",
    Area.UPPER: "--repair reopens the directory",
    Area.HOME: "--repair removes it",
    Area.LEDGER: "--repair corrects the ledger, and so does the daemon's next start",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing found, in the directory at ``path`` (``b""`` is the root); ``name`` is an entry of it.

    ``detail`` says what, in words. Two checks found the same if these are equal.
    """

    area: Area
    path: bytes
    kind: Kind
    detail: str
    name: str | None = None

    @property
    def is_error(self) -> bool:
        """Whether it is more than information."""
        return self.kind not in INFORMATION

    @property
    def where(self) -> str:
        """The path, for people."""
        return show(self.path if self.name is None else join(self.path, self.name.encode("utf-8", "surrogateescape")))

    @property
    def way_out(self) -> str:
        """What can be done about an error."""
        if self.area is Area.UPPER and self.kind in KEPT_IN_UPPER:
            return "what was copied up keeps its own: change it through the overlay"
        return _WAYS.get(self.kind, _WAYS_IN[self.area])


@dataclass(frozen=True, slots=True)
class Row:
    """A finding with what became of it; ``more``: so many others of its directory are not told one by one."""

    finding: Finding
    corrected: bool = False
    note: str = ""
    more: int = 0

    def to_dict(self) -> dict[str, Any]:
        """For programs."""
        return {
            "path": self.finding.where,
            "area": self.finding.area.value,
            "kind": self.finding.kind.value,
            "severity": "error" if self.finding.is_error else "information",
            "what": self.finding.detail,
            "corrected": self.corrected,
            "note": self.note,
            "more": self.more,
        }


@dataclass(slots=True)
class Report:
    """What a check came to."""

    rows: list[Row] = field(default_factory=list)
    directories: int = 0
    entries: int = 0
    writer: str = ""
    """Who holds the writer lock, if somebody else does."""
    _told: dict[Kind, list[int]] = field(default_factory=dict)

    def add(self, rows: Iterable[Row]) -> None:
        """Note more of them; of each kind of information only the first are told one by one."""
        for row in rows:
            told = self._told.setdefault(row.finding.kind, [])
            if row.finding.is_error or len(told) < MOST:
                told.append(len(self.rows))
                self.rows.append(row)
            else:
                last = self.rows[told[-1]]
                self.rows[told[-1]] = replace(last, more=last.more + 1 + row.more)

    @property
    def corrected(self) -> int:
        """How many errors were corrected."""
        return sum(1 + row.more for row in self.rows if row.finding.is_error and row.corrected)

    @property
    def uncorrected(self) -> int:
        """How many errors are left."""
        return sum(1 + row.more for row in self.rows if row.finding.is_error and not row.corrected)

    @property
    def exit_code(self) -> int:
        """As fsck(8)."""
        code = Exit.CLEAN
        if self.corrected:
            code |= Exit.CORRECTED
        if self.uncorrected:
            code |= Exit.UNCORRECTED
        if any(row.finding.kind is Kind.UNREADABLE for row in self.rows):
            code |= Exit.OPERATIONAL
        return int(code)

    def to_dict(self) -> dict[str, Any]:
        """For programs."""
        return {
            "directories": self.directories,
            "entries": self.entries,
            "writer": self.writer,
            "corrected": self.corrected,
            "uncorrected": self.uncorrected,
            "exit_code": self.exit_code,
            "findings": [row.to_dict() for row in self.rows],
        }
