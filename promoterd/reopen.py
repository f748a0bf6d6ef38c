"""Which directories a reopening takes with it, and whether it may happen while the mount is live (R5, R6)."""

from collections.abc import Sequence

from promoterd.backends.base import Busy
from promoterd.errors import Deferred, Refused
from promoterd.mounted import Mounted
from promoterd.overlay import mounts
from promoterd.paths import ancestors, show
from promoterd.queueing import overlaps
from promoterd.states import MARKED


async def reopen(mount: Mounted, *paths: bytes) -> list[bytes]:
    """Reopen directories with their complete ancestors, top-down, or nothing; returns what is merged again.

    Raises Refused for a directory without a mark of ours or in whose tree a promotion is under way, Deferred where it
    cannot be done live, and MountGone.
    """
    for path in paths:
        if not mount.book.is_marked(path):
            raise Refused(path=show(path), reason="it is not complete", hint="`promoterd explain` tells its state")
    async with mount.changing:
        return await _reopen(mount, paths)


async def _reopen(mount: Mounted, paths: Sequence[bytes]) -> list[bytes]:
    wanted = {directory for path in paths for directory in (*ancestors(path), path)}
    chain = sorted(directory for directory in wanted if mount.book.is_marked(directory))
    if not chain:
        return []
    first = show(paths[0])
    if any(overlaps(directory, mount.busy) for directory in chain):
        raise Refused(path=first, reason="a promotion is under way there", hint="try again when that is done")
    overlay = await mount.run(mounts.overlay_at, mount.overlay.mountpoint)
    unsafe = None if overlay.read_only else why_not_live(mount, chain)
    if unsafe is not None:
        raise Deferred(path=first, reason=unsafe)
    mount.log.info("reopening", path=first, directories=len(chain))
    mount.busy.update(chain)
    try:
        with mount.ledger.transaction():
            for path in paths:
                mount.upper_ledger.begin(path, "reopen", "unmark", mount.clock())
        await _undo(mount, paths, chain, 0.0 if overlay.read_only else mount.policy.quiet_period)
    finally:
        mount.busy.difference_update(chain)
    mount.upper_ledger.undefer(*chain)
    mount.book.forget(chain, reason="reopened")
    mount.follow(chain)
    mount.metrics.reopened("live")
    return chain


async def _undo(mount: Mounted, paths: Sequence[bytes], chain: Sequence[bytes], quiet: float) -> None:
    """Unmark. What is broken off in the middle stays in the journal, for the next start."""
    await mount.quiet(chain)
    try:
        await mount.run(mount.backend.reopen, chain, quiet=quiet)
    except (Busy, Refused) as error:
        mount.upper_ledger.finish(*paths)
        if isinstance(error, Refused):
            raise
        mount.metrics.reopened("deferred")
        raise Deferred(path=show(paths[0]), reason=str(error.fields["reason"])) from error
    finally:
        await mount.hear(chain)
    mount.upper_ledger.finish(*paths)


async def reopen_wanted(mount: Mounted, *paths: bytes) -> list[bytes]:
    """As :func:`reopen`; what cannot be done live is noted, to be done when it can."""
    try:
        reopened = await reopen(mount, *paths)
    except Deferred as deferred:
        reason = str(deferred.fields.get("reason", deferred.message))
        for path in paths:
            mount.upper_ledger.defer(path, reason, mount.clock())
        raise
    return reopened


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


async def reopen_all(mount: Mounted) -> tuple[list[bytes], list[tuple[bytes, str]]]:
    """Reopen everything that can be reopened live, top-down; the rest is deferred, with the reason for each."""
    return await _reopen_those(mount, [record.path for record in mount.book.in_states(MARKED)])


async def reopen_deferred(mount: Mounted) -> None:
    """Do what had to wait, now that nobody can write."""
    waiting = [deferred.path for deferred in mount.upper_ledger.deferred()]
    mount.upper_ledger.undefer(*(path for path in waiting if not mount.book.is_marked(path)))
    await _reopen_those(mount, waiting)


async def _reopen_those(mount: Mounted, paths: Sequence[bytes]) -> tuple[list[bytes], list[tuple[bytes, str]]]:
    done: list[bytes] = []
    waiting: list[tuple[bytes, str]] = []
    for path in paths:
        if not mount.book.is_marked(path):
            continue
        try:
            done.extend(await reopen_wanted(mount, path))
        except (Deferred, Refused) as error:
            waiting.append((path, str(error.fields.get("reason", error.message))))
    return done, waiting
