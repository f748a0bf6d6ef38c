"""Promotions that somebody asked for by hand."""

from promoterd.errors import Refused
from promoterd.heat.discovery import Walk
from promoterd.mounted import Mounted
from promoterd.overlay import beneath
from promoterd.paths import is_below, show
from promoterd.promotion import Outcome, Promotion, promote
from promoterd.shadowing import Progress
from promoterd.states import State
from promoterd.terms import why_forbidden


async def promote_wanted(
    mount: Mounted, path: bytes, *, recursive: bool, progress: Progress | None = None
) -> list[Promotion]:
    """Promote a directory now, whatever its heat; ``recursive``: or else the topmost ones below that policy allows.

    A directory that counted as growing because it kept changing is given another chance (R7). Raises UsageError where
    there is no such directory, Refused where there is nothing to promote, TripWire, MountGone.
    """
    await mount.with_layers(lambda layers: beneath.require_directory(layers.root, path))
    if mount.policy.may_promote(path) or not recursive:
        return [await promote_by_hand(mount, path, progress)]
    done: list[Promotion] = []
    batches = _walk(mount).batches(path)
    while (batch := await mount.run(next, batches, None)) is not None:
        for found in batch:
            if not mount.book.is_marked(found) and not any(is_below(found, other.path) for other in done):
                done.append(await _promote_if_free(mount, found, progress))
    if not done:
        raise Refused(
            path=show(path),
            reason="the policy allows no directory below it to be promoted, or all are complete already",
            hint="`promoterd check` prints the rules; the first that matches decides",
        )
    return done


async def _promote_if_free(mount: Mounted, path: bytes, progress: Progress | None) -> Promotion:
    try:
        return await promote_by_hand(mount, path, progress)
    except Refused as refused:
        return Promotion(path, Outcome.REFUSED, reason=refused.message, hint=refused.hint)


async def promote_by_hand(mount: Mounted, path: bytes, progress: Progress | None) -> Promotion:
    """Promote one directory now, whatever its heat, and however often that went wrong.

    Raises Refused where policy forbids it, it is complete already, or somebody works on it; TripWire, MountGone.
    """
    forbidden = why_forbidden(mount.policy.rule_for(path))
    if forbidden is not None:
        raise Refused(
            path=show(path), reason=forbidden, hint="`--recursive` promotes the directories below it that policy allows"
        )
    if mount.book.is_marked(path):
        raise Refused(path=show(path), reason=f"it is {mount.book.state(path).value} already")
    await mount.run(mount.upper_ledger.forget_stale, path)
    record = mount.book.get(path)
    if record is not None and record.state in (State.REFUSED, State.FAILED):
        mount.book.move(path, State.HOT, now=mount.clock(), attempts=0, retry_at=None)
    return await promote(mount, path, by_hand=True, progress=progress)


def _walk(mount: Mounted) -> Walk:
    overlay, policy = mount.overlay, mount.policy
    return Walk(
        overlay.walked,
        policy.may_promote,
        policy.may_promote_below,
        max_directories=policy.heat.max_directories,
        batch=64,
    )
