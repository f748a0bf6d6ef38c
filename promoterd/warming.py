"""Promoting the directories of a heat list. What is complete is passed over: broken off, it goes on from there."""

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from functools import partial

from promoterd.errors import Refused
from promoterd.holding import wait_for_budget
from promoterd.mounted import Mounted
from promoterd.overlay import beneath
from promoterd.overlay.listing import Layers
from promoterd.promotion import Outcome, Promotion
from promoterd.queueing import is_due, overlaps
from promoterd.states import State
from promoterd.terms import why_forbidden
from promoterd.wanted import promote_by_hand

_LOOK_AGAIN = 0.05
"""Seconds between two looks whether somebody else's work on a directory has ended."""


class Warmth(StrEnum):
    """What came of one directory of a list."""

    COMPLETE = "complete"
    OBSERVED = "observed"
    PRIMED = "primed"
    ALREADY = "already"
    """It was complete before."""
    WOULD = "would"
    """It would be promoted: a dry run."""
    GONE = "gone"
    """There is no such directory any more."""
    FORBIDDEN = "forbidden"
    """Policy does not allow it."""
    REFUSED = "refused"
    FAILED = "failed"
    LEFT = "left"
    """The work was broken off before."""


FAILURES = frozenset({Warmth.REFUSED, Warmth.FAILED})
"""What may go well another time."""
_OF_OUTCOME = {
    Outcome.MARKED: Warmth.COMPLETE,
    Outcome.OBSERVED: Warmth.OBSERVED,
    Outcome.PRIMED: Warmth.PRIMED,
    Outcome.REFUSED: Warmth.REFUSED,
    Outcome.BUSY: Warmth.FAILED,
    Outcome.FAILED: Warmth.FAILED,
    Outcome.GONE: Warmth.GONE,
}


@dataclass(frozen=True, slots=True)
class Warmed:
    """One directory of a list, and what came of it; ``entries`` of all directories that were completed with it."""

    path: bytes
    warmth: Warmth
    reason: str | None = None
    entries: int = 0


async def warm(
    mount: Mounted,
    paths: Iterable[bytes],
    tell: Callable[[Warmed], None],
    *,
    seconds: float | None = None,
    dry_run: bool = False,
) -> None:
    """Promote directories in this order, as many at once as policy allows, and ``tell`` of each as it is done with.

    Nothing new is begun after so many ``seconds``, nor when the mount's work is to stop. Raises TripWire, MountGone.
    """
    deadline = None if seconds is None else time.monotonic() + seconds
    waiting = iter(paths)
    lanes = (_lane(mount, waiting, tell, deadline, dry_run=dry_run) for _ in range(mount.policy.limits.concurrency))
    for ended in await asyncio.gather(*lanes, return_exceptions=True):  # what is under way is not cut off
        if ended is not None:
            raise ended


async def _lane(
    mount: Mounted, waiting: Iterator[bytes], tell: Callable[[Warmed], None], deadline: float | None, *, dry_run: bool
) -> None:
    while not mount.stopping and (deadline is None or time.monotonic() < deadline):
        path = next(waiting, None)
        if path is None:
            return
        tell(await warm_one(mount, path, deadline=deadline, dry_run=dry_run))


async def warm_one(mount: Mounted, path: bytes, *, deadline: float | None = None, dry_run: bool = False) -> Warmed:
    """Promote one directory of a list, unless there is nothing to do.

    It is left where it would have to be waited for longer than till ``deadline``, on the monotonic clock: for somebody
    else's work on it, or for the budget of requests. Raises TripWire, MountGone.
    """
    judged = await judge(mount, path)
    if judged is not None:
        return judged
    if dry_run:
        return Warmed(path, Warmth.WOULD)
    while not (mount.stopping or mount.book.is_marked(path)):
        if overlaps(path, mount.busy) or wait_for_budget(mount, mount.clock()) > 0:
            mount.check_not_paused()
            if deadline is not None and time.monotonic() >= deadline:
                return Warmed(path, Warmth.LEFT)
            await asyncio.sleep(_LOOK_AGAIN)
            continue
        try:
            return _told(mount, await promote_by_hand(mount, path, None))
        except Refused as refused:  # somebody else was faster, and is at it now
            if not overlaps(path, mount.busy) and not mount.book.is_marked(path):
                return Warmed(path, Warmth.REFUSED, refused.message)
    return Warmed(path, Warmth.ALREADY if mount.book.is_marked(path) else Warmth.LEFT)


async def judge(mount: Mounted, path: bytes) -> Warmed | None:
    """What a directory is without any promotion; None where it is to be promoted. Raises MountGone."""
    forbidden = why_forbidden(mount.policy.rule_for(path))
    if forbidden is not None:
        return Warmed(path, Warmth.FORBIDDEN, forbidden)
    if is_warm(mount, path):
        return Warmed(path, Warmth.ALREADY)
    try:
        is_there = await mount.with_layers(partial(_is_there, path))
        await mount.pace.settle()
    except OSError as error:
        return Warmed(path, Warmth.FAILED, error.strerror)
    return None if is_there else Warmed(path, Warmth.GONE)


def is_warm(mount: Mounted, path: bytes) -> bool:
    """Whether a directory is complete, or was read just now where nothing is ever complete."""
    if mount.book.is_marked(path):
        return True
    record = mount.book.get(path)
    return record is not None and record.state is State.PRIMED and not is_due(record, mount.clock())


def _is_there(path: bytes, layers: Layers) -> bool:
    return beneath.exists_beneath(layers.root, path)


def _told(mount: Mounted, done: Promotion) -> Warmed:
    if mount.stopping and done.outcome is Outcome.BUSY:
        return Warmed(done.path, Warmth.LEFT)
    return Warmed(done.path, _OF_OUTCOME[done.outcome], done.reason, done.entries)
