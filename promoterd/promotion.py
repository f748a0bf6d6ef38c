"""One directory, from hot to marked, over any backend."""

import errno
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import partial

from promoterd.backends.base import Busy, MarkState, Plan
from promoterd.errors import LedgerError, MountGone, PromoterdError, Refused, TripWire
from promoterd.holding import take_room
from promoterd.localdata import room_for
from promoterd.marking import complete
from promoterd.mounted import Mounted
from promoterd.overlay import beneath
from promoterd.overlay.listing import Layers
from promoterd.paths import ancestors, is_below, show
from promoterd.pool import PoolClosed
from promoterd.priming import prime
from promoterd.queueing import overlaps
from promoterd.reconcile import settle
from promoterd.shadowing import Progress, check_space, shadow
from promoterd.states import MARKED, State
from promoterd.terms import NANOSECONDS, terms_for

RETRY_FIRST, RETRY_MOST = 30.0, 3600.0
"""Seconds until a failed promotion is tried again: doubled with each attempt."""
RETRY_POSTPONED = 900.0
"""Seconds until it is looked again whether a hot directory is worth its promotion."""
RETRY_REFUSED = 3600.0
"""Seconds until a refused directory is looked at again, since its obstacle may be gone; or one that was observed."""
FULL = (errno.ENOSPC, errno.EDQUOT)
_ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.ESTALE)


class Outcome(StrEnum):
    """How a promotion ended."""

    MARKED = "marked"
    OBSERVED = "observed"
    PRIMED = "primed"
    POSTPONED = "postponed"
    REFUSED = "refused"
    BUSY = "busy"
    FAILED = "failed"
    GONE = "gone"


@dataclass(frozen=True, slots=True)
class Promotion:
    """What came of one promotion: the directories that are marked now, and the reason where none is."""

    path: bytes
    outcome: Outcome
    directories: tuple[bytes, ...] = ()
    entries: int = 0
    reason: str | None = None
    hint: str | None = None
    broken_hardlinks: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class Way:
    """How a directory is to be promoted; see :func:`promote`."""

    alone: bool = False
    by_hand: bool = False
    progress: Progress | None = None
    why_not: Callable[[Plan], str | None] | None = None


async def promote(
    mount: Mounted,
    path: bytes,
    *,
    alone: bool = False,
    by_hand: bool = False,
    progress: Progress | None = None,
    why_not: Callable[[Plan], str | None] | None = None,
) -> Promotion:
    """Plan, shadow, verify and mark a directory with its closure, or ``alone``; its state says how that went.

    ``by_hand``: neither hours nor the budget of requests hold it, for somebody wants it now. ``why_not`` may find a
    plan not worth it, with the reason; the directory is then as hot as before.

    Raises TripWire while the mount is paused or when something broken was met, Refused where it is being worked on
    already, and MountGone. What these break off stands in the journal, for the next start.
    """
    mount.check_not_paused()
    if overlaps(path, mount.busy):
        raise Refused(path=show(path), reason="it is being worked on already", hint="try again when that is done")
    mount.busy.add(path)
    started = mount.clock()
    try:
        done = await _promote(mount, path, Way(alone, by_hand, progress, why_not))
    except Refused as refusal:
        done = Promotion(path, Outcome.REFUSED, reason=refusal.message, hint=refusal.hint)
        wait = refusal.fields.get("wait")
        retry = wait if isinstance(wait, float) else RETRY_REFUSED
        _settle(mount, path, State.REFUSED, refusal, mount.clock() + retry)
    except Busy as busy:
        done = Promotion(path, Outcome.BUSY, reason=busy.message, hint=busy.hint)
        wait = busy.fields.get("wait")
        retry = wait if isinstance(wait, float) else _backoff(mount, path)
        _settle(mount, path, State.FAILED, busy, mount.clock() + retry)
    except TripWire as tripped:
        if not mount.book.is_marked(path):
            now, reason = mount.clock(), tripped.message
            mount.book.move(path, State.HOT, now=now, reason=reason, retry_at=None, regardless=True)
        raise
    except (MountGone, PoolClosed):
        raise
    except OSError as error:
        done = await _gone(mount, path, error) or _failed(mount, path, error)
    except Exception as error:
        if not (isinstance(error, LedgerError) and mount.book.is_marked(path)):  # else it is done, but not written down
            _failed(mount, path, error)
        raise
    finally:
        mount.busy.discard(path)
        mount.taking.pop(path, None)
    mount.metrics.promoted(done.outcome.value, mount.clock() - started)
    return done


