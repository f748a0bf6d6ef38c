"""What was done, in SQLite: survives restarts, and is keyed by the id on the upper root, never by a path (R9).

The ledger remembers; it does not decide. What stands on disk (marks and provenance) wins over what stands here, and a
ledger that is lost or damaged is begun anew and filled from disk.
"""

from promoterd.ledger.ledger import Ledger
from promoterd.ledger.records import (
    AncestorRecord,
    DeferredReopen,
    DirectoryRecord,
    HeatRecord,
    JournalEntry,
    UpperRecord,
)
from promoterd.ledger.upper import UpperLedger

__all__ = [
    "AncestorRecord",
    "DeferredReopen",
    "DirectoryRecord",
    "HeatRecord",
    "JournalEntry",
    "Ledger",
    "UpperLedger",
    "UpperRecord",
]
