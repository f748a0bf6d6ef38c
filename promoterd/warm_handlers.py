"""What the daemon answers about heat lists."""

from dataclasses import asdict
from typing import Any, Final

from promoterd.control import Progress, Request
from promoterd.holding import budget_hold
from promoterd.keeper import Keeper
from promoterd.mounted import Mounted
from promoterd.warming import Warmed, Warmth, warm
from promoterd.worker import Worker

WARM_FOR: Final = 1.0
"""Seconds in which a request to warm directories begins with new ones: so soon does a client that was ended stop it."""


async def warm_some(mount: Mounted, worker: Worker | None, request: Request, progress: Progress) -> dict[str, Any]:
    """Promote directories, in their order, for a while; those that were done with. Raises TripWire, MountGone."""
    done: list[Warmed] = []

    def tell(warmed: Warmed) -> None:
        done.append(warmed)
        progress({"done": len(done), "of": len(request.directories)})

    await warm(mount, request.directories, tell, seconds=WARM_FOR, dry_run=request.dry_run)
    if worker is not None and any(one.warmth is Warmth.COMPLETE for one in done):
        worker.activation_wanted()
    hold = budget_hold(mount, mount.clock())
    return {"directories": [asdict(one) for one in done], "waits": None if hold is None else hold.text}


def heat_of(keeper: Keeper) -> dict[str, Any]:
    """The heat of one mount that is in work; what has cooled to next to nothing is left out."""
    assert keeper.mount is not None  # noqa: S101 - it is in work
    assert keeper.worker is not None  # noqa: S101
    tracker, now = keeper.worker.tracker, keeper.mount.clock()
    directories = []
    for path, _ in tracker.hottest(len(tracker), now):
        kinds = {kind: count for kind, heat in tracker.kinds(path, now).items() if (count := round(heat))}
        if kinds:
            directories.append({"path": path, "uses": kinds})
    return {"mountpoint": keeper.policy.mountpoint_bytes, "directories": directories}
