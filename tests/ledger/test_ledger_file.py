import os
import signal
import sqlite3
import stat
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest

from promoterd.errors import LedgerError
from promoterd.ledger import HeatRecord, Ledger, UpperLedger, database
from promoterd.ledger.schema import MIGRATIONS
from promoterd.overlay import syscalls
from promoterd.states import State
from support.overlays import unmount
from support.records import UPPER, record, reopen

# Transactions


def test_a_transaction_is_all_or_nothing_also_when_nested(ledger: Ledger, book: UpperLedger) -> None:
    def fail_halfway() -> None:
        with ledger.transaction():
            book.put(record(b"a"))
            with ledger.transaction():
                book.begin(b"a", "promote", "link", 1.0)
            raise KeyError

    with pytest.raises(KeyError):
        fail_halfway()
    assert (book.directories(), book.unfinished()) == ([], [])
    with ledger.transaction():
        book.put(record(b"a"))
        book.begin(b"a", "promote", "link", 1.0)
    assert (len(book.directories()), len(book.unfinished())) == (1, 1)


def test_threads_share_it(ledger: Ledger, book: UpperLedger) -> None:
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for turn in range(50):
                with ledger.transaction():
                    book.put(record(b"%d/%d" % (number, turn)))
                    book.begin(b"%d" % number, "promote", str(turn), 1.0)
                assert book.directory(b"%d/%d" % (number, turn)) is not None
        except BaseException as error:  # noqa: BLE001 - asserted on below
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert book.counts()[State.HOT] == 200


def test_heat_of_the_first_schema_is_kept_without_its_kinds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(database, "MIGRATIONS", MIGRATIONS[:1])
        with Ledger(tmp_path) as old:
            old.see_upper(UPPER, b"/srv", [], 1.0)
            old._database.write("INSERT INTO heat VALUES (?, ?, ?, ?)", UPPER, b"lib", 7.5, 5.0)
    with Ledger(tmp_path) as new:
        assert new.of(UPPER).load_heat() == [HeatRecord(b"lib", 7.5, 5.0)]


def test_a_kill_keeps_what_was_committed_and_nothing_of_what_was_not(ledger: Ledger) -> None:
    ledger.close()
    script = f"""
        import os, signal
        from promoterd.ledger import DirectoryRecord, Ledger
        from promoterd.states import State
        ledger = Ledger({os.path.dirname(ledger.path)!r})
        book = ledger.of({UPPER!r})
        book.begin(b"lib", "promote", "link", 1.0)
        with ledger.transaction():
            book.put_all(DirectoryRecord(b"lib/%d" % n, State.COMPLETE, 1.0) for n in range(20000))
            book.finish(b"lib")
            os.kill(os.getpid(), signal.SIGKILL)
    """
    ended = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=False)
    assert ended.returncode == -signal.SIGKILL
    with Ledger(os.path.dirname(ledger.path)) as again:
        assert not again.was_rebuilt
        assert again.of(UPPER).directories() == []
        assert [entry.path for entry in again.of(UPPER).unfinished()] == [b"lib"]


def test_commits_are_durable(ledger: Ledger) -> None:
    assert ledger._database.read("PRAGMA synchronous")[0][0] == 2  # FULL
    assert ledger._database.read("PRAGMA journal_mode")[0][0] == "wal"


# Opening


def test_the_state_directory_is_made_for_its_owner_only(tmp_path: Path) -> None:
    with Ledger(tmp_path / "var" / "state") as ledger:
        assert not ledger.was_rebuilt
        assert stat.S_IMODE(os.stat(tmp_path / "var" / "state").st_mode) == 0o700


def test_a_state_directory_that_others_can_write_is_refused(tmp_path: Path) -> None:
    os.mkdir(tmp_path / "state")
    os.chmod(tmp_path / "state", 0o1777)
    with pytest.raises(LedgerError, match="written by others") as caught:
        Ledger(tmp_path / "state")
    assert caught.value.hint == f"chmod 0700 {tmp_path / 'state'}"


@pytest.mark.parametrize("damage", ["not a database", "a torn page", "half of it"])
def test_a_damaged_ledger_is_kept_and_a_new_one_begun(ledger: Ledger, damage: str) -> None:
    ledger.of(UPPER).put_all(record(b"lib/%d" % number) for number in range(2000))
    ledger.close()
    content = Path(ledger.path).read_bytes()
    torn = bytearray(content)
    torn[8192:20480] = b"\xa5" * 12288
    damaged = {"not a database": b"SQLite?" * 4000, "a torn page": bytes(torn), "half of it": content[: 4096 * 9]}[
        damage
    ]
    Path(ledger.path).write_bytes(damaged)
    with Ledger(os.path.dirname(ledger.path)) as again:
        assert again.was_rebuilt
        assert again.uppers() == []
        assert again.set_aside is not None
        assert Path(again.set_aside).read_bytes() == damaged
        again.see_upper(UPPER, b"/mnt/app", (), now=1.0)
    with Ledger(os.path.dirname(ledger.path)) as again:
        assert not again.was_rebuilt
        assert len(again.uppers()) == 1


def test_two_damaged_ledgers_in_one_second_are_both_kept(tmp_path: Path) -> None:
    kept = set()
    for number in range(3):
        (tmp_path / "ledger.sqlite").write_bytes(b"rubbish %d " % number * 100)
        with Ledger(tmp_path) as ledger:
            kept.add(ledger.set_aside)
    assert len(kept) == 3
    assert {Path(str(path)).read_bytes()[:9] for path in kept} == {b"rubbish 0", b"rubbish 1", b"rubbish 2"}


