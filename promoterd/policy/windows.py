"""Times of the week, such as ``Mon-Fri 20:00-06:00``, by the clock on the wall (pure).

A window that ends before it begins ends on the next day, and belongs to the day on which it begins. Where the clock is
set forward or back, a window begins and ends when the clock shows its hours.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, time, timedelta, tzinfo
from functools import lru_cache
from typing import Annotated, Final

from pydantic import AfterValidator

from promoterd.units import Allowed, InvalidValueError, shown

WINDOW: Final = "days and hours such as Mon-Fri 20:00-06:00, Sat,Sun or 22:30-05:00"

_DAYS: Final = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_LONG: Final = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
_DAY: Final = 24 * 60
_WEEK: Final = 7 * _DAY
_TEXT: Final = re.compile(r"(?P<days>[A-Za-z][A-Za-z ,-]*?)?\s*(?P<hours>\d[\d:]*\s*-\s*\d[\d:]*)?")
_HOURS: Final = re.compile(r"(\d{1,2}):(\d\d)\s*-\s*(\d{1,2}):(\d\d)")


@dataclass(frozen=True, slots=True)
class Window:
    """Days of the week, from 0 for Monday, and minutes of the day; ``end`` may lie on the next day."""

    days: tuple[int, ...]
    begin: int
    end: int

    def spans(self) -> Iterable[tuple[int, int]]:
        """From when until when, in minutes of the week; the last may reach into the next week."""
        return [(day * _DAY + self.begin, day * _DAY + self.end) for day in self.days]


@lru_cache(maxsize=256)
def parse(text: str) -> Window:
    """Raises InvalidValueError."""
    match = _TEXT.fullmatch(text.strip())
    if not match or not text.strip():
        raise InvalidValueError(shown(text), WINDOW, _better(text))
    days = _days(match["days"], text)
    if match["hours"] is None:
        return Window(days, 0, _DAY)
    hours = _HOURS.fullmatch(match["hours"])
    if not hours:
        raise InvalidValueError(shown(text), WINDOW, _better(text))
    begin, end = (_minutes(hours[at], hours[at + 1], text) for at in (1, 3))
    if begin in (end, _DAY):
        raise InvalidValueError(shown(text), "a window that begins before it ends, or 00:00-24:00 for the whole day")
    return Window(days, begin, end if end > begin else end + _DAY)


def _minutes(hour: str, minute: str, text: str) -> int:
    minutes = int(hour) * 60 + int(minute)
    if int(minute) >= 60 or minutes > _DAY:  # noqa: PLR2004 - minutes of an hour
        raise InvalidValueError(shown(text), "hours from 00:00 to 24:00")
    return minutes


def _days(text: str | None, whole: str) -> tuple[int, ...]:
    if text is None or text.strip().lower() == "daily":
        return tuple(range(7))
    found: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.partition("-")
        begin = _day(first, whole)
        end = _day(last, whole) if dash else begin
        found.update((begin + number) % 7 for number in range((end - begin) % 7 + 1))
    return tuple(sorted(found))


def _day(text: str, whole: str) -> int:
    word = text.strip().capitalize()
    if word not in _DAYS:
        raise InvalidValueError(shown(whole), WINDOW, _better(whole))
    return _DAYS.index(word)


def _better(text: str) -> str | None:
    """The same with names of days as they are to be written, and minutes where there are only hours."""
    words = re.sub(r"[A-Za-z]+", lambda word: _short(word[0]), text.strip())
    better = re.sub(r"(?<![\d:])(\d{1,2})(?![\d:])", r"\1:00", words)
    try:
        return better if better != text.strip() and parse(better) else None
    except InvalidValueError:
        return None


def _short(word: str) -> str:
    long = [day for day in _LONG if day.startswith(word.lower()) and len(word) >= 2]  # noqa: PLR2004 - else ambiguous
    return long[0][:3].capitalize() if len(long) == 1 else word


def _checked(text: str) -> str:
    parse(text)
    return " ".join(text.split())


WindowText = Annotated[str, AfterValidator(_checked), Allowed(WINDOW)]


def is_open(windows: Iterable[str], now: float, zone: tzinfo | None = None) -> bool:
    """Whether ``now`` (seconds since the epoch) lies in one of them, in local time or that of ``zone``."""
    minute = _minute_of_week(datetime.fromtimestamp(now, zone))
    spans = [span for window in windows for span in parse(window).spans()]
    return any(begin <= minute < end or begin <= minute + _WEEK < end for begin, end in spans)


def next_opening(windows: Iterable[str], now: float, zone: tzinfo | None = None) -> float:
    """When the next one opens, in seconds since the epoch; none of them is open now."""
    wall = datetime.fromtimestamp(now, zone)
    monday = wall.date() - timedelta(days=wall.weekday())
    checked = list(windows)
    openings: list[float] = []
    for window in checked:
        for begin, _ in parse(window).spans():
            for week in (0, 7, 14):
                day = monday + timedelta(days=begin // _DAY + week)
                openings += _moments(datetime.combine(day, time(begin % _DAY // 60, begin % 60), zone))
    return next(moment for moment in sorted(openings) if moment > now and is_open(checked, moment, zone))


def _moments(clock: datetime) -> Iterable[float]:
    """When the clock shows this; twice where it is set back, and where it is set forward, each minute around that."""
    first, second = (clock.replace(fold=fold).timestamp() for fold in (0, 1))
    if second < first:  # the clock skips it
        return [second + 60 * minute for minute in range(round(first - second) // 60 + 1)]
    return [first, second]


def _minute_of_week(wall: datetime) -> int:
    return wall.weekday() * _DAY + wall.hour * 60 + wall.minute
