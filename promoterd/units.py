"""Human units: ``10m``, ``64KiB``, ``5%`` - read, written back exactly, and as types for pydantic models.

Durations are seconds (float), sizes are bytes (int). What is read, formatted and read again is the same value.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from typing import Annotated, Final, TypeAlias

from pydantic import BeforeValidator, PlainSerializer, PlainValidator

from promoterd.errors import UsageError
from promoterd.paths import display

DURATION: Final = "a duration such as 500ms, 90s, 10m, 1h30m or 7d (a plain number means seconds)"
SIZE: Final = "a size such as 4096, 64KiB, 10GiB (powers of 1024) or 1GB (powers of 1000)"
SHARE_OR_SIZE: Final = "a share such as 5%, or " + SIZE
SHARE_OR_COUNT: Final = "a share such as 50%, or a whole number"

_SECONDS: Final[dict[str, Decimal]] = {
    "w": Decimal(604_800),
    "d": Decimal(86_400),
    "h": Decimal(3_600),
    "m": Decimal(60),
    "s": Decimal(1),
    "ms": Decimal("0.001"),
}
_LONGEST_SECONDS: Final = 36_500 * 86_400  # a hundred years: beyond it, C time-outs overflow
_BYTES: Final = {
    "b": 1,
    **{f"{prefix}ib": 1024**power for power, prefix in enumerate("kmgtpe", 1)},
    **{f"{prefix}b": 1000**power for power, prefix in enumerate("kmgtpe", 1)},
}
_MOST: Final = 2**63 - 1  # off_t, and SQLite's integers
_WIDEST: Final = 80
_NUMBER: Final = r"(\d{1,20}(?:\.\d{1,20})?)"
_DURATION_PART: Final = re.compile(_NUMBER + r"\s*([A-Za-z]+)\s*", re.ASCII)
_SIZE_TEXT: Final = re.compile(_NUMBER + r"\s*([A-Za-z]*)", re.ASCII)
_SHARE: Final = re.compile(_NUMBER + r"\s*%", re.ASCII)
_PLAIN: Final = re.compile(_NUMBER, re.ASCII)

_WORDS: Final = {
    **dict.fromkeys(("sec", "secs", "second", "seconds"), "s"),
    **dict.fromkeys(("min", "mins", "minute", "minutes"), "m"),
    **dict.fromkeys(("hr", "hrs", "hour", "hours"), "h"),
    **dict.fromkeys(("day", "days"), "d"),
    **dict.fromkeys(("week", "weeks"), "w"),
    **dict.fromkeys(("msec", "msecs", "millis", "milliseconds"), "ms"),
}


class InvalidValueError(UsageError, ValueError):
    """found {found}; allowed {allowed}"""  # noqa: D400 - a format string, not a sentence

    def __init__(self, found: str, allowed: str, suggestion: str | None = None) -> None:
        suggestion = suggestion if suggestion and suggestion.isprintable() else None
        hint = f"did you mean {suggestion}?" if suggestion else None
        super().__init__(hint=hint, found=found, allowed=allowed)
        self.found = found
        self.allowed = allowed
        self.suggestion = suggestion


@dataclass(frozen=True, slots=True)
class Allowed:
    """Beside a type: what a person may write there. Error messages and the policy reference quote it."""

    text: str


@dataclass(frozen=True, slots=True)
class Share:
    """A part of a whole, 0 to 1."""

    fraction: float

    def of(self, whole: int) -> int:
        """This share of ``whole``, rounded down."""
        return int(Decimal(repr(self.fraction)) * whole)

    def __str__(self) -> str:
        return f"{_plain(Decimal(repr(self.fraction)) * 100)}%"


@dataclass(frozen=True, slots=True)
class Amount:
    """A fixed number of bytes, inodes or watches."""

    count: int

    def of(self, whole: int) -> int:  # noqa: ARG002 - the same question as to a Share
        """The amount itself, whatever the whole is."""
        return self.count


ShareOrAmount: TypeAlias = Share | Amount


def parse_duration(value: object) -> float:
    """Seconds from ``10m``, ``1h30m``, ``90s``, ``500ms``, ``7d`` or a number of seconds.

    Raises InvalidValueError.
    """
    total = _number(value)
    if total is None and isinstance(value, str):
        total = _sum_of_parts(value.strip())
    if total is None:
        raise InvalidValueError(shown(value), DURATION, _better_duration(value))
    if total > _LONGEST_SECONDS:
        raise InvalidValueError(shown(value), "a duration of at most 36500d")
    return float(total)


def format_duration(seconds: float) -> str:
    """The shortest spelling that :func:`parse_duration` reads back as the same number."""
    exact = Decimal(repr(float(seconds)))
    if exact % _SECONDS["ms"]:
        return f"{_plain(exact)}s"
    parts = []
    for unit, length in _SECONDS.items():
        if unit == "w":
            continue  # 7d is what people write
        count, exact = divmod(exact, length)
        if count:
            parts.append(f"{int(count)}{unit}")
    return "".join(parts) or "0s"


def rough(seconds: float) -> int:
    """A duration for people, to be formatted: in two units at most, since nobody knows more of what will be."""
    for unit, finer in ((86_400, 3600), (3600, 60)):
        if seconds >= unit:
            return round(seconds / finer) * finer
    return max(1, round(seconds))


def parse_size(value: object) -> int:
    """Bytes from ``64KiB`` (powers of 1024), ``1GB`` (powers of 1000), or a number of bytes; case does not matter.

    Raises InvalidValueError.
    """
    found = _number(value)
    if found is None and isinstance(value, str) and (match := _SIZE_TEXT.fullmatch(value.strip())):
        factor = _BYTES.get(match[2].lower())
        found = None if factor is None else Decimal(match[1]) * factor
    if found is None or found > _MOST or found % 1:
        raise InvalidValueError(shown(value), SIZE, _better_size(value))
    return int(found)


def format_size(count: int) -> str:
    """The largest unit that divides the number of bytes without a rest; :func:`parse_size` reads it back."""
    for unit in ("EiB", "PiB", "TiB", "GiB", "MiB", "KiB", "EB", "PB", "TB", "GB", "MB", "KB"):
        times, rest = divmod(count, _BYTES[unit.lower()])
        if times and not rest:
            return f"{times}{unit}"
    return f"{count}B"


def parse_share_or_size(value: object) -> Share | Amount:
    """A Share from ``5%``, an Amount of bytes from anything that :func:`parse_size` reads.

    Raises InvalidValueError.
    """
    return _share_or(value, parse_size, SHARE_OR_SIZE)


def parse_share_or_count(value: object) -> Share | Amount:
    """A Share from ``5%``, an Amount from a whole number.

    Raises InvalidValueError.
    """
    return _share_or(value, _parse_count, SHARE_OR_COUNT)


def format_share_or_size(value: Share | Amount) -> str:
    """What :func:`parse_share_or_size` reads back as the same value."""
    return str(value) if isinstance(value, Share) else format_size(value.count)


def format_share_or_count(value: Share | Amount) -> str | int:
    """What :func:`parse_share_or_count` reads back as the same value."""
    return str(value) if isinstance(value, Share) else value.count


def shown(value: object) -> str:
    """What was found, on one short printable line; text in quotes."""
    if value is None:
        return "nothing"
    if isinstance(value, dict | list):
        kind = "mapping" if isinstance(value, dict) else "list"
        return f"a {kind}" if value else f"an empty {kind}"
    if isinstance(value, int) and abs(value) > _MOST:
        return "a huge number"
    text = display(str(value).encode("utf-8", "backslashreplace"))
    text = text if len(text) <= _WIDEST else text[: _WIDEST - 1] + "…"
    return f"'{text}'" if isinstance(value, str) else text


Duration = Annotated[
    float,
    BeforeValidator(parse_duration),
    PlainSerializer(format_duration, return_type=str, when_used="json"),
    Allowed(DURATION),
]
Size = Annotated[
    int,
    BeforeValidator(parse_size),
    PlainSerializer(format_size, return_type=str, when_used="json"),
    Allowed(SIZE),
]
ShareOrSize = Annotated[
    ShareOrAmount,
    PlainValidator(parse_share_or_size),
    PlainSerializer(format_share_or_size, return_type=str, when_used="json"),
    Allowed(SHARE_OR_SIZE),
]
ShareOrCount = Annotated[
    ShareOrAmount,
    PlainValidator(parse_share_or_count),
    PlainSerializer(format_share_or_count, return_type=str | int, when_used="json"),
    Allowed(SHARE_OR_COUNT),
]


def _plain(number: Decimal) -> str:
    text = format(number, "f")
    return text.rstrip("0").rstrip(".") if "." in text else text


def _number(value: object) -> Decimal | None:
    """A plain number, not negative; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, str) and not _PLAIN.fullmatch(value.strip()):
        return None
    number = Decimal(repr(value)) if isinstance(value, float) else Decimal(value)
    return number if number >= 0 else None


