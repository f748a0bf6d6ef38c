import pytest

from promoterd.rechecking import spread
from promoterd.staleness import too_many_vanished


@pytest.mark.parametrize(
    ("vanished", "checked", "too_many"),
    [
        (0, 0, False),
        (1, 1, False),
        (2, 2, False),
        (2, 39, False),
        (3, 3, True),
        (3, 59, True),
        (3, 60, False),
        (5, 100, False),
        (6, 100, True),
        (50, 1000, False),
        (51, 1000, True),
    ],
)
def test_too_many_vanished(vanished: int, checked: int, too_many: bool) -> None:
    """More than 5 %, and at least 3 (R1)."""
    assert too_many_vanished(vanished, checked) is too_many


def test_rechecks_are_spread_by_the_path_and_stay_where_they_are() -> None:
    intervals = [spread(b"lib/%d" % number, 600.0) for number in range(1000)]
    assert 540 <= min(intervals) < 545
    assert 655 < max(intervals) <= 660
    assert abs(sum(intervals) / 1000 - 600) < 5
    assert spread(b"lib/7", 600.0) == intervals[7]
