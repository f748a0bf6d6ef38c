"""Keeping a hot directory's entries known, over a backend that marks nothing and whose reading wears off."""

from collections.abc import Callable, Collection

from promoterd.backends.base import Busy, Plan
from promoterd.errors import LedgerError, Refused
from promoterd.mounted import Mounted
from promoterd.paths import show
from promoterd.shadowing import hold_back
from promoterd.states import State
from promoterd.units import format_duration

_IN_THE_END = 1000
"""So often in a row that lifetimes grow no more."""


async def prime(
    mount: Mounted, plan: Plan, progress: Callable[[int, int], None] | None, *, by_hand: bool = False
) -> int | None:
    """Read a directory once, and say when it is to be read again; returns how many entries it has.

    None, and nothing is done, where the backend's reading is of no use to anybody. Raises Refused where a directory is
    too large to be kept known, Busy where the daemon stops, TripWire while the mount is paused, OSError, MountGone.
    """
    path, began = plan.path, mount.clock()
    times = mount.primed.pop(path, 0) + 1
    lasts = await mount.run(mount.backend.lasts, times)
    if lasts is None:
        return None
    entries = 0
    steps = mount.backend.shadow(plan)
    while (size := await mount.run(next, steps, None)) is not None:
        mount.check_not_paused()
        if mount.stopping:
            raise Busy(path=show(path), reason="the daemon is stopping")
        if not by_hand:
            await hold_back(mount, path)
        entries += size
        mount.metrics.primed(size)
        if progress is not None:
            progress(entries, entries)
        mount.metrics.throttled(await mount.pace.settle())
        mount.metrics.throttled(await mount.throttle.take(size))
    now = mount.clock()
    most = await mount.run(mount.backend.lasts, _IN_THE_END)
    if most is not None and now - began > most:
        raise Refused(
            path=show(path),
            reason=f"reading its {entries} entries took {_seconds(now - began)}, and what is read is believed for not "
            f"much more than {_seconds(most)}",
            hint="mount lower with a longer actimeo, raise `limits.entries_per_second`, or exclude it",
        )
    mount.primed[path] = times
    mount.book.move(
        path,
        State.PRIMED,
        now=now,
        reason=f"its entries are read anew every {_seconds(lasts)}",
        entries=entries,
        attempts=0,
        last_checked=now,
        retry_at=max(now, began + lasts),
        backend=mount.backend.name,
    )
    return entries


def let_go(mount: Mounted, wanted: Collection[bytes], now: float) -> None:
    """Directories are cold that are due to be read again, or to be looked at again, and that nobody wants any more."""
    _let_go(mount, State.PRIMED, wanted, now, "it is no longer hot, or no longer to be read")
    if mount.backend.marks:
        _let_go(mount, State.HOT, wanted, now, "it was not worth its promotion, and is no longer hot")


def _let_go(mount: Mounted, state: State, wanted: Collection[bytes], now: float, reason: str) -> None:
    due = [
        record.path
        for record in mount.book.in_states({state})
        if (record.retry_at is not None or state is State.PRIMED) and (record.retry_at or 0.0) <= now
    ]
    unwanted = [path for path in due if path not in wanted and path not in mount.busy]
    if not unwanted:
        return
    for path in unwanted:
        mount.primed.pop(path, None)
    try:
        mount.book.forget(unwanted, reason=reason)
    except LedgerError as error:
        mount.log.error("ledger_behind", reason=error.message)  # noqa: TRY400 - it is expected, and said


def _seconds(duration: float) -> str:
    return format_duration(round(duration, 1))
