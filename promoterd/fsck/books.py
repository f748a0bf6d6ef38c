"""What the ledger says that disk does not: disk wins (R9)."""

import time
from collections.abc import Collection, Iterable

from promoterd.errors import LedgerError
from promoterd.fsck.findings import Area, Finding, Kind
from promoterd.fsck.session import Session
from promoterd.ledger import DirectoryRecord, Ledger
from promoterd.overlay import beneath, xattrs
from promoterd.provenance import Provenance, decode
from promoterd.states import MARKED, State
from promoterd.terms import NANOSECONDS

_SETTLE = 0.5
"""Seconds after which a ledger that is being written has caught up with a mark, or the other way round."""
_MARKS = (xattrs.OPAQUE_YES, xattrs.OPAQUE_FINALIZED)


def disagreements(session: Session, marked: Collection[bytes]) -> list[Finding]:
    """Directories of which ledger and disk say different things, twice the same; ``marked`` are those with provenance.

    What was begun and not finished is left to the daemon's next start.
    """
    try:
        found = _differing(session, marked)
        if found:
            time.sleep(_SETTLE)
            later = _differing(session, marked)
            found = {path: said for path, said in found.items() if later.get(path) == said}
    except LedgerError as error:
        return [Finding(Area.LEDGER, b"", Kind.UNREADABLE, str(error))]
    return [
        Finding(
            Area.LEDGER,
            path,
            Kind.RECORD,
            "complete on disk, which the ledger does not know"
            if on_disk(session, path)
            else "complete in the ledger only",
        )
        for path in sorted(found)
    ]


def correct(session: Session, paths: Iterable[bytes]) -> None:
    """Make the ledger say of these directories what disk says. Raises LedgerError, OSError."""
    upper_id = session.upper_id
    if upper_id is None:
        return
    with Ledger(session.state_directory) as ledger:
        book = ledger.of(upper_id)
        for path in paths:
            provenance = on_disk(session, path)
            if provenance is None:
                book.forget(path)
                continue
            book.put(
                DirectoryRecord(
                    path,
                    State.COMPLETE,
                    time.time(),
                    backend=provenance.backend,
                    entries=provenance.entries,
                    marked_at=provenance.completed_ns / NANOSECONDS,
                )
            )


def on_disk(session: Session, path: bytes) -> Provenance | None:
    """The provenance beside a mark of ours at this very path, in upper or in the layer; None where there is none."""
    return next((found for mark, found in _provenances(session, path) if mark in _MARKS), None)


def _differing(session: Session, marked: Collection[bytes]) -> dict[bytes, tuple[object, ...]]:
    """Directories that differ, with what both sides say: another completion, or another record, is another case."""
    known = session.peek()
    if known is None:
        return {}
    claimed = {path: said for path, said in known.directories.items() if said[0] in MARKED}
    found: dict[bytes, tuple[object, ...]] = {}
    for path in (claimed.keys() | set(marked)) - known.unfinished:
        record = on_disk(session, path)
        # where there is provenance without a mark it is open, and complete again before long
        if (path in claimed) != (record is not None) and not (path in claimed and any(_provenances(session, path))):
            found[path] = claimed.get(path), None if record is None else record.completed_ns
    return found


def _provenances(session: Session, path: bytes) -> Iterable[tuple[bytes | None, Provenance]]:
    for root in (session.layers.upper, *session.layers.metadata[1:]):
        if root < 0:
            continue
        try:
            with beneath.opened(root, path) as directory:
                itself = xattrs.descriptor(directory)
                mark, found = xattrs.get(itself, xattrs.OPAQUE), decode(xattrs.get(itself, xattrs.PROVENANCE))
        except (FileNotFoundError, NotADirectoryError):
            continue
        if found is not None and found.is_at(path):
            yield mark, found
