"""Bringing stale directories in line with the server where they are, by a backend that can (R3, R4)."""

from collections.abc import Sequence

from promoterd.errors import MountGone, PromoterdError, Refused
from promoterd.mounted import Mounted
from promoterd.promotion import FULL, resync
from promoterd.states import State
from promoterd.terms import why_forbidden

STALE_A_DAY = 3
"""Changes in one day from which on a directory counts as growing (R7)."""
YOUNG = "the server is asked as well until what changed there is older than min_age"


async def resync_or_leave(mount: Mounted, paths: Sequence[bytes]) -> list[bytes]:
    """Bring in line what may be complete; returns the others, which have to be reopened. Raises MountGone."""
    others = []
    for path in paths:
        try:
            if await _may_not_be_complete(mount, path) or await mount.run(mount.free_space_lack) is not None:
                others.append(path)  # where there is no room to bring it in line, it must not stay as it is either
                continue
            done = await resync(mount, path)
        except Refused:
            others.append(path)
        except MountGone:
            raise
        except (PromoterdError, OSError) as error:
            if isinstance(error, OSError) and error.errno in FULL:
                others.append(path)
            _stays_stale(mount, path, f"not in line with the server yet: {error}")
        else:
            mount.rewritten.discard(path)
            if not done:
                _stays_stale(mount, path, YOUNG)
    return others


async def _may_not_be_complete(mount: Mounted, path: bytes) -> bool:
    if why_forbidden(mount.policy.rule_for(path)) is not None:
        return True
    return await mount.run(mount.upper_ledger.stale_count, path, mount.clock()) >= STALE_A_DAY


def _stays_stale(mount: Mounted, path: bytes, reason: str) -> None:
    now = mount.clock()
    mount.book.move(path, State.STALE, now=now, reason=reason, last_checked=now)
