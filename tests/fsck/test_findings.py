"""What is told, and what a check exits with."""

import pytest

from promoterd.errors import AlreadyLocked, Interrupted, MountNotFound, PolicyError, PromoterdError, UsageError
from promoterd.fsck.findings import Area, Exit, Finding, Kind, Report, Row, exit_code_of


def row(kind: Kind = Kind.SIZE, *, corrected: bool = False, more: int = 0) -> Row:
    return Row(Finding(Area.LAYER, b"d", kind, "detail", "f\udcff\n"), corrected, more=more)


@pytest.mark.parametrize(
    ("rows", "code"),
    [
        ([], 0),
        ([row(Kind.OPEN), row(Kind.FOREIGN), row(Kind.CHANGING)], 0),
        ([row(corrected=True)], 1),
        ([row()], 4),
        ([row(), row(corrected=True)], 5),
        ([row(Kind.UNREADABLE)], 12),
    ],
)
def test_exit_codes_add_up(rows: list[Row], code: int) -> None:
    report = Report()
    report.add(rows)
    assert report.exit_code == code
    assert report.to_dict()["exit_code"] == code


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UsageError("x"), 16),
        (Interrupted(what="x"), 32),
        (MountNotFound(mountpoint="/x"), 8),
        (PolicyError("x"), 8),
        (AlreadyLocked(upper="/x", holder="y"), 8),
        (PromoterdError("x"), 8),
    ],
)
def test_what_could_not_be_checked(error: PromoterdError, code: int) -> None:
    assert exit_code_of(error) == code == Exit(code)


def test_every_error_has_a_way_out() -> None:
    for area in Area:
        for kind in Kind:
            assert Finding(area, b"", kind, "").way_out


def test_of_information_only_the_first_is_told() -> None:
    report = Report()
    report.add(row(Kind.FOREIGN) for _ in range(1000))
    report.add([row(Kind.MOVED)])
    assert len(report.rows) == 51
    assert sum(1 + one.more for one in report.rows) == 1001
    assert (report.uncorrected, report.exit_code) == (0, 0)


def test_the_row_of_a_program() -> None:
    assert row(more=3).to_dict() == {
        "path": "/d/f\\xff\\n",
        "area": "layer",
        "kind": "size",
        "severity": "error",
        "what": "detail",
        "corrected": False,
        "note": "",
        "more": 3,
    }
    report = Report()
    report.add([row(more=3), row(corrected=True, more=1)])
    assert (report.uncorrected, report.corrected) == (4, 2)
