"""Which directories are promoted next (pure): no clock, file or socket."""

from collections.abc import Callable, Collection, Iterable, Iterator

from promoterd.ledger import DirectoryRecord
from promoterd.paths import is_below
from promoterd.states import State


def is_due(record: DirectoryRecord | None, now: float) -> bool:
    """Whether a directory may be promoted now: cold or hot, or primed, refused or failed with its waiting time over."""
    if record is None or record.state is State.COLD:
        return True
    if record.state is State.HOT and record.retry_at is None:
        return True
    if record.state in (State.HOT, State.PRIMED, State.FAILED, State.REFUSED):
        was_set_back = record.since > now  # the clock, and nobody knows how long to wait
        return record.retry_at is not None and (record.retry_at <= now or was_set_back)
    return False


def overlaps(path: bytes, others: Iterable[bytes]) -> bool:
    """Whether a directory contains, is, or lies in one of the others: their closures would meet."""
    return any(is_below(path, other) or is_below(other, path) for other in others)


def choose(
    ranked: Iterable[bytes],
    record_of: Callable[[bytes], DirectoryRecord | None],
    busy: Collection[bytes],
    room: int,
    now: float,
) -> Iterator[bytes]:
    """From directories in order of urgency, at most ``room`` that may be promoted now beside those ``busy``."""
    taken = list(busy)
    for path in ranked:
        if room <= 0:
            return
        record = record_of(path)
        if not path or not is_due(record, now) or overlaps(path, taken):
            continue
        taken.append(path)
        room -= 1
        yield path
