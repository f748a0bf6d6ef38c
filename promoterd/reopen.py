"""Which directories a reopening takes with it, and whether it may happen while the mount is live (R5, R6)."""

from collections.abc import Sequence

from promoterd.backends.base import Busy
from promoterd.errors import Deferred, Refused
from promoterd.mounted import Mounted
from promoterd.overlay import activation, mounts
from promoterd.paths import ancestors, show
from promoterd.states import State


async def reopen(mount: Mounted, path: bytes) -> list[bytes]:
    """Reopen a directory with its complete ancestors, top-down, or nothing; returns what is merged again.

    Raises Refused for a directory without a mark of ours, Deferred where it cannot be done live, and MountGone.
    """
    if not mount.book.is_marked(path):
        raise Refused(path=show(path), reason="it is not complete", hint="`promoterd explain` tells its state")
    chain = [ancestor for ancestor in ancestors(path) if mount.book.is_marked(ancestor)] + [path]
    overlay = await mount.run(mounts.overlay_at, mount.overlay.mountpoint)
    unsafe = None if overlay.read_only else why_not_live(mount, chain)
    if unsafe is not None:
        raise Deferred(path=show(path), reason=unsafe)
    mount.log.info("reopening", path=show(path), directories=len(chain))
    mount.upper_ledger.begin(path, "reopen", "unmark", mount.clock())
    await mount.quiet(chain)
    try:
        quiet = 0.0 if overlay.read_only else mount.policy.quiet_period
        await mount.run(mount.backend.reopen, chain, quiet=quiet)
    except Busy as busy:
        mount.metrics.reopened("deferred")
        raise Deferred(path=show(path), reason=str(busy.fields["reason"])) from busy
    finally:
        mount.upper_ledger.finish(path)
        await mount.hear(chain)
    mount.upper_ledger.undefer(*chain)
    mount.book.forget(chain, reason="reopened")
    mount.metrics.reopened("live")
    return chain


async def reopen_wanted(mount: Mounted, path: bytes) -> list[bytes]:
    """As :func:`reopen`, asked for by hand: what cannot be done live is noted, to be done when it can."""
    try:
        reopened = await reopen(mount, path)
    except Deferred as deferred:
        reason = str(deferred.fields.get("reason", deferred.message))
        await mount.run(mount.upper_ledger.defer, path, reason, mount.clock())
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
    done: list[bytes] = []
    deferred: list[tuple[bytes, str]] = []
    marked = mount.book.in_states({State.COMPLETE, State.ACTIVE, State.PINNED, State.STALE})
    for record in marked:
        if not mount.book.is_marked(record.path):
            continue
        try:
            done.extend(await reopen(mount, record.path))
        except Deferred as error:
            reason = str(error.fields["reason"])
            await mount.run(mount.upper_ledger.defer, record.path, reason, mount.clock())
            deferred.append((record.path, reason))
    if done:
        await mount.run(activation.reconfigure, mount.overlay)
    return done, deferred
