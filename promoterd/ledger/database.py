"""The SQLite file below the ledger: opening, schema, transactions, and what to say when it fails."""

import fcntl
import os
import sqlite3
import stat
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress

from promoterd.errors import LedgerError
from promoterd.ledger.schema import APPLICATION_ID, MIGRATIONS

Value = int | float | str | bytes | None

_PRIMARY = 0xFF  # extended result codes keep the primary one in the low byte (sqlite.org/rescode.html)
_DAMAGED = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
_BUSY = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED})
_UNWRITABLE = frozenset(
    {sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_AUTH}
)
_SIDE_FILES = ("", "-wal", "-shm")
_WRITABLE_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH


class _DamagedFileError(Exception):
    """The file is no database, or a damaged one."""


def explain(path: str, error: sqlite3.Error | OSError) -> LedgerError:
    """The error for people: what is wrong with the ledger, and the way out."""
    code = getattr(error, "sqlite_errorcode", 0) & _PRIMARY
    directory = os.path.dirname(path)
    hint = None
    if code in _DAMAGED:
        hint = "restart promoterd: it keeps the damaged file and rebuilds the ledger from disk"
    elif code in _BUSY:
        hint = f"another process holds it: `fuser -v {path}` names it"
    elif code == sqlite3.SQLITE_FULL:
        hint = f"free some space in {directory}"
    elif code in _UNWRITABLE or isinstance(error, OSError):
        hint = f"{directory} must be a directory on a local disk that root can write"
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return LedgerError(path=path, reason=reason, hint=hint)


def _is_damage(error: sqlite3.Error) -> bool:
    return getattr(error, "sqlite_errorcode", 0) & _PRIMARY in _DAMAGED


@contextmanager
def _reported(path: str) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise explain(path, error) from error


class Database:
    """One connection behind one lock: safe to use from every thread. WAL, and every commit is durable (FULL).

    ``set_aside`` names the damaged file that was found and kept. Raises LedgerError.
    """

    def __init__(self, path: str, busy_timeout: float) -> None:
        self.path = path
        self.set_aside: str | None = None
        self._lock = threading.RLock()
        with _directory_lock(path):
            try:
                self._connection = _open(path, busy_timeout)
            except _DamagedFileError:
                self.set_aside = _move_aside(path)
                self._connection = _open(path, busy_timeout)

    def close(self) -> None:
        """Close the file; every further use raises LedgerError."""
        with self._lock, _reported(self.path):
            self._connection.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All or nothing, durable at the end; one inside another joins it. Never await within: the lock is held."""
        with self._lock, _reported(self.path):
            if self._connection.in_transaction:
                yield
                return
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._connection.execute("COMMIT")
            except BaseException:
                with suppress(sqlite3.Error):  # SQLite has rolled back by itself where the disk was full
                    self._connection.execute("ROLLBACK")
                raise

    def write(self, sql: str, *values: Value) -> None:
        """Run one statement, in the transaction that is open or in one of its own."""
        with self.transaction():
            self._connection.execute(sql, values)

    def write_many(self, sql: str, rows: Iterable[Sequence[Value]]) -> None:
        """Run one statement for each row, in one transaction."""
        with self.transaction():
            self._connection.executemany(sql, rows)

    def read(self, sql: str, *values: Value) -> list[sqlite3.Row]:
        """All rows of a query, addressed by column name."""
        with self._lock, _reported(self.path):
            rows: list[sqlite3.Row] = self._connection.execute(sql, values).fetchall()
            return rows


@contextmanager
def _directory_lock(path: str) -> Iterator[None]:
    """Make the state directory and hold it while the file is opened: only one process sets aside or migrates."""
    directory = os.path.dirname(path)
    try:
        os.makedirs(directory, mode=0o700, exist_ok=True)
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise explain(path, error) from error
    try:
        if os.fstat(descriptor).st_mode & _WRITABLE_BY_OTHERS:
            raise LedgerError(
                path=path, reason=f"{directory} can be written by others than root", hint=f"chmod 0700 {directory}"
            )
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _open(path: str, busy_timeout: float) -> sqlite3.Connection:
    with _reported(path):
        connection = sqlite3.connect(path, timeout=busy_timeout, isolation_level=None, check_same_thread=False)
        try:
            connection.row_factory = sqlite3.Row
            _prepare(connection, path)
        except sqlite3.Error as error:
            connection.close()
            if _is_damage(error):
                raise _DamagedFileError from error
            raise
        except BaseException:
            connection.close()
            raise
        return connection


def _prepare(connection: sqlite3.Connection, path: str) -> None:
    is_empty = _number(connection, "SELECT count(*) FROM sqlite_schema") == 0
    version = _number(connection, "PRAGMA user_version")
    if not is_empty and _number(connection, "PRAGMA application_id") != APPLICATION_ID:
        raise LedgerError(path=path, reason="it is another program's database", hint="choose another state directory")
    if version > len(MIGRATIONS):
        raise LedgerError(
            path=path,
            reason=f"a newer promoterd wrote it (schema {version}; this one knows {len(MIGRATIONS)})",
            hint="upgrade promoterd, or move the file away: the ledger is then rebuilt from disk",
        )
    if [row[0] for row in connection.execute("PRAGMA quick_check(1)")] != ["ok"]:
        raise _DamagedFileError
    if connection.execute("PRAGMA journal_mode = WAL").fetchone()[0] != "wal":
        # WAL needs shared memory between the processes that use the file (sqlite.org/wal.html)
        hint = f"{os.path.dirname(path)} must lie on a local disk"
        raise LedgerError(path=path, reason="its file system allows no write-ahead log", hint=hint)
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA foreign_keys = ON")
    _migrate(connection, version)


def _number(connection: sqlite3.Connection, sql: str) -> int:
    return int(connection.execute(sql).fetchone()[0])


def _migrate(connection: sqlite3.Connection, version: int) -> None:
    """Bring the schema up to date in one transaction, which also shows that the file can be written."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        for statements in MIGRATIONS[version:]:
            for statement in statements:
                connection.execute(statement)
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")
        connection.execute("COMMIT")
    except BaseException:
        with suppress(sqlite3.Error):
            connection.execute("ROLLBACK")
        raise


def _move_aside(path: str) -> str:
    """Keep a damaged ledger, and what belongs to it, under another name."""
    stamp = time.strftime("%Y%m%dT%H%M%S")
    target = f"{path}.damaged-{stamp}"
    attempt = 0
    while os.path.lexists(target):
        attempt += 1
        target = f"{path}.damaged-{stamp}-{attempt}"
    try:
        for suffix in _SIDE_FILES:
            with suppress(FileNotFoundError):
                os.rename(path + suffix, target + suffix)
    except OSError as error:
        raise explain(path, error) from error
    return target
