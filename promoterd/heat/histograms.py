"""What the kernel's histogram triggers have counted (Documentation/trace/histogram.rst); no I/O."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

Row: TypeAlias = tuple[int, ...]
"""The values of a histogram's keys, in their order."""

_SECTION = b"# event histogram\n"
_TRIGGER = re.compile(rb"^# trigger info: (.*) \[(?:active|paused)\]$", re.MULTILINE)
_ROW = re.compile(rb"^\{ (.*) \} hitcount: +(\d+)", re.MULTILINE)
_VALUE = re.compile(rb": +(\d+)")
_TOTALS = re.compile(rb"^ +Hits: (\d+)\n +Entries: (\d+)\n +Dropped: (\d+)$", re.MULTILINE)


@dataclass(frozen=True)
class Histogram:
    """One histogram at one moment.

    ``trigger`` is what the kernel says of it, with what it has put in by itself; ``entries`` are the places that are
    taken, and ``dropped`` the events for which there was none, which are among ``hits``.
    """

    trigger: str
    rows: dict[Row, int]
    hits: int
    entries: int
    dropped: int


def parse(text: bytes) -> list[Histogram]:
    """All histograms of an event: those of the file ``hist``. One that is not understood is left out."""
    return [found for section in text.split(_SECTION)[1:] if (found := _parse_one(section)) is not None]


def _parse_one(section: bytes) -> Histogram | None:
    trigger, totals = _TRIGGER.search(section), _TOTALS.search(section)
    if trigger is None or totals is None:
        return None
    rows = {tuple(map(int, _VALUE.findall(keys))): int(count) for keys, count in _ROW.findall(section)}
    hits, entries, dropped = map(int, totals.groups())
    return Histogram(trigger[1].decode("utf-8", "replace"), rows, hits, entries, dropped)


class Growth:
    """What a histogram has gained since it was looked at last, as it is emptied only now and then.

    It only grows until it is cleared, so that nothing is lost between two readings; what is counted between the last
    reading and the clearing is.
    """

    __slots__ = ("_dropped", "_seen")

    def __init__(self) -> None:
        self._seen: dict[Row, int] = {}
        self._dropped = 0

    def gained(self, now: Histogram) -> dict[Row, int]:
        """The rows that grew, and by how much."""
        before, self._seen = self._seen, now.rows
        return {row: count - before.get(row, 0) for row, count in now.rows.items() if count > before.get(row, 0)}

    def dropped(self, now: Histogram) -> int:
        """How many events found no place."""
        before, self._dropped = self._dropped, now.dropped
        return max(0, now.dropped - before)

    def cleared(self) -> None:
        """The histogram begins anew."""
        self._seen, self._dropped = {}, 0


def clearing(trigger: str) -> str:
    """The command that empties a histogram; the trigger itself must be known word for word."""
    what, condition, which = trigger.partition(" if ")
    return f"{what}:clear{condition}{which}"


def condition_on(field: str, values: Sequence[int]) -> str:
    """That a field has one of these values, as a filter writes it."""
    each = [f"{field} == {value}" for value in values]
    return each[0] if len(each) == 1 else f"({' || '.join(each)})"
