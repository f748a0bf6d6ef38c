import math
import random
from collections.abc import Callable

import pytest
from pydantic import BaseModel, ValidationError

from promoterd import units
from promoterd.errors import UsageError
from promoterd.units import (
    Amount,
    Duration,
    InvalidValueError,
    Share,
    ShareOrCount,
    ShareOrSize,
    Size,
    format_duration,
    format_share_or_count,
    format_share_or_size,
    format_size,
    parse_duration,
    parse_share_or_count,
    parse_share_or_size,
    parse_size,
    shown,
)


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        ("10m", 600.0),
        ("1h30m", 5400.0),
        ("1h 30m", 5400.0),
        ("90s", 90.0),
        ("500ms", 0.5),
        ("1s500ms", 1.5),
        ("7d", 604_800.0),
        ("2w", 1_209_600.0),
        ("1.5h", 5400.0),
        (" 3 m ", 180.0),
        ("90", 90.0),
        ("0", 0.0),
        ("0.25", 0.25),
        (90, 90.0),
        (0.25, 0.25),
        ("36500d", 36_500 * 86_400.0),
    ],
)
def test_durations(written: object, seconds: float) -> None:
    assert parse_duration(written) == seconds


@pytest.mark.parametrize(
    "written",
    [
        *(
            "",
            "m",
            "10x",
            "10 mm",
            "30m1h",
            "1h1h",
            "-1s",
            "+1s",
            "1e3",
            "1:30",
            "1h30",
            "٣m",
            "1_0s",
            "nan",
            "inf",
            "10m!",
        ),
        *(True, False, None, [], {}, -1, -0.5, math.nan, math.inf, -math.inf, b"10m", object(), 10**1000, "9" * 10_000),
    ],
)
def test_what_is_no_duration(written: object) -> None:
    with pytest.raises(InvalidValueError):
        parse_duration(written)


@pytest.mark.parametrize(
    ("written", "better"),
    [
        ("10min", "10m"),
        ("10 minutes", "10m"),
        ("1hour30min", "1h30m"),
        ("2H", "2h"),
        ("1 day", "1d"),
        ("5 secs", "5s"),
        ("20msec", "20ms"),
        ("10x", None),
        ("30m1h", None),
        ("10 parsec", None),
        ("", None),
    ],
)
def test_a_near_miss_of_a_duration_is_suggested(written: str, better: str | None) -> None:
    with pytest.raises(InvalidValueError) as caught:
        parse_duration(written)
    assert caught.value.suggestion == better
    assert caught.value.allowed == units.DURATION
    assert caught.value.found == f"'{written}'"
    if better:
        parse_duration(better)


def test_more_than_a_hundred_years_is_too_long() -> None:
    with pytest.raises(InvalidValueError, match="at most 36500d"):
        parse_duration("36501d")


@pytest.mark.parametrize(
    ("seconds", "written"),
    [
        (0, "0s"),
        (0.001, "1ms"),
        (0.5, "500ms"),
        (1.5, "1s500ms"),
        (60, "1m"),
        (90, "1m30s"),
        (3600, "1h"),
        (5400, "1h30m"),
        (604_800, "7d"),
        (90_061, "1d1h1m1s"),
        (1 / 3, "0.3333333333333333s"),
        (1e-7, "0.0000001s"),
    ],
)
def test_durations_as_people_write_them(seconds: float, written: str) -> None:
    assert format_duration(seconds) == written
    assert parse_duration(written) == seconds


@pytest.mark.parametrize(
    ("written", "count"),
    [
        ("64KiB", 65_536),
        ("64 kib", 65_536),
        ("1GB", 10**9),
        ("1gb", 10**9),
        ("1kB", 1000),
        ("1.5MiB", 1_572_864),
        ("0.3KB", 300),
        ("10B", 10),
        ("4096", 4096),
        (4096, 4096),
        (4096.0, 4096),
        ("0", 0),
        ("7EiB", 7 * 2**60),
    ],
)
def test_sizes(written: object, count: int) -> None:
    assert parse_size(written) == count


@pytest.mark.parametrize(
    "written",
    [
        *("", "KiB", "1XiB", "-1KiB", "1.0001B", "0.5", "8EiB", "99999EiB", "1 K i B", "5%", "1,5GB", "٣KiB"),
        *(True, None, [], -1, 0.5, math.nan, math.inf, 10**1000, b"1"),
    ],
)
def test_what_is_no_size(written: object) -> None:
    with pytest.raises(InvalidValueError):
        parse_size(written)


@pytest.mark.parametrize(("written", "better"), [("1K", "1KiB"), ("10m", "10MiB"), ("5g", "5GiB"), ("1x", None)])
def test_a_size_without_its_b_is_suggested_not_guessed(written: str, better: str | None) -> None:
    with pytest.raises(InvalidValueError) as caught:
        parse_size(written)
    assert caught.value.suggestion == better


