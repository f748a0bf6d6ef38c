"""What keeps a whole mount from promoting anything by itself for now: hours, a budget, or what is complete already."""

import os
from dataclasses import dataclass
from enum import StrEnum
from time import localtime, strftime

from promoterd.backends.base import Busy, Plan
from promoterd.mounted import Mounted
from promoterd.paths import show
from promoterd.policy import windows

Size = tuple[int, int]
"""Entries and directories."""


class Reason(StrEnum):
    """Why promotion is held."""

    MAINTENANCE = "maintenance"
    BUDGET = "budget"
    ENTRIES = "entries"
    INODES = "inodes"


@dataclass(frozen=True, slots=True)
class Hold:
    """What holds promotion, in words, and when it will not any more, where that is known."""

    reason: Reason
    text: str
    until: float | None = None


async def look(mount: Mounted) -> Hold | None:
    """What holds promotion on this mount, None where nothing does; a change is logged and shown. Raises OSError."""
    now = mount.clock()
    hold = _hours(mount, now) or budget_hold(mount, now) or _taken(mount, await _inodes(mount))
    before, mount.hold = mount.hold, hold
    mount.metrics.pace.held(None if hold is None else hold.reason.value)
    if hold is not None and (before is None or before.reason is not hold.reason):
        mount.log.info("promotion_held", reason=hold.text)
    elif hold is None and before is not None:
        mount.log.info("promotion_goes_on", reason=f"over: {before.text}")
    return hold


def check_hours(mount: Mounted, path: bytes) -> None:
    """Raise Busy where the maintenance window has closed in the middle of a promotion."""
    hold = _hours(mount, mount.clock())
    if hold is not None:
        assert hold.until is not None  # noqa: S101 - windows open again
        raise Busy(path=show(path), reason=hold.text, wait=hold.until - mount.clock())


async def take_room(mount: Mounted, plan: Plan) -> None:
    """Reserve room for a plan, until its promotion ends.

    Raises Busy where complete directories would have more than policy allows with it, and all others; OSError.
    """
    inodes = await _inodes(mount)
    entries, directories = plan.entries, len(plan.directories)
    others = (sum(one) for one in zip((0, 0), *mount.taking.values(), strict=True))
    hold = _taken(mount, inodes, (entries, directories), tuple(others))
    if hold is not None:
        hint = "raise the limit, or `promoterd reopen` what is not needed"
        raise Busy(path=show(plan.path), reason=hold.text, hint=hint)
    mount.taking[plan.path] = (entries, directories)


def wait_for_budget(mount: Mounted, now: float) -> float:
    """For how many seconds there is nothing left of the budget."""
    hold = budget_hold(mount, now)
    return 0.0 if hold is None or hold.until is None else max(0.0, hold.until - now)


def _hours(mount: Mounted, now: float) -> Hold | None:
    allowed = mount.policy.maintenance
    if not allowed or windows.is_open(allowed, now):
        return None
    opens = windows.next_opening(allowed, now)
    return Hold(Reason.MAINTENANCE, f"it waits for the maintenance window, from {_clock(opens, now)}", opens)


def budget_hold(mount: Mounted, now: float) -> Hold | None:
    """The budget of requests, where nothing of it is left."""
    account = mount.account(now)
    if account is None or account.left(now) > 0:
        return None
    until = account.more_at(now)
    return Hold(Reason.BUDGET, f"limits.request_budget is used up until {_clock(until, now)}", until)


async def _inodes(mount: Mounted) -> int:
    """All inodes of the shadows' file system; 0 where their number is not fixed. Raises OSError."""
    return (await mount.run(os.statvfs, mount.backend.place)).f_files if mount.backend.marks else 0


def _taken(mount: Mounted, inodes: int, more: Size = (0, 0), under_way: Size = (0, 0)) -> Hold | None:
    """Whether complete directories, with so much more, have more than they may; without any, as much as they may."""
    if not mount.backend.marks:
        return None
    marked, entries = mount.book.completed()
    limits, room = mount.policy.limits, 1 if more == (0, 0) else 0
    most = limits.max_promoted_entries
    total = entries + under_way[0]
    if most is not None and total + more[0] + room > most:
        return Hold(Reason.ENTRIES, f"limits.max_promoted_entries = {most}: {_sum(total, more[0], 'entries')}")
    total += marked + under_way[1]
    allowed = limits.max_inodes.of(inodes)
    if inodes and total + sum(more) + room > allowed:
        return Hold(Reason.INODES, f"limits.max_inodes = {allowed}: {_sum(total, sum(more), 'inodes')}")
    return None


def _sum(total: int, more: int, what: str) -> str:
    """What there is, and what would come to it."""
    return f"complete directories have {total} {what}" + (f", and this one would bring {more} more" if more else "")


def _clock(moment: float, now: float) -> str:
    """The hour, with the day where it is not today."""
    there, here = localtime(moment), localtime(now)
    return strftime("%H:%M" if there[:3] == here[:3] else "%a %H:%M", there)
