"""Which directories a reopening takes with it, and whether it may happen while the mount is live (R5, R6)."""

import asyncio
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial

from promoterd.backends.base import Busy
from promoterd.backends.quiet import QuietPeriod
from promoterd.errors import Deferred, Interrupted, MountGone, PromoterdError, Refused
from promoterd.mounted import Mounted
from promoterd.overlay import mounts
from promoterd.paths import ancestors, is_below, show
from promoterd.queueing import overlaps
from promoterd.states import MARKED, State

Waiting = list[tuple[bytes, str]]
"""Directories that are not reopened now, each with the reason."""
_PATIENCE = 30.0
"""Seconds that promotions have to stop after a pause."""
_LOOK = 0.25


async def reopen(mount: Mounted, *paths: bytes) -> list[bytes]:
    """Reopen directories with their complete ancestors, top-down, or nothing; returns what is merged again.

    Raises Refused for a directory without a mark of ours or in whose tree a promotion is under way, Deferred where it
    cannot be done live, and MountGone.
    """
    for path in paths:
        if not mount.book.is_marked(path):
            raise Refused(path=show(path), reason="it is not complete", hint="`promoterd explain` tells its state")
    async with mount.changing:
        chain = _chain(mount, paths)
        if not chain:
            return []
        writable = await _is_writable(mount)
        _check_possible(mount, paths[0], chain, writable=writable)
        async with _quiet(mount, chain, writable=writable) as period:
            await _undo(mount, paths, chain, period)
    return chain


async def reopen_wanted(mount: Mounted, *paths: bytes) -> list[bytes]:
    """As :func:`reopen`; what cannot be done live is noted, to be done when it can."""
    try:
        return await reopen(mount, *paths)
    except Deferred as deferred:
        for path in paths:
            _note(mount, path, deferred)
        raise


async def reopen_all(mount: Mounted) -> tuple[list[bytes], Waiting]:
    """Reopen everything that can be reopened live, top-down; the rest is noted, with the reason for each.

    On a paused mount the promotions that are under way come to their end before, so that none marks afterwards. Raises
    Interrupted where the work on the mount ends, and MountGone.
    """
    async with mount.changing:
        waiting = [] if mount.paused is None else await _end_promotions(mount)
        done, others = await _reopen_each(mount, [record.path for record in mount.book.in_states(MARKED)])
        return done, sorted({**dict(waiting), **dict(others)}.items())


async def reopen_deferred(mount: Mounted) -> None:
    """Do what had to wait, now that nobody can write."""
    async with mount.changing:
        waiting = [deferred.path for deferred in mount.upper_ledger.deferred()]
        mount.upper_ledger.undefer(*(path for path in waiting if not mount.book.is_marked(path)))
        await _reopen_each(mount, waiting)


def why_not_live(mount: Mounted, chain: Sequence[bytes]) -> str | None:
    """Why these directories must not be reopened under a writable mount; None where policy says that nobody writes."""
    for directory in chain:
        rule = mount.policy.rule_for(directory)
        if rule is None or rule.writers != "none":
            return (
                f"somebody may write in {show(directory)} meanwhile: its rule does not say `writers: none`, "
                "and the overlay is not mounted read-only"
            )
    return None


async def _end_promotions(mount: Mounted) -> Waiting:
    """Wait until none is under way; those that do not stop in time are noted, for they may mark later."""
    with suppress(TimeoutError):
        async with asyncio.timeout(_PATIENCE):
            while mount.busy:  # noqa: ASYNC110 - nothing tells it, and it is rare
                await asyncio.sleep(0.05)
    if not mount.busy:
        return []
    late = mount.busy.union(record.path for record in mount.book.in_states({State.SHADOWING}))
    return [(path, _note(mount, path, _promotion_under_way(path))) for path in sorted(late)]


async def _reopen_each(mount: Mounted, paths: Collection[bytes]) -> tuple[list[bytes], Waiting]:
    """Each by itself, given top-down, after one quiet period for all: one that has to wait holds up those below it."""
    done: list[bytes] = []
    writable = await _is_writable(mount)
    possible, waiting = _sort_out(mount, paths, writable=writable)
    if not possible:
        return done, list(waiting.items())
    async with _quiet(mount, _chain(mount, possible), writable=writable) as period:
        for path in possible:
            chain = _chain(mount, [path])
            if path not in chain:  # its mark went meanwhile
                continue
            if mount.stopping:
                raise Interrupted(what=f"the work on {mount.name} ends", hint="the same command goes on from here")
            try:
                _check_above(path, chain, waiting)
                await _undo(mount, [path], chain, period)
            except (Deferred, Refused) as error:
                waiting[path] = _note(mount, path, error)
            else:
                done.extend(chain)
    return done, list(waiting.items())


def _sort_out(mount: Mounted, paths: Collection[bytes], *, writable: bool) -> tuple[list[bytes], dict[bytes, str]]:
    """Those of the complete directories that can be reopened, as far as is known; and the others, noted."""
    possible: list[bytes] = []
    waiting: dict[bytes, str] = {}
    for path in filter(mount.book.is_marked, paths):
        try:
            _check_possible(mount, path, _chain(mount, [path]), writable=writable)
        except (Deferred, Refused) as error:
            waiting[path] = _note(mount, path, error)
        else:
            possible.append(path)
    return possible, waiting


