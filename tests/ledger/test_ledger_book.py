import time

import pytest

from promoterd.errors import LedgerError
from promoterd.ledger import DirectoryRecord, HeatRecord, Ledger, UpperLedger
from promoterd.states import State
from support.records import ODD, OTHER, UPPER, record, reopen


def test_an_upper_is_the_same_wherever_it_is_mounted(ledger: Ledger) -> None:
    ledger.of(UPPER).put(record(b"lib"))
    ledger.see_upper(UPPER, b"/mnt/\xffelsewhere", (b"/up\xffper", b"/a", b"/b"), now=200.0)
    with reopen(ledger) as again:
        (upper,) = again.uppers()
        assert upper.mountpoint == b"/mnt/\xffelsewhere"
        assert upper.layers == (b"/up\xffper", b"/a", b"/b")
        assert upper.first_seen == 100.0
        assert again.of(UPPER).directory(b"lib") == record(b"lib")
        assert again.upper(OTHER) is None


def test_pause_and_retirement_survive_a_restart_and_being_seen_again(ledger: Ledger) -> None:
    ledger.set_paused(UPPER, "by hand \udcff")
    ledger.set_retired(UPPER, retired=True)
    with reopen(ledger) as again:
        upper = again.see_upper(UPPER, b"/mnt/app", (), now=300.0)
        assert (upper.paused, upper.retired) == ("by hand \\udcff", True)
        again.set_paused(UPPER, None)
        again.set_retired(UPPER, retired=False)
        upper = again.see_upper(UPPER, b"/mnt/app", (), now=300.0)
        assert (upper.paused, upper.retired) == (None, False)


def test_nothing_is_written_for_an_upper_that_was_never_seen(ledger: Ledger) -> None:
    with pytest.raises(LedgerError, match="FOREIGN KEY"):
        ledger.of(OTHER).put(record(b"lib"))


# Directories


def test_every_field_of_a_directory_comes_back(ledger: Ledger) -> None:
    full = DirectoryRecord(
        ODD,
        State.FAILED,
        since=1.25,
        reason="no space \udce9",
        backend="opaque",
        entries=500,
        attempts=3,
        retry_at=9.5,
        marked_at=8.5,
        last_checked=7.5,
    )
    ledger.of(UPPER).put(full, record(b""))
    with reopen(ledger) as again:
        read = again.of(UPPER).directory(ODD)
        assert read is not None
        assert read.reason == "no space \\udce9"
        assert read == DirectoryRecord(ODD, State.FAILED, 1.25, "no space \\udce9", "opaque", 500, 3, 9.5, 8.5, 7.5)
        assert again.of(UPPER).directory(b"") == record(b"")
        assert again.of(UPPER).directory(b"absent") is None


def test_directories_by_state_and_below_a_path(book: UpperLedger) -> None:
    book.put(
        record(b""),
        record(b"a", State.ACTIVE),
        record(b"a/b", State.REFUSED),
        record(b"a/b\xff/c", State.ACTIVE),
        record(b"a-b"),
        record(b"a0"),
    )
    assert [found.path for found in book.directories()] == [b"", b"a", b"a-b", b"a/b", b"a/b\xff/c", b"a0"]
    assert [found.path for found in book.directories(below=b"a")] == [b"a", b"a/b", b"a/b\xff/c"]
    assert [found.path for found in book.directories({State.ACTIVE}, below=b"a/b\xff")] == [b"a/b\xff/c"]
    assert book.directories([]) == []
    assert book.counts() == dict.fromkeys(State, 0) | {State.HOT: 3, State.ACTIVE: 2, State.REFUSED: 1}


def test_writing_again_replaces_and_forgetting_removes(book: UpperLedger) -> None:
    book.put(record(b"a"), record(b"b"))
    book.put(record(b"a", State.ACTIVE, entries=4))
    book.forget(b"b", b"never-there")
    assert book.directories() == [record(b"a", State.ACTIVE, entries=4)]


def test_a_hundred_thousand_directories(book: UpperLedger) -> None:
    begun = time.process_time()
    book.put_all(record(b"opt/app/%d/lib/python" % number) for number in range(100_000))
    assert book.counts()[State.HOT] == 100_000
    assert len(book.directories()) == 100_000
    assert time.process_time() - begun < 10


# The rest of the book


def test_ancestors_are_remembered_top_first(ledger: Ledger) -> None:
    ledger.of(UPPER).put_ancestor(ODD)
    ledger.of(UPPER).put_ancestor(b"opt/app")
    ledger.of(UPPER).put_ancestor(b"opt/app")
    ledger.of(UPPER).put_ancestor(b"opt")
    with reopen(ledger) as again:
        assert [found.path for found in again.of(UPPER).ancestors()] == sorted([b"opt", b"opt/app", ODD])
        again.of(UPPER).forget_ancestor(b"opt")
        assert [found.path for found in again.of(UPPER).ancestors()] == sorted([b"opt/app", ODD])


def test_deferred_reopenings_wait_top_down_and_remember_since_when(book: UpperLedger) -> None:
    book.defer(b"a/b", "a process writes there", 5.0)
    book.defer(b"a", "parent", 6.0)
    book.defer(b"a/b", "still", 9.0)
    assert [(waiting.path, waiting.reason, waiting.since) for waiting in book.deferred()] == [
        (b"a", "parent", 6.0),
        (b"a/b", "still", 5.0),
    ]
    book.undefer(b"a", b"a/b")
    assert book.deferred() == []


def test_three_changes_in_a_day_are_told_from_three_in_two(book: UpperLedger) -> None:
    hour = 3600.0
    assert [book.count_stale(b"lib", at * hour) for at in (0, 10, 20)] == [1, 2, 3]
    assert book.count_stale(b"other", 20 * hour) == 1
    assert book.count_stale(b"lib", 25 * hour) == 3
    assert book.stale_count(b"lib", 60 * hour) == 0
    book.forget_stale(b"lib")
    assert book.stale_count(b"lib", 25 * hour) == 0
    assert book.stale_count(b"other", 25 * hour) == 1


def test_heat_is_saved_as_a_whole(book: UpperLedger) -> None:
    book.save_heat([HeatRecord(b"old", 1.0, 1.0)])
    book.save_heat([HeatRecord(b"warm", 2.0, 5.0), HeatRecord(ODD, 7.5, 5.0)])
    assert book.load_heat() == [HeatRecord(ODD, 7.5, 5.0), HeatRecord(b"warm", 2.0, 5.0)]
    by_kind = [HeatRecord(b"lib", 3.0, 6.0, "miss"), HeatRecord(b"lib", 1.0, 6.0, "open")]
    book.save_heat(by_kind)
    assert book.load_heat() == by_kind


def test_the_journal_names_what_was_begun_and_not_finished(ledger: Ledger) -> None:
    book = ledger.of(UPPER)
    book.begin(b"b", "promote", "link", 2.0)
    book.begin(b"a", "reopen", "whiteouts", 1.0)
    book.begin(b"c", "promote", "link", 3.0)
    book.step(b"b", "mark")
    book.finish(b"c")
    with reopen(ledger) as again:
        assert [(entry.path, entry.operation, entry.step, entry.started) for entry in again.of(UPPER).unfinished()] == [
            (b"a", "reopen", "whiteouts", 1.0),
            (b"b", "promote", "mark", 2.0),
        ]
