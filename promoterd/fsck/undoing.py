"""Repairing what is wrong with marks on upper directories: they are reopened, by the code that reopens (R6)."""

import time
from collections.abc import Iterable

from promoterd.backends.base import Busy
from promoterd.backends.reopening import finish_interrupted, finish_unmounted, reopen_unmounted
from promoterd.errors import Refused
from promoterd.fsck.books import on_disk
from promoterd.fsck.findings import ENTRY, KEPT_IN_UPPER, Finding, Kind
from promoterd.fsck.session import Session
from promoterd.ledger import Ledger
from promoterd.overlay import beneath
from promoterd.overlay.times import restore_times
from promoterd.paths import ancestors

REOPENED = ENTRY - KEPT_IN_UPPER | {Kind.MERGED_CHILD, Kind.LEANING, Kind.ROLL}
"""Kinds that a reopening corrects."""


def repair_upper_directory(session: Session, path: bytes, findings: Iterable[Finding]) -> str | None:
    """Repair what was found in a directory; what keeps it from being so, in words, empty where nothing does.

    None where it has to be reopened on the live mount, which is not for here. Raises OSError.
    """
    kinds = {finding.kind for finding in findings if finding.is_error}
    try:
        if Kind.TIMES in kinds:
            with beneath.opened(session.layers.upper, path) as directory:
                restore_times(directory)
            session.sync()
            session.activate()
        if Kind.UNFINISHED in kinds:
            if session.mounted:
                finish_interrupted(session.layers, path)
            else:
                finish_unmounted(session.layers, path)
        elif kinds & REOPENED:
            if session.mounted:
                return None
            _reopen(session, path)
        elif kinds - KEPT_IN_UPPER - {Kind.TIMES}:
            return "nothing here tells what would be right"
    except (Busy, Refused) as error:
        return str(error)
    return ""


def _reopen(session: Session, path: bytes) -> None:
    """With its complete ancestors, top-down (R5); noted in the ledger, as far as that knows the layer."""
    chain = [ancestor for ancestor in ancestors(path) if on_disk(session, ancestor) is not None] + [path]
    upper_id = session.upper_id
    if upper_id is None or session.peek() is None:
        reopen_unmounted(session.layers, chain)
        return
    with Ledger(session.state_directory) as ledger:
        book = ledger.of(upper_id)
        reopen_unmounted(session.layers, chain, begin=lambda: book.begin(path, "reopen", "unmark", time.time()))
        book.forget(*chain)
        book.undefer(*chain)
        book.finish(path)
