"""Shadowing a plan, held back by the limits that policy sets."""

from collections.abc import Callable

from promoterd.backends.base import Busy, Plan
from promoterd.mounted import Mounted
from promoterd.paths import show

Progress = Callable[[int, int], None]
"""Called with the entries done so far and the entries in all."""


async def shadow(mount: Mounted, plan: Plan, progress: Progress | None) -> None:
    """Batch by batch, each held back by the throttle; what was read of files is paid for afterwards.

    Stops between two batches: raises TripWire where the mount is paused, and Busy where space runs out or work ends.
    """
    done = paid = 0
    steps = mount.backend.shadow(plan)
    while (size := await mount.run(next, steps, None)) is not None:
        mount.check_not_paused()
        await check_space(mount, plan.path)
        if mount.stopping:
            raise Busy(path=show(plan.path), reason="the daemon is stopping")
        mount.metrics.throttled(await mount.throttle.take(size + plan.data_cost - paid))
        paid = plan.data_cost
        done += size
        mount.metrics.copied(size)
        if progress is not None:
            progress(done, plan.entries)
    if plan.data_cost > paid:
        mount.metrics.throttled(await mount.throttle.take(plan.data_cost - paid))


async def check_space(mount: Mounted, path: bytes) -> None:
    """Raise Busy where the shadows' file system has less left than policy demands."""
    lack = await mount.run(mount.free_space_lack)
    if lack is not None:
        raise Busy(path=show(path), reason=lack, hint="free some space there, or lower the limit")
