"""Shadowing a plan, held back by the limits that policy sets."""

import asyncio
from collections.abc import Callable

from promoterd.backends.base import Busy, Plan
from promoterd.holding import check_hours, wait_for_budget
from promoterd.mounted import Mounted
from promoterd.paths import show

Progress = Callable[[int, int], None]
"""Called with the entries done so far and the entries in all."""


async def shadow(mount: Mounted, plan: Plan, progress: Progress | None, *, by_hand: bool = False) -> None:
    """Batch by batch, each held back by the throttle and the pace; what was read of files is paid for afterwards.

    Stops between two batches: raises TripWire where the mount is paused, and Busy where space runs out or work ends, or
    the hours in which policy allows it, unless somebody asked for it ``by_hand``.
    """
    done = paid = 0
    steps = mount.backend.shadow(plan)
    while (size := await mount.run(next, steps, None)) is not None:
        mount.check_not_paused()
        await check_space(mount, plan.path)
        if mount.stopping:
            raise Busy(path=show(plan.path), reason="the daemon is stopping")
        if not by_hand:
            await hold_back(mount, plan.path)
        mount.metrics.throttled(await mount.pace.settle())
        mount.metrics.throttled(await mount.throttle.take(size + plan.data_cost - paid))
        paid = plan.data_cost
        done += size
        mount.metrics.copied(size)
        if progress is not None:
            progress(done, plan.entries)
    if plan.data_cost > paid:
        mount.metrics.throttled(await mount.throttle.take(plan.data_cost - paid))


async def hold_back(mount: Mounted, path: bytes) -> None:
    """Wait for the budget of requests. Raises Busy where the maintenance window closes, or work ends; TripWire."""
    check_hours(mount, path)
    while (seconds := wait_for_budget(mount, mount.clock())) > 0:
        await asyncio.sleep(min(seconds, 1.0))
        check_hours(mount, path)
        mount.check_not_paused()
        if mount.stopping:
            raise Busy(path=show(path), reason="the daemon is stopping")


async def check_space(mount: Mounted, path: bytes) -> None:
    """Raise Busy where the shadows' file system has less left than policy demands."""
    lack = await mount.run(mount.free_space_lack)
    if lack is not None:
        raise Busy(path=show(path), reason=lack, hint="free some space there, or lower the limit")