def _chain(mount: Mounted, paths: Collection[bytes]) -> list[bytes]:
    """The directories with what has to be reopened with them, top-down: their complete ancestors, or descendants."""
    if mount.backend.reopens_live:
        marked = (record.path for record in mount.book.in_states(MARKED))
        return [directory for directory in marked if any(is_below(directory, path) for path in paths)]
    wanted = {directory for path in paths for directory in (*ancestors(path), path)}
    return sorted(directory for directory in wanted if mount.book.is_marked(directory))


async def _is_writable(mount: Mounted) -> bool:
    """Whether anybody may write to what is to be reopened, where that matters."""
    if mount.backend.reopens_live:
        return False
    overlay = await mount.run(mounts.overlay_at, mount.overlay.mountpoint)
    return not overlay.read_only


def _check_possible(mount: Mounted, path: bytes, chain: Sequence[bytes], *, writable: bool) -> None:
    """Raise Refused or Deferred."""
    if any(overlaps(directory, mount.busy) for directory in chain):
        raise _promotion_under_way(path)
    unsafe = why_not_live(mount, chain) if writable else None
    if unsafe is not None:
        raise Deferred(path=show(path), reason=unsafe)


def _check_above(path: bytes, chain: Sequence[bytes], waiting: Mapping[bytes, str]) -> None:
    """Raise Deferred where one above it has to wait (R5)."""
    for directory in chain:
        if directory in waiting:
            raise Deferred(path=show(path), reason=f"{show(directory)} stays complete: {waiting[directory]}")


def _other_hint(error: Busy) -> str | None:
    """What the backend says can be done, if it is more than that it is tried again."""
    return None if error.hint == Busy.default_hint else error.hint


def _promotion_under_way(path: bytes) -> Refused:
    return Refused(path=show(path), reason="a promotion is under way there", hint="try again when that is done")


def _note(mount: Mounted, path: bytes, error: PromoterdError) -> str:
    """What has to wait is done when nobody can write; returns the reason."""
    reason = str(error.fields.get("reason", error.message))
    mount.upper_ledger.defer(path, reason, mount.clock())
    return reason


@asynccontextmanager
async def _quiet(mount: Mounted, directories: Sequence[bytes], *, writable: bool) -> AsyncIterator[QuietPeriod]:
    """Enter when it was quiet there for as long as policy says, with nothing of the overlay held meanwhile (R16).

    Raises MountGone where the work on the mount ends meanwhile.
    """
    seconds = mount.policy.quiet_period if writable else 0.0
    mount.log.info("reopening", path=show(directories[0]), directories=len(directories))
    period = QuietPeriod(mount.overlay, directories, seconds)
    mount.busy.update(directories)
    quieted = _with_renewed(mount, directories)
    try:
        await mount.quiet(quieted)
        if not mount.backend.reopens_live:
            await mount.run(period.begin)
        await _wait(mount, seconds)
        await mount.with_layers(lambda _: None)  # raises MountGone where that has not been noticed yet
        _check_not_stopping(mount)
        yield period
    finally:
        period.close()
        try:
            if not mount.stopping:
                await mount.hear(quieted)
        finally:
            mount.busy.difference_update(directories)


def _with_renewed(mount: Mounted, directories: Sequence[bytes]) -> list[bytes]:
    """The directories, and where they leave a layer, those above and below them: all get other inodes."""
    if not mount.backend.reopens_live:
        return list(directories)
    above = {ancestor for directory in directories for ancestor in ancestors(directory)}
    below = {heard for heard in mount.to_be_heard() if any(is_below(heard, directory) for directory in directories)}
    renewed = sorted({*directories, *above, *below})
    mount.renew(renewed)
    return renewed


async def _wait(mount: Mounted, seconds: float) -> None:
    """Not in the pool: a call that takes so long would look like a server that does not answer."""
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds
    while (left := end - loop.time()) > 0:
        _check_not_stopping(mount)
        await asyncio.sleep(min(left, _LOOK))


def _check_not_stopping(mount: Mounted) -> None:
    if mount.stopping:
        raise MountGone(mountpoint=mount.name)


async def _undo(mount: Mounted, paths: Sequence[bytes], chain: Sequence[bytes], period: QuietPeriod) -> None:
    """Unmark. What is broken off in the middle stays in the journal, for the next start."""
    with mount.ledger.transaction():
        for path in paths:
            mount.upper_ledger.begin(path, "reopen", "unmark", mount.clock())
    try:
        await mount.run(mount.backend.reopen, chain, check_quiet=partial(period.check, chain))
    except Refused:
        mount.upper_ledger.finish(*paths)
        raise
    except Busy as error:
        mount.upper_ledger.finish(*paths)
        mount.metrics.reopened("deferred")
        raise Deferred(path=show(paths[0]), reason=str(error.fields["reason"]), hint=_other_hint(error)) from error
    mount.upper_ledger.finish(*paths)
    mount.upper_ledger.undefer(*chain)
    mount.book.forget(chain, reason="reopened")
    if not mount.backend.reopens_live:  # else nothing of it is left
        mount.follow(chain)
    if mount.backend.held or mount.backend.reopens_live:
        mount.unsettled = True  # who holds what was taken out keeps it for everybody
    mount.metrics.reopened("live")
