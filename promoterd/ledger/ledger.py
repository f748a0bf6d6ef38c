"""The ledger of one machine: which upper layers there are, and the way to each one's book."""

import json
import os
from collections.abc import Sequence
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Self

from promoterd.ledger.database import Database
from promoterd.ledger.records import UpperRecord
from promoterd.ledger.upper import UpperLedger, printable

FILE_NAME = "ledger.sqlite"


class Ledger:
    """The ledger in a state directory, which is made with mode 0700 where it is missing.

    ``was_rebuilt``: nothing is remembered, because the old ledger was damaged; it was kept as ``set_aside``. Any thread
    may use it. ``busy_timeout`` in seconds. Raises LedgerError where the file cannot be opened, read or written, or a
    newer promoterd wrote it.
    """

    def __init__(self, state_directory: str | os.PathLike[str], *, busy_timeout: float = 5.0) -> None:
        self._database = Database(os.path.join(os.path.abspath(state_directory), FILE_NAME), busy_timeout)
        self.path = self._database.path
        self.set_aside = self._database.set_aside
        self.was_rebuilt = self.set_aside is not None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the file. A ledger that is never closed loses nothing: every write was durable when it returned."""
        self._database.close()

    def transaction(self) -> AbstractContextManager[None]:
        """Put many writes into one durable commit: ``with ledger.transaction(): ...``, without an await inside.

        An exception undoes all of them.
        """
        return self._database.transaction()

    def see_upper(self, upper_id: str, mountpoint: bytes, layers: Sequence[bytes], now: float) -> UpperRecord:
        """Note where an upper layer stands now; its history is kept whatever path it stood at before."""
        self._database.write(
            "INSERT INTO uppers (id, mountpoint, layers, first_seen) VALUES (?, ?, ?, ?) "
            "ON CONFLICT (id) DO UPDATE SET mountpoint = excluded.mountpoint, layers = excluded.layers",
            upper_id,
            mountpoint,
            json.dumps([layer.decode("utf-8", "surrogateescape") for layer in layers]),
            now,
        )
        record = self.upper(upper_id)
        assert record is not None  # noqa: S101 - written just above
        return record

    def upper(self, upper_id: str) -> UpperRecord | None:
        """One upper layer, or None where it was never seen."""
        return next((record for record in self.uppers() if record.id == upper_id), None)

    def uppers(self) -> list[UpperRecord]:
        """Every upper layer that was ever seen, retired ones too."""
        return [
            UpperRecord(
                id=row["id"],
                mountpoint=row["mountpoint"],
                layers=tuple(layer.encode("utf-8", "surrogateescape") for layer in json.loads(row["layers"])),
                first_seen=row["first_seen"],
                retired=bool(row["retired"]),
                paused=row["paused"],
            )
            for row in self._database.read("SELECT * FROM uppers ORDER BY first_seen, id")
        ]

    def set_paused(self, upper_id: str, reason: str | None) -> None:
        """Remember that nothing may be promoted there and why, or with None that it may again."""
        text = None if reason is None else printable(reason)
        self._database.write("UPDATE uppers SET paused = ? WHERE id = ?", text, upper_id)

    def set_retired(self, upper_id: str, *, retired: bool) -> None:
        """Remember that everything was undone there and is to stay so."""
        self._database.write("UPDATE uppers SET retired = ? WHERE id = ?", int(retired), upper_id)

    def of(self, upper_id: str) -> UpperLedger:
        """The book of one upper layer, which :meth:`see_upper` must have seen before anything is written to it."""
        return UpperLedger(self._database, upper_id)
