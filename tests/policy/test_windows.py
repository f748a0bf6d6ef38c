"""Times of the week; the zones are those of the policy's own time, local time is the machine's."""

from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from promoterd.policy import windows
from promoterd.units import InvalidValueError

BERLIN = ZoneInfo("Europe/Berlin")


def at(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=BERLIN).timestamp()


@pytest.mark.parametrize(
    ("window", "moment", "expected"),
    [  # 2026-11-28 is a Saturday
        ("Mon-Fri 20:00-06:00", "2026-11-27T19:59:59", False),
        ("Mon-Fri 20:00-06:00", "2026-11-27T20:00", True),
        ("Mon-Fri 20:00-06:00", "2026-11-28T05:59", True),
        ("Mon-Fri 20:00-06:00", "2026-11-28T06:00", False),
        ("Mon-Fri 20:00-06:00", "2026-11-28T21:00", False),
        ("Mon-Fri 20:00-06:00", "2026-11-30T03:00", False),
        ("Sun 22:00-04:00", "2026-11-30T03:00", True),
        ("Sat,Sun", "2026-11-29T23:59", True),
        ("Sat,Sun", "2026-11-30T00:00", False),
        ("Fri-Mon 12:00-13:00", "2026-11-29T12:30", True),
        ("Fri-Mon 12:00-13:00", "2026-12-01T12:30", False),
        ("daily 00:00-24:00", "2026-11-28T00:00", True),
        ("22:30-05:00", "2026-11-28T04:00", True),
        ("22:30-05:00", "2026-11-28T05:00", False),
    ],
)
def test_whether_a_window_is_open(window: str, moment: str, *, expected: bool) -> None:
    assert windows.is_open([window], at(moment), BERLIN) is expected


@pytest.mark.parametrize(
    ("given", "moment", "opens"),
    [
        (["Mon-Fri 20:00-06:00"], "2026-11-28T07:00", "2026-11-30T20:00"),
        (["Mon-Fri 20:00-06:00", "Sun 10:00-11:00"], "2026-11-28T07:00", "2026-11-29T10:00"),
        (["Sat 06:00-07:00"], "2026-11-28T07:00", "2026-12-05T06:00"),
        (["22:30-05:00"], "2026-11-28T05:00", "2026-11-28T22:30"),
    ],
)
def test_when_the_next_one_opens(given: list[str], moment: str, opens: str) -> None:
    assert windows.next_opening(given, at(moment), BERLIN) == at(opens)


def test_clocks_that_are_set_change_how_long_a_window_lasts_and_not_when_it_begins() -> None:
    for night, hours in (("2026-03-28", 9), ("2026-10-24", 11), ("2026-06-06", 10)):
        begin = at(f"{night}T20:00")
        minutes = [begin + 60 * minute for minute in range(24 * 60)]
        is_open = [windows.is_open(["20:00-06:00"], moment, BERLIN) for moment in minutes]
        assert is_open.index(False) == hours * 60
        following = datetime.fromtimestamp(begin, BERLIN) + timedelta(days=1)
        assert windows.next_opening(["20:00-06:00"], begin + 12 * 3600, BERLIN) == following.timestamp()


def test_every_minute_outside_comes_before_an_opening() -> None:
    given = ["Mon-Wed 21:00-02:00", "Sat", "Sun 23:30-00:30"]
    begin = at("2026-11-23T00:00")
    for minute in range(0, 7 * 24 * 60, 7):
        now = begin + 60 * minute
        if not windows.is_open(given, now, BERLIN):
            opens = windows.next_opening(given, now, BERLIN)
            assert windows.is_open(given, opens, BERLIN)
            assert not windows.is_open(given, opens - 1, BERLIN)


@pytest.mark.parametrize(
    ("given", "now", "opens"),
    [
        # set forward on 2026-03-29, from 02:00 to 03:00
        ("Sun 02:30-05:00", "2026-03-28T12:00+01:00", "2026-03-29T03:00+02:00"),
        ("Sun 02:15-02:45", "2026-03-28T12:00+01:00", "2026-04-05T02:15+02:00"),
        # set back on 2026-10-25, from 03:00 to 02:00
        ("Sun 02:15-02:45", "2026-10-25T01:00+02:00", "2026-10-25T02:15+02:00"),
        ("Sun 02:15-02:45", "2026-10-25T02:50+02:00", "2026-10-25T02:15+01:00"),
        ("Sun 02:15-02:45", "2026-10-25T02:50+01:00", "2026-11-01T02:15+01:00"),
    ],
)
def test_an_opening_where_the_clock_is_set(given: str, now: str, opens: str) -> None:
    moment = datetime.fromisoformat(now).timestamp()
    assert not windows.is_open([given], moment, BERLIN)
    assert windows.next_opening([given], moment, BERLIN) == datetime.fromisoformat(opens).timestamp()


@pytest.mark.parametrize(
    ("text", "better"),
    [
        ("Monday 20:00-06:00", "Mon 20:00-06:00"),
        ("mo-fr 20-6", "Mon-Fri 20:00-6:00"),
        ("20-6", "20:00-6:00"),
        ("Someday 20:00-06:00", None),
        ("20:00-20:00", None),
        ("24:00-02:00", None),
        ("25:00-26:00", None),
        ("20:60-22:00", None),
        ("Mon 20:00", None),
        ("T 20:00-21:00", None),
        ("Mon--Fri", None),
        ("", None),
        ("-", None),
    ],
)
def test_what_is_no_window_is_refused_with_what_was_probably_meant(text: str, better: str | None) -> None:
    with pytest.raises(InvalidValueError) as refused:
        windows.parse(text)
    assert refused.value.suggestion == better