async def _promote(mount: Mounted, path: bytes, way: Way) -> Promotion:
    now = mount.clock()
    if mount.book.state(path) is State.COLD:
        mount.book.move(path, State.HOT, now=now)
    terms = terms_for(mount.policy, path, round(now * NANOSECONDS), mount.book.is_restless)
    if way.alone:
        terms = replace(terms, recursive=False)

    def plan_it(layers: Layers) -> Plan:
        return mount.backend.plan(layers, path, terms)

    plan = await mount.with_layers(plan_it)
    await mount.pace.settle()
    if not mount.backend.marks:
        return await _without_marks(mount, plan, way, now)
    if not plan.directories:
        await settle(mount, path)
        return Promotion(path, Outcome.MARKED, (path,))
    unpaid = way.why_not(plan) if way.why_not is not None else None
    if unpaid is not None:
        return _postponed(mount, plan, unpaid, now)
    return await _mark(mount, plan, way, now)


async def _without_marks(mount: Mounted, plan: Plan, way: Way, now: float) -> Promotion:
    """Where the backend marks nothing: keep the directory known, or say what would be done."""
    path = plan.path
    primed = await prime(mount, plan, way.progress, by_hand=way.by_hand)
    if primed is not None:
        return Promotion(path, Outcome.PRIMED, (path,), primed)
    mount.log.info("would_promote", path=show(path), directories=len(plan.directories), entries=plan.entries)
    said = f"backend {mount.backend.name} marks nothing"
    mount.book.move(path, State.HOT, now=now, reason=said, retry_at=now + RETRY_REFUSED)
    return Promotion(path, Outcome.OBSERVED, tuple(d.path for d in plan.directories), plan.entries)


def _postponed(mount: Mounted, plan: Plan, reason: str, now: float) -> Promotion:
    """Not worth it yet; how large it is, is known now."""
    again = now + RETRY_POSTPONED
    mount.book.move(plan.path, State.HOT, now=now, reason=reason, retry_at=again, entries=plan.entries)
    return Promotion(plan.path, Outcome.POSTPONED, reason=reason)


async def _mark(mount: Mounted, plan: Plan, way: Way, now: float) -> Promotion:
    path = plan.path
    _leave_out_begun(mount, plan)
    await _check_limits(mount, plan)
    closure = [directory.path for directory in plan.directories]
    mount.upper_ledger.begin(path, "promote", "shadow", now)
    mount.book.move_all(closure, State.SHADOWING, now=now, backend=mount.backend.name)
    mount.follow(ancestors(path))
    marked: list[bytes] = []
    await mount.quiet(closure)
    try:
        async with room_for(mount, plan):
            await shadow(mount, plan, way.progress, by_hand=way.by_hand)
            mount.check_not_paused()
            mount.upper_ledger.step(path, "mark")
            marked = await complete(mount, plan)
    finally:
        try:
            await mount.run(mount.backend.abandon, plan)
            # not sooner: an activation meanwhile would have settled it before they came into the layer
            heard = {*mount.to_be_heard(), *ancestors(path)}
            mount.renew([directory for directory in plan.renewed if directory in heard and directory not in closure])
            await _hear_again(mount, [directory for directory in closure if directory not in marked])
        finally:
            if not marked:
                mount.book.forget((d for d in closure if d != path), reason=f"the promotion of {show(path)} stopped")
                await _look_after(mount, path, closure)
    entries = {directory.path: len(directory.listing.entries) for directory in plan.directories}
    now = mount.clock()
    for directory in marked:
        mount.book.move(
            directory,
            State.COMPLETE,
            now=now,
            entries=entries[directory],
            marked_at=now,
            last_checked=now,
            attempts=0,
            retry_at=None,
            backend=mount.backend.name,
            regardless=True,
        )
    mount.follow_no_more(marked)
    mount.upper_ledger.finish(path)
    for link in plan.broken_hardlinks:
        mount.log.warning("hardlink_broken", path=show(link), reason="copied up without index=on, as policy allows")
    mount.log.info("promoted", path=show(path), directories=len(marked), entries=plan.entries)
    return Promotion(path, Outcome.MARKED, tuple(marked), plan.entries, broken_hardlinks=tuple(plan.broken_hardlinks))


async def _check_limits(mount: Mounted, plan: Plan) -> None:
    """Raise Busy where there is no room for it."""
    await check_space(mount, plan.path)
    await take_room(mount, plan)


