"""The ledger, and what it says that disk does not."""

import os
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from promoterd.ledger import DirectoryRecord, Ledger
from promoterd.opening import identify_upper
from promoterd.overlay.mounts import overlay_at
from promoterd.states import State
from support.checking import checked, errors, left
from support.handmade import MARK, OPAQUE, Layer
from support.overlays import MountedOverlay
from support.trees import files

MakeOverlay = Callable[..., MountedOverlay]


@pytest.fixture
def mounted(make_overlay: MakeOverlay) -> MountedOverlay:
    made = make_overlay({"a": files(2), "b": files(2), "c": files(2)}, counting=True, layered=True)
    Layer(made).complete("a", "b")
    return made


@pytest.fixture
def state(tmp_path: Path, mounted: MountedOverlay) -> str:
    """A ledger that knows ``a``, and believes that ``c`` is complete."""
    upper_id = identify_upper(mounted.upper)
    with Ledger(tmp_path / "state") as ledger:
        ledger.see_upper(upper_id, mounted.mountpoint, overlay_at(mounted.mountpoint).layers, time.time())
        for path, known in ((b"a", State.ACTIVE), (b"c", State.PINNED), (b"d", State.REFUSED)):
            ledger.of(upper_id).put(DirectoryRecord(path, known, time.time()))
    return str(tmp_path / "state")


WRONG = {("record", "/b"), ("record", "/c")}


@pytest.mark.parametrize("offline", [False, True])
def test_disk_wins(mounted: MountedOverlay, state: str, offline: bool) -> None:
    report = checked(mounted, state=state, offline=offline)
    assert (report.exit_code, errors(report)) == (4, WRONG)
    report = checked(mounted, state=state, offline=offline, repair=True)
    assert (report.exit_code, errors(report), left(report)) == (1, WRONG, set())
    assert checked(mounted, state=state, offline=offline).exit_code == 0
    with Ledger(state) as ledger:
        book = ledger.of(identify_upper(mounted.upper))
        assert {record.path: record.state for record in book.directories()} == {
            b"a": State.ACTIVE,
            b"b": State.COMPLETE,
            b"d": State.REFUSED,
        }
        known = book.directory(b"b")
        assert known is not None
        assert (known.backend, known.entries) == ("layer", 2)


def test_what_was_begun_is_left_to_the_next_start(mounted: MountedOverlay, state: str) -> None:
    with Ledger(state) as ledger:
        book = ledger.of(identify_upper(mounted.upper))
        for path in (b"b", b"c"):
            book.begin(path, "promote", "shadow", time.time())
    assert checked(mounted, state=state).exit_code == 0


def test_an_open_directory_may_be_known_or_not(mounted: MountedOverlay, state: str) -> None:
    for path in ("a", "b"):
        os.removexattr(mounted.in_rest(path), OPAQUE)
    assert errors(checked(mounted, state=state)) == {("record", "/c")}
    os.removexattr(mounted.in_rest("a"), MARK)
    assert ("record", "/a") in errors(checked(mounted, state=state))


def test_no_ledger_and_one_that_never_saw_the_layer(mounted: MountedOverlay, tmp_path: Path) -> None:
    assert checked(mounted, state=str(tmp_path / "none")).exit_code == 0
    assert not (tmp_path / "none").exists(), "a check makes none"
    with Ledger(tmp_path / "other"):
        pass
    identify_upper(mounted.upper)
    assert checked(mounted, state=str(tmp_path / "other")).exit_code == 0


def test_a_damaged_ledger_is_told_and_stays(mounted: MountedOverlay, state: str) -> None:
    file = Path(state) / "ledger.sqlite"
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    file.write_bytes(b"no database at all" * 100)
    for repair in (False, True):
        report = checked(mounted, state=state, repair=repair)
        assert report.exit_code == 4 | 8
        assert errors(report) == {("unreadable", "/")}
        assert "rebuilds the ledger" in report.rows[0].finding.detail
    assert file.read_bytes().startswith(b"no database")
