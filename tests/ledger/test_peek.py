"""Reading a ledger without writing to it."""

import os
import sqlite3
import time
from pathlib import Path

import pytest

from promoterd.errors import LedgerError
from promoterd.ledger import DirectoryRecord, Ledger
from promoterd.ledger.peek import Peek, peek
from promoterd.states import State


def test_while_it_is_open_and_written(tmp_path: Path) -> None:
    with Ledger(tmp_path) as ledger:
        ledger.see_upper("u", b"/mnt\xff", (b"/upper", b"/lower\xfe"), time.time())
        book = ledger.of("u")
        book.put(DirectoryRecord(b"a\xff", State.ACTIVE, 5.0))
        book.begin(b"b", "promote", "shadow", time.time())
        assert peek(str(tmp_path), "u") == Peek(
            b"/mnt\xff", (b"/upper", b"/lower\xfe"), {b"a\xff": (State.ACTIVE, 5.0)}, frozenset({b"b"})
        )
        book.put(DirectoryRecord(b"a\xff", State.STALE, 6.0))
        found = peek(str(tmp_path), "u")
        assert found is not None
        assert found.directories == {b"a\xff": (State.STALE, 6.0)}
    assert peek(str(tmp_path), "another") is None


def test_nothing_is_made(tmp_path: Path) -> None:
    assert peek(str(tmp_path / "state"), "u") is None
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("content", [b"no database" * 100, b""])
def test_what_is_no_ledger(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "ledger.sqlite"
    file.write_bytes(content)
    with pytest.raises(LedgerError, match=str(file)):
        peek(str(tmp_path), "u")
    assert file.read_bytes() == content


def test_what_a_newer_version_wrote(tmp_path: Path) -> None:
    with Ledger(tmp_path) as ledger:
        ledger.see_upper("u", b"/mnt", (b"/upper",), time.time())
        ledger.of("u").put(DirectoryRecord(b"a", State.ACTIVE, time.time()))
    with sqlite3.connect(tmp_path / "ledger.sqlite") as database:
        database.execute("UPDATE directories SET state = 'unheard-of'")
    database.close()
    with pytest.raises(LedgerError, match="unheard-of"):
        peek(str(tmp_path), "u")
