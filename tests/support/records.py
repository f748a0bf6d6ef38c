"""A ledger's upper layers and records."""

import os

from promoterd.ledger import DirectoryRecord, Ledger
from promoterd.states import State

UPPER = "5f0c1a52-6f6d-4c6e-9a53-0a5c2f8d0001"
OTHER = "5f0c1a52-6f6d-4c6e-9a53-0a5c2f8d0002"
ODD = b"lib/new\nline \xff\xfe\0no".replace(b"\0", b"")


def record(path: bytes, state: State = State.HOT, **others: object) -> DirectoryRecord:
    return DirectoryRecord(path, state, since=1.5, **others)  # type: ignore[arg-type]


def reopen(ledger: Ledger) -> Ledger:
    ledger.close()
    return Ledger(os.path.dirname(ledger.path))