async def _look_after(mount: Mounted, path: bytes, closure: Sequence[bytes]) -> None:
    """What was begun in place, or completed before it stopped, answers for lower: it has to stay so (R1, R8)."""
    if not mount.backend.resyncs:
        return
    with suppress(PromoterdError, PoolClosed, OSError):
        await mount.with_layers(partial(mount.backend.finish_promotion, path=path))
        for directory in closure:
            found = await mount.with_layers(partial(mount.backend.on_disk, path=directory))
            if found.mark in {MarkState.OPEN, MarkState.OURS}:
                await settle(mount, directory)


async def _hear_again(mount: Mounted, paths: Sequence[bytes]) -> None:
    """Hear what was not completed; it may have come into the layer all the same."""
    await mount.hear(paths)
    if mount.backend.effect_shows_in_inode:
        mount.renew(paths)


def _leave_out_begun(mount: Mounted, plan: Plan) -> None:
    """Ancestors that another promotion has taken on, or has completed since."""
    begun = {State.SHADOWING, *MARKED}
    plan.directories = [
        directory
        for directory in plan.directories
        if is_below(directory.path, plan.path) or mount.book.state(directory.path) not in begun
    ]


async def resync(mount: Mounted, path: bytes) -> bool:
    """Bring a stale directory in line with the server, in place; whether it may be a mark again now (R3, R4).

    Raises Refused where that must not be, Busy where it cannot be now, TripWire, MountGone, OSError.
    """
    mount.check_not_paused()
    if overlaps(path, mount.busy):
        raise Busy(path=show(path), reason="it is being worked on")
    mount.busy.add(path)
    try:
        terms = terms_for(mount.policy, path, round(mount.clock() * NANOSECONDS), mount.book.is_restless)
        before = await mount.with_layers(partial(mount.backend.on_disk, path=path))
        plan = await mount.with_layers(partial(mount.backend.resync, path=path, terms=terms))
        try:
            await check_space(mount, path)
            async with room_for(mount, plan):
                await shadow(mount, plan, None, by_hand=True)  # what is complete is kept true at any time
                marked = await complete(mount, plan)
        except BaseException:
            mount.unsettled = True  # it may be no mark any more, or in line in part
            raise
        finally:
            await mount.run(mount.backend.abandon, plan)
    finally:
        mount.busy.discard(path)
    (directory,) = plan.directories
    if before.provenance is None or not before.provenance.matches_stamps(directory.listing.stamps):
        mount.unsettled = True
    if path not in marked:
        return False
    now, entries = mount.clock(), plan.entries
    mount.book.move(
        path, State.COMPLETE, now=now, entries=entries, marked_at=now, last_checked=now, retry_at=None, regardless=True
    )
    mount.log.info("resynced", path=show(path), entries=entries)
    return True


def _settle(mount: Mounted, path: bytes, state: State, error: PromoterdError, retry_at: float) -> None:
    """The state that an attempt ended in, known also where it cannot be written down: raises LedgerError afterwards."""
    record = mount.book.get(path)
    if record is not None and record.state in MARKED:  # begun in place: the recheck goes on with it
        mount.upper_ledger.finish(path)
        return
    attempts = (record.attempts if record is not None else 0) + 1
    reason = str(error.fields.get("reason") or error.message)
    mount.book.move(
        path, state, now=mount.clock(), reason=reason, attempts=attempts, retry_at=retry_at, regardless=True
    )
    mount.upper_ledger.finish(path)


def _backoff(mount: Mounted, path: bytes) -> float:
    record = mount.book.get(path)
    return float(min(RETRY_MOST, RETRY_FIRST * 2 ** (record.attempts if record is not None else 0)))


async def _gone(mount: Mounted, path: bytes, error: OSError) -> Promotion | None:
    """What came of a directory that was deleted before it could be promoted; None where it is there, or nobody knows.

    Raises MountGone.
    """
    record = mount.book.get(path)
    if error.errno not in _ABSENT or (record is not None and record.state in MARKED):
        return None
    try:
        if await mount.with_layers(lambda layers: beneath.exists_beneath(layers.root, path)):
            return None
    except OSError:
        return None
    reason = "it is gone"
    mount.book.forget([path], reason=reason)
    mount.upper_ledger.finish(path)
    return Promotion(path, Outcome.GONE, reason=reason)


def _failed(mount: Mounted, path: bytes, error: Exception) -> Promotion:
    """A failure is tried again: a server may recover, and a full upper layer be cleared."""
    full = isinstance(error, OSError) and error.errno in FULL
    what = f"{mount.shadows_file_system} is full" if full else str(error)
    failure = Busy(path=show(path), reason=what)
    _settle(mount, path, State.FAILED, failure, mount.clock() + _backoff(mount, path))
    mount.log.warning("promotion_failed", path=show(path), reason=what)
    return Promotion(path, Outcome.FAILED, reason=what, hint=failure.hint)
