"""The states of one mount's directories: in memory for decisions, in the ledger for later, logged as they change."""

from collections import Counter
from collections.abc import Callable, Collection, Iterable
from dataclasses import replace
from typing import Any

import structlog

from promoterd.errors import LedgerError
from promoterd.ledger import DirectoryRecord, UpperLedger
from promoterd.paths import show
from promoterd.states import MARKED, State, may_follow

Change = Callable[[DirectoryRecord | None, DirectoryRecord | None], None]


class Book:
    """Every directory that is not plainly cold has a record here. Used from the event loop only."""

    def __init__(self, ledger: UpperLedger, log: structlog.typing.FilteringBoundLogger, on_change: Change) -> None:
        self.ledger = ledger
        self._log = log
        self._on_change = on_change
        self._records = {record.path: record for record in ledger.directories()}
        for record in self._records.values():
            on_change(None, record)

    def get(self, path: bytes) -> DirectoryRecord | None:
        """The record of a directory; None for a cold one."""
        return self._records.get(path)

    def state(self, path: bytes) -> State:
        """The state of a directory."""
        record = self._records.get(path)
        return record.state if record is not None else State.COLD

    def is_marked(self, path: bytes) -> bool:
        """Whether a mark of ours is on disk, in effect or not (R10)."""
        return self.state(path) in MARKED

    def is_restless(self, path: bytes) -> bool:
        """Whether a directory kept changing, and is refused until somebody promotes it by hand (R7)."""
        record = self._records.get(path)
        return record is not None and record.state is State.REFUSED and record.retry_at is None

    def in_states(self, states: Collection[State]) -> list[DirectoryRecord]:
        """Records in these states, by path: parents before children."""
        return sorted((r for r in self._records.values() if r.state in states), key=lambda record: record.path)

    def counts(self) -> Counter[State]:
        """How many directories are in each state; cold ones are not counted."""
        return Counter(record.state for record in self._records.values())

    def completed(self) -> tuple[int, int]:
        """How many directories carry a mark of ours, and how many entries they have."""
        marked = [record.entries for record in self._records.values() if record.state in MARKED]
        return len(marked), sum(marked)

    def move(
        self,
        path: bytes,
        state: State,
        *,
        now: float,
        reason: str | None = None,
        regardless: bool = False,
        **changes: Any,
    ) -> None:
        """Bring one directory into a state; the record's other fields stay as they are unless named.

        Raises LedgerError where that cannot be written down, and then nothing has changed. ``regardless`` is for what
        is so already: it is known and said all the same, and the ledger is behind until the next start asks disk.
        """
        self.move_all([path], state, now=now, reason=reason, regardless=regardless, **changes)

    def move_all(
        self,
        paths: Iterable[bytes],
        state: State,
        *,
        now: float,
        reason: str | None = None,
        regardless: bool = False,
        **changes: Any,
    ) -> None:
        """As :meth:`move` for many directories, in one commit."""
        moved = []
        for path in dict.fromkeys(paths):
            before = self._records.get(path)
            same = before is not None and before.state is state
            record = replace(
                before or DirectoryRecord(path, state, now),
                state=state,
                since=before.since if before is not None and same else now,
                reason=reason,
                **changes,
            )
            if record != before:
                moved.append((before, record))
        try:
            self.ledger.put_all(record for _, record in moved)
        except LedgerError as error:
            if not regardless:
                raise
            self._log.error("ledger_behind", reason=error.message)
        for before, record in moved:
            self._take(before, record)

    def _take(self, before: DirectoryRecord | None, record: DirectoryRecord) -> None:
        was = before.state if before is not None else State.COLD
        if not may_follow(was, record.state):
            self._log.warning("unexpected_state", path=show(record.path), before=was, state=record.state)
        self._records[record.path] = record
        self._on_change(before, record)
        if before is None or (before.state, before.reason) != (record.state, record.reason):
            self._log.info("directory", path=show(record.path), state=record.state.value, reason=record.reason)

    def forget(self, paths: Iterable[bytes], *, reason: str) -> None:
        """These directories are cold again, also where that cannot be written down: raises LedgerError afterwards."""
        gone = [path for path in paths if path in self._records]
        for path in gone:
            before = self._records.pop(path)
            self._on_change(before, None)
            self._log.info("directory", path=show(path), state=State.COLD.value, reason=reason)
        self.ledger.forget(*gone)