def _sum_of_parts(text: str) -> Decimal | None:
    """``1h30m`` as seconds: each unit at most once, the larger first, so that a slip is not read as something else."""
    total, at, smaller = Decimal(0), 0, list(_SECONDS)
    while at < len(text):
        match = _DURATION_PART.match(text, at)
        if not match or match[2] not in smaller:
            return None
        smaller = smaller[smaller.index(match[2]) + 1 :]
        total += Decimal(match[1]) * _SECONDS[match[2]]
        at = match.end()
    return total if text else None


def _better_duration(value: object) -> str | None:
    if not isinstance(value, str):
        return None
    parts = _DURATION_PART.findall(value.strip())
    better = "".join(number + _WORDS.get(unit.lower(), unit.lower()) for number, unit in parts)
    return better if better and _sum_of_parts(better) is not None else None


def _better_size(value: object) -> str | None:
    match = _SIZE_TEXT.fullmatch(value.strip()) if isinstance(value, str) else None
    unit = match[2].lower() if match else ""
    if not match or not unit:
        return None
    better = next((known for known in (unit + "ib", unit + "b") if known in _BYTES), None)
    if not better:
        return None
    return match[1] + (better[0].upper() + "iB" if better.endswith("ib") else better.upper())


def _parse_count(value: object) -> int:
    number = _number(value)
    if number is None or number > _MOST or number % 1:
        raise InvalidValueError(shown(value), "a whole number")
    return int(number)


def _share_or(value: object, parse: Callable[[object], int], allowed: str) -> Share | Amount:
    if isinstance(value, Share | Amount):
        return value
    if isinstance(value, str) and (match := _SHARE.fullmatch(value.strip())):
        percent = Decimal(match[1])
        if percent > 100:  # noqa: PLR2004 - per cent
            raise InvalidValueError(shown(value), "a share from 0% to 100%")
        return Share(float(percent / 100))
    try:
        return Amount(parse(value))
    except InvalidValueError as error:
        raise InvalidValueError(error.found, allowed, error.suggestion) from None