@pytest.mark.parametrize(
    ("count", "written"),
    [
        (0, "0B"),
        (1, "1B"),
        (1000, "1KB"),
        (1024, "1KiB"),
        (1_572_864, "1536KiB"),
        (10**9, "1GB"),
        (5 * 2**30, "5GiB"),
        (1001, "1001B"),
    ],
)
def test_sizes_as_people_write_them(count: int, written: str) -> None:
    assert format_size(count) == written
    assert parse_size(written) == count


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("5%", Share(0.05)),
        ("0.5%", Share(0.005)),
        ("5 %", Share(0.05)),
        ("0%", Share(0.0)),
        ("100%", Share(1.0)),
        ("1GiB", Amount(2**30)),
        ("4096", Amount(4096)),
        (4096, Amount(4096)),
        (Share(0.3), Share(0.3)),
    ],
)
def test_shares_and_sizes(written: object, value: Share | Amount) -> None:
    assert parse_share_or_size(written) == value


@pytest.mark.parametrize("written", ["101%", "-5%", "%", "5%%", 0.5, True, None, "1GiB", "1.5", "abc", []])
def test_what_is_no_share_and_no_count(written: object) -> None:
    with pytest.raises(InvalidValueError):
        parse_share_or_count(written)


def test_a_share_says_what_else_would_do() -> None:
    with pytest.raises(InvalidValueError) as caught:
        parse_share_or_size("5G")
    assert caught.value.allowed == units.SHARE_OR_SIZE
    assert caught.value.suggestion == "5GiB"


def test_share_of_a_whole() -> None:
    assert Share(0.07).of(100) == 7  # 0.07 * 100 is 7.000000000000001 in floats, 0.29 * 100 is 28.999999999999996
    assert Share(0.29).of(100) == 29
    assert Share(0.5).of(3) == 1
    assert Share(1.0).of(2**63 - 1) == 2**63 - 1
    assert Amount(12).of(5) == 12


@pytest.mark.parametrize(
    ("read", "write", "make"),
    [
        (parse_duration, format_duration, lambda chance: chance.choice([chance.random(), chance.uniform(0, 3e9)])),
        (parse_duration, format_duration, lambda chance: float(chance.randrange(10**9))),
        (parse_size, format_size, lambda chance: chance.randrange(2 ** chance.randrange(1, 63))),
        (parse_size, format_size, lambda chance: chance.randrange(8) * 1000 ** chance.randrange(6)),
        (parse_share_or_size, format_share_or_size, lambda chance: Share(chance.random())),
        (parse_share_or_size, format_share_or_size, lambda chance: Amount(chance.randrange(2**50))),
        (parse_share_or_count, format_share_or_count, lambda chance: Amount(chance.randrange(2**50))),
    ],
)
def test_what_is_written_is_read_back_the_same(
    read: Callable[[object], object], write: Callable[[object], object], make: Callable[[random.Random], object]
) -> None:
    chance = random.Random(7)
    for _ in range(300):
        value = make(chance)
        assert read(write(value)) == value


def test_nothing_but_an_invalid_value_for_random_text() -> None:
    chance = random.Random(11)
    for _ in range(5000):
        text = "".join(chance.choice("0123456789.%hmsdwKMGiB -+e\n٣x") for _ in range(chance.randrange(8)))
        for read in (parse_duration, parse_size, parse_share_or_size, parse_share_or_count):
            try:
                read(text)
            except InvalidValueError as error:
                assert str(error).startswith("found ")  # noqa: PT017 - the text may also be valid


def test_an_invalid_value_is_a_usage_error_with_its_way_out() -> None:
    error = InvalidValueError("'10min'", "a duration", "10m")
    assert isinstance(error, UsageError)
    assert isinstance(error, ValueError)
    assert error.exit_code == 2
    assert str(error) == "found '10min'; allowed a duration (did you mean 10m?)"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "nothing"),
        ([], "an empty list"),
        ([1], "a list"),
        ({}, "an empty mapping"),
        ({"a": 1}, "a mapping"),
        ("a\nb", r"'a\nb'"),
        ("\x1b[31m", r"'\x1b[31m'"),
        ("caf\udce9", r"'caf\udce9'"),
        ("é", "'é'"),
        (5, "5"),
        (10**1000, "a huge number"),
        (True, "True"),
    ],
)
def test_what_was_found_fits_one_line(value: object, text: str) -> None:
    assert shown(value) == text


def test_long_text_is_cut() -> None:
    assert len(shown("x" * 10_000)) == 82


class Everything(BaseModel):
    wait: Duration
    room: Size
    free: ShareOrSize
    watches: ShareOrCount
    maybe: Duration | None = None


def test_the_types_in_a_model() -> None:
    read = Everything.model_validate({"wait": "10m", "room": "64KiB", "free": "5%", "watches": "100"})
    assert (read.wait, read.room, read.free, read.watches) == (600.0, 65_536, Share(0.05), Amount(100))
    written = read.model_dump(mode="json")
    assert written == {"wait": "10m", "room": "64KiB", "free": "5%", "watches": 100, "maybe": None}
    assert Everything.model_validate(written) == read
    with pytest.raises(ValidationError) as caught:
        Everything.model_validate({"wait": "x", "room": "x", "free": "x", "watches": "x", "maybe": "x"})
    assert [error["loc"] for error in caught.value.errors()] == [(name,) for name in Everything.model_fields]
