"""The book of one upper layer: its directories, and what was begun, deferred and counted there."""

import sqlite3
from collections.abc import Collection, Iterable
from operator import attrgetter
from typing import Any

from promoterd.ledger.database import Database
from promoterd.ledger.records import (
    AncestorRecord,
    DeferredReopen,
    DirectoryRecord,
    HeatRecord,
    JournalEntry,
)
from promoterd.states import State

DAY = 86_400.0

_DIRECTORY_FIELDS = (
    "path",
    "state",
    "since",
    "reason",
    "backend",
    "entries",
    "attempts",
    "retry_at",
    "marked_at",
    "last_checked",
)
_directory_values = attrgetter(*_DIRECTORY_FIELDS)
_PUT_DIRECTORY = (
    f"INSERT OR REPLACE INTO directories (upper_id, {', '.join(_DIRECTORY_FIELDS)}) "  # noqa: S608 - names from above
    f"VALUES (?{', ?' * len(_DIRECTORY_FIELDS)})"
)


def printable(text: str) -> str:
    """Text that SQLite can hold: lone surrogates, which UTF-8 has no form for, become escapes."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


class UpperLedger:
    """All of it is keyed by the upper layer's id, so that it follows the layer to another mount point."""

    def __init__(self, database: Database, upper_id: str) -> None:
        self._database = database
        self.upper_id = upper_id

    # Directories

    def put(self, *records: DirectoryRecord) -> None:
        """Write directories, replacing what was known of them: one commit for all."""
        self.put_all(records)

    def put_all(self, records: Iterable[DirectoryRecord]) -> None:
        """As :meth:`put`, for any number of them."""
        self._database.write_many(_PUT_DIRECTORY, (self._row(record) for record in records))

    def _row(self, record: DirectoryRecord) -> tuple[Any, ...]:
        path, state, since, reason, *others = _directory_values(record)
        return (self.upper_id, path, state.value, since, None if reason is None else printable(reason), *others)

    def directory(self, path: bytes) -> DirectoryRecord | None:
        """What is known of one directory, or None."""
        rows = self._read("SELECT * FROM directories WHERE upper_id = ? AND path = ?", path)
        return _directory(rows[0]) if rows else None

    def directories(self, states: Collection[State] | None = None, below: bytes = b"") -> list[DirectoryRecord]:
        """Directories in path order, of some states only, and only ``below`` with all that lies in it, if given."""
        chosen = [state.value for state in (State if states is None else states)]
        condition, bounds = _subtree(below)
        rows = self._read(
            f"SELECT * FROM directories WHERE upper_id = ? AND {condition} "  # noqa: S608 - only placeholders go in
            f"AND state IN ({', '.join('?' * len(chosen))}) ORDER BY path",
            *bounds,
            *chosen,
        )
        return [_directory(row) for row in rows]

    def counts(self) -> dict[State, int]:
        """How many directories are in each state; every state is there, also with 0."""
        rows = self._read("SELECT state, count(*) AS number FROM directories WHERE upper_id = ? GROUP BY state")
        return dict.fromkeys(State, 0) | {State(row["state"]): row["number"] for row in rows}

    def forget(self, *paths: bytes) -> None:
        """Drop what is known of directories, their count of staleness aside."""
        self._write_many("DELETE FROM directories WHERE upper_id = ? AND path = ?", paths)

    # Ancestors that promotion copied up

    def put_ancestor(self, path: bytes) -> None:
        """Remember a copied-up ancestor; what it was like on lower stands on the directory itself."""
        self._database.write("INSERT OR REPLACE INTO ancestors VALUES (?, ?, '{}')", self.upper_id, path)

    def ancestors(self) -> list[AncestorRecord]:
        """Every ancestor that was copied up, top first."""
        rows = self._read("SELECT path FROM ancestors WHERE upper_id = ? ORDER BY path")
        return [AncestorRecord(row["path"]) for row in rows]

    def forget_ancestor(self, path: bytes) -> None:
        """The directory is gone, or the user's own now."""
        self._write_many("DELETE FROM ancestors WHERE upper_id = ? AND path = ?", (path,))

    # Deferred reopenings

    def defer(self, path: bytes, reason: str, now: float) -> None:
        """Note that a directory is to be reopened when that is safe; the first moment asked for it stays."""
        self._database.write(
            "INSERT INTO deferred_reopens VALUES (?, ?, ?, ?) "
            "ON CONFLICT (upper_id, path) DO UPDATE SET reason = excluded.reason",
            self.upper_id,
            path,
            printable(reason),
            now,
        )

    def deferred(self) -> list[DeferredReopen]:
        """Reopenings that wait, top-down: the order in which they can be done (R5)."""
        rows = self._read("SELECT * FROM deferred_reopens WHERE upper_id = ? ORDER BY path")
        return [DeferredReopen(row["path"], row["reason"], row["since"]) for row in rows]

    def undefer(self, *paths: bytes) -> None:
        """These wait no longer."""
        self._write_many("DELETE FROM deferred_reopens WHERE upper_id = ? AND path = ?", paths)

    # Journal of begun operations

    def begin(self, path: bytes, operation: str, step: str, now: float) -> None:
        """Note an operation before its first change; durable on return, unless a transaction is open around it."""
        self._database.write(
            "INSERT OR REPLACE INTO journal VALUES (?, ?, ?, ?, ?)", self.upper_id, path, operation, step, now
        )

    def step(self, path: bytes, step: str) -> None:
        """Note how far a begun operation has come."""
        self._database.write("UPDATE journal SET step = ? WHERE upper_id = ? AND path = ?", step, self.upper_id, path)

    def finish(self, *paths: bytes) -> None:
        """The operations are done, or undone."""
        self._write_many("DELETE FROM journal WHERE upper_id = ? AND path = ?", paths)

    def unfinished(self) -> list[JournalEntry]:
        """Operations that were begun and not finished, oldest first."""
        rows = self._read("SELECT * FROM journal WHERE upper_id = ? ORDER BY started, path")
        return [JournalEntry(row["path"], row["operation"], row["step"], row["started"]) for row in rows]

    # Staleness (R7: three times in a day counts as growing)

    def count_stale(self, path: bytes, now: float, window: float = DAY) -> int:
        """Count one more change on lower; how many there were in the last ``window`` seconds, this one included."""
        with self._database.transaction():
            self._database.write("DELETE FROM stale_events WHERE upper_id = ? AND at <= ?", self.upper_id, now - window)
            self._database.write("INSERT INTO stale_events VALUES (?, ?, ?)", self.upper_id, path, now)
            return self.stale_count(path, now, window)

    def stale_count(self, path: bytes, now: float, window: float = DAY) -> int:
        """How often a directory went stale in the last ``window`` seconds."""
        rows = self._read(
            "SELECT count(*) AS number FROM stale_events WHERE upper_id = ? AND path = ? AND at > ?", path, now - window
        )
        return int(rows[0]["number"])

    def forget_stale(self, path: bytes) -> None:
        """An admin said that the directory is not growing."""
        self._write_many("DELETE FROM stale_events WHERE upper_id = ? AND path = ?", (path,))

    # Heat

    def save_heat(self, records: Iterable[HeatRecord]) -> None:
        """Replace the remembered heat of the whole layer."""
        with self._database.transaction():
            self._database.write("DELETE FROM heat_by_kind WHERE upper_id = ?", self.upper_id)
            self._database.write_many(
                "INSERT OR REPLACE INTO heat_by_kind VALUES (?, ?, ?, ?, ?)",
                ((self.upper_id, record.path, record.kind, record.heat, record.at) for record in records),
            )

    def load_heat(self) -> list[HeatRecord]:
        """The heat that was saved last, hottest first."""
        rows = self._read("SELECT * FROM heat_by_kind WHERE upper_id = ? ORDER BY heat DESC, path, kind")
        return [HeatRecord(row["path"], row["heat"], row["at"], row["kind"]) for row in rows]

    def _read(self, sql: str, *values: str | bytes | float) -> list[sqlite3.Row]:
        return self._database.read(sql, self.upper_id, *values)

    def _write_many(self, sql: str, paths: Iterable[bytes]) -> None:
        self._database.write_many(sql, ((self.upper_id, path) for path in paths))


def _subtree(path: bytes) -> tuple[str, tuple[bytes, ...]]:
    """A condition on ``path`` and its values: blobs compare like memcmp, and '0' is the byte after '/'."""
    if not path:
        return "TRUE", ()
    return "(path = ? OR (path >= ? AND path < ?))", (path, path + b"/", path + b"0")


def _directory(row: sqlite3.Row) -> DirectoryRecord:
    values = {name: row[name] for name in _DIRECTORY_FIELDS}
    return DirectoryRecord(**values | {"state": State(row["state"])})