def test_damage_that_shows_later_says_what_to_do(ledger: Ledger) -> None:
    ledger.of(UPPER).put_all(record(b"lib/%d" % number) for number in range(5000))
    with reopen(ledger) as again:
        with open(ledger.path, "r+b") as file:
            file.seek(8192)
            file.write(b"\xa5" * (os.path.getsize(ledger.path) - 8192))
        again._database.read("PRAGMA shrink_memory")
        with pytest.raises(LedgerError, match="malformed") as caught:
            again.of(UPPER).directories()
        assert "restart promoterd" in str(caught.value.hint)


def test_a_newer_ledger_is_left_alone(ledger: Ledger) -> None:
    ledger.close()
    connection = sqlite3.connect(ledger.path)
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    before = Path(ledger.path).read_bytes()
    with pytest.raises(LedgerError, match=r"newer promoterd wrote it \(schema 99") as caught:
        Ledger(os.path.dirname(ledger.path))
    assert "upgrade" in str(caught.value.hint)
    assert Path(ledger.path).read_bytes() == before


def test_another_programs_database_is_left_alone(tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / "ledger.sqlite")
    connection.execute("CREATE TABLE theirs (a)")
    connection.commit()
    connection.close()
    before = (tmp_path / "ledger.sqlite").read_bytes()
    with pytest.raises(LedgerError, match="another program's database"):
        Ledger(tmp_path)
    assert (tmp_path / "ledger.sqlite").read_bytes() == before


def test_an_older_ledger_is_migrated_with_all_it_holds(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger.of(UPPER).put(record(b"lib"))
    ledger.close()
    more = (*MIGRATIONS, ("ALTER TABLE directories ADD COLUMN note TEXT", "CREATE TABLE extra (a)"))
    monkeypatch.setattr(database, "MIGRATIONS", more)
    with Ledger(os.path.dirname(ledger.path)) as again:
        assert again.of(UPPER).directories() == [record(b"lib")]
        assert again._database.read("PRAGMA user_version")[0][0] == len(more)
        assert again._database.read("SELECT note FROM directories")[0][0] is None


def test_a_migration_that_fails_leaves_the_ledger_as_it_was(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger.of(UPPER).put(record(b"lib"))
    ledger.close()
    with monkeypatch.context() as patch:
        patch.setattr(database, "MIGRATIONS", (*MIGRATIONS, ("CREATE TABLE extra (a)", "NO SUCH STATEMENT")))
        with pytest.raises(LedgerError, match="syntax error"):
            Ledger(os.path.dirname(ledger.path))
    with Ledger(os.path.dirname(ledger.path)) as again:
        assert again.of(UPPER).directories() == [record(b"lib")]
        assert again._database.read("SELECT name FROM sqlite_schema WHERE name = 'extra'") == []


def test_a_ledger_held_by_another_process_says_who_to_look_for(tmp_path: Path) -> None:
    with Ledger(tmp_path, busy_timeout=0.1) as ledger:
        holder = sqlite3.connect(ledger.path, isolation_level=None)
        holder.execute("BEGIN IMMEDIATE")
        with pytest.raises(LedgerError, match="locked") as caught:
            ledger.see_upper(UPPER, b"/mnt/app", (), now=1.0)
        assert f"fuser -v {ledger.path}" in str(caught.value.hint)
        holder.execute("ROLLBACK")
        holder.close()
        ledger.see_upper(UPPER, b"/mnt/app", (), now=1.0)


@pytest.mark.parametrize("place", ["file/state", "directory-in-the-way"])
def test_a_place_that_cannot_hold_a_ledger(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_bytes(b"")
    os.makedirs(tmp_path / "directory-in-the-way" / "ledger.sqlite", mode=0o700)
    with pytest.raises(LedgerError) as caught:
        Ledger(tmp_path / place)
    assert f"{tmp_path / place} must be a directory on a local disk" in str(caught.value.hint)


@pytest.mark.needs("root")
def test_a_full_disk_and_a_read_only_one(tmp_path: Path) -> None:
    place = tmp_path / "state"
    os.mkdir(place)
    syscalls.mount(b"tmpfs", bytes(place), b"tmpfs", 0, b"size=512k,mode=0700")
    try:
        with Ledger(place) as ledger:
            ledger.see_upper(UPPER, b"/mnt/app", (), now=1.0)
            book = ledger.of(UPPER)
            book.put(record(b"before"))
            with pytest.raises(LedgerError, match="full") as caught:
                book.put_all(record(b"d" * 200 + b"%d" % number) for number in range(20_000))
            assert caught.value.hint == f"free some space in {place}"
            assert book.directories() == [record(b"before")]
        syscalls.mount(b"", bytes(place), b"", syscalls.MS_REMOUNT | syscalls.MS_RDONLY)
        with pytest.raises(LedgerError) as caught:
            Ledger(place)
        assert "that root can write" in str(caught.value.hint)
    finally:
        assert unmount(bytes(place))


def test_a_closed_ledger_says_so(ledger: Ledger, book: UpperLedger) -> None:
    ledger.close()
    with pytest.raises(LedgerError, match="closed"):
        book.directories()
