from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from promoterd.book import Book
from promoterd.errors import LedgerError
from promoterd.ledger import DirectoryRecord, Ledger
from promoterd.states import MARKED, State, may_follow

A, B = b"app/a", b"app/b"


class Noted:
    """A book with what it said."""

    def __init__(self, ledger: Ledger) -> None:
        self.changes: list[tuple[State | None, State | None]] = []
        self.said = structlog.testing.LogCapture()
        log = structlog.wrap_logger(None, processors=[self.said], wrapper_class=structlog.BoundLogger)
        self.book = Book(ledger.of("upper"), log, self._changed)

    def _changed(self, before: DirectoryRecord | None, after: DirectoryRecord | None) -> None:
        self.changes.append((before.state if before else None, after.state if after else None))

    def events(self, name: str = "directory") -> list[dict[str, Any]]:
        return [dict(entry) for entry in self.said.entries if entry["event"] == name]


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger(str(tmp_path / "state")) as opened:
        opened.see_upper("upper", b"/mnt", (b"/u", b"/l"), 1.0)
        yield opened


@pytest.fixture
def noted(ledger: Ledger) -> Noted:
    return Noted(ledger)


def test_a_life(noted: Noted) -> None:
    book = noted.book
    assert book.state(A) is State.COLD
    assert book.get(A) is None
    for at, state in enumerate((State.HOT, State.SHADOWING, State.COMPLETE, State.PINNED, State.ACTIVE, State.STALE)):
        book.move(A, state, now=float(at))
        assert book.state(A) is state
        assert book.is_marked(A) == (state in MARKED)
        found = book.get(A)
        assert found is not None
        assert found.since == at
    book.forget([A], reason="reopened")
    assert book.state(A) is State.COLD
    assert [event["state"] for event in noted.events()] == [
        *("hot", "shadowing", "complete", "pinned", "active", "stale", "cold")
    ]
    assert noted.events("unexpected_state") == []
    assert noted.changes[0] == (None, State.HOT)
    assert noted.changes[-1] == (State.STALE, None)


def test_one_event_for_one_thing(noted: Noted) -> None:
    book = noted.book
    book.move(A, State.FAILED, now=1.0, reason="full", attempts=1)
    book.move(A, State.FAILED, now=2.0, reason="full", attempts=2, retry_at=9.0)
    assert len(noted.events()) == 1, "the same state for the same reason is no news"
    found = book.get(A)
    assert found is not None
    assert (found.since, found.attempts, found.retry_at) == (1.0, 2, 9.0), "but it is written down"
    book.move(A, State.FAILED, now=3.0, reason="broken")
    assert [event["reason"] for event in noted.events()] == ["full", "broken"]
    book.move(A, State.FAILED, now=4.0, reason="broken")
    assert len(noted.changes) == 3, "nothing changed, nothing is written"
    book.forget([B], reason="it never was there")
    assert len(noted.events()) == 2


def test_other_fields_stay_unless_they_are_named(noted: Noted) -> None:
    book = noted.book
    book.move(A, State.COMPLETE, now=1.0, entries=7, marked_at=1.0, backend="opaque")
    book.move(A, State.ACTIVE, now=2.0, last_checked=2.0)
    assert book.get(A) == DirectoryRecord(
        A, State.ACTIVE, 2.0, None, backend="opaque", entries=7, marked_at=1.0, last_checked=2.0
    )


def test_a_step_that_no_life_takes_is_said_and_taken(noted: Noted) -> None:
    noted.book.move(A, State.PINNED, now=1.0)
    (said,) = noted.events("unexpected_state")
    assert (said["path"], said["state"]) == ("/app/a", State.PINNED)
    assert noted.book.state(A) is State.PINNED


def test_it_is_there_after_a_restart(noted: Noted, ledger: Ledger) -> None:
    noted.book.move_all([B, A], State.COMPLETE, now=1.0, entries=3)
    noted.book.move(A, State.ACTIVE, now=2.0)
    noted.book.move(b"gone", State.HOT, now=2.0)
    noted.book.forget([b"gone"], reason="cold")
    again = Noted(ledger)
    assert [record.path for record in again.book.in_states(set(State))] == [A, B]
    assert again.book.get(A) == noted.book.get(A)
    assert sorted(again.changes, key=str) == [(None, State.ACTIVE), (None, State.COMPLETE)], "for the metrics"
    assert again.events() == []
    assert again.book.counts() == {State.ACTIVE: 1, State.COMPLETE: 1}


def test_parents_come_before_children(noted: Noted) -> None:
    noted.book.move_all([b"a/b/c", b"a", b"a-x", b"a/b"], State.COMPLETE, now=1.0)
    paths = [record.path for record in noted.book.in_states(MARKED)]
    assert paths.index(b"a") < paths.index(b"a/b") < paths.index(b"a/b/c")


def test_restless(noted: Noted) -> None:
    """R7: refused without a time to try again, until somebody asks for it by hand."""
    noted.book.move(A, State.REFUSED, now=1.0, reason="hard links", retry_at=60.0)
    noted.book.move(B, State.REFUSED, now=1.0, reason="changes", retry_at=None)
    assert not noted.book.is_restless(A)
    assert noted.book.is_restless(B)
    assert not noted.book.is_restless(b"unknown")
    noted.book.move(B, State.HOT, now=2.0, retry_at=None)
    assert not noted.book.is_restless(B)


def test_every_state_can_be_left_and_none_is_skipped() -> None:
    for state in State:
        assert may_follow(state, state)
        assert any(may_follow(state, other) for other in State if other is not state)
    assert not may_follow(State.COLD, State.ACTIVE), "what is active was complete before"
    assert not may_follow(State.ACTIVE, State.HOT), "a mark goes by being reopened"
    assert not may_follow(State.STALE, State.SHADOWING)


def is_full(_records: object) -> None:
    raise LedgerError(path="/state/ledger.sqlite", reason="database or disk is full")


def test_what_cannot_be_written_down_has_not_happened(noted: Noted, monkeypatch: pytest.MonkeyPatch) -> None:
    noted.book.move(A, State.HOT, now=1.0)
    said, changes = len(noted.said.entries), len(noted.changes)
    with monkeypatch.context() as full:
        full.setattr(noted.book.ledger, "put_all", is_full)
        with pytest.raises(LedgerError):
            noted.book.move_all([A, B], State.SHADOWING, now=2.0)
    assert (noted.book.state(A), noted.book.state(B)) == (State.HOT, State.COLD)
    assert (len(noted.said.entries), len(noted.changes)) == (said, changes)
    noted.book.move_all([A, B], State.SHADOWING, now=3.0)
    assert (noted.book.state(A), noted.book.state(B)) == (State.SHADOWING, State.SHADOWING)


def test_what_is_so_already_is_known_all_the_same(noted: Noted, monkeypatch: pytest.MonkeyPatch) -> None:
    noted.book.move(A, State.SHADOWING, now=1.0)
    with monkeypatch.context() as full:
        full.setattr(noted.book.ledger, "put_all", is_full)
        noted.book.move(A, State.FAILED, now=2.0, reason="full", retry_at=9.0, regardless=True)
    assert noted.book.state(A) is State.FAILED
    assert noted.changes[-1] == (State.SHADOWING, State.FAILED)
    assert len(noted.events("ledger_behind")) == 1
