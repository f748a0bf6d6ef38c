"""The last step of a promotion or a resync: verified and marked, and what it means where that reads wrong."""

import errno

from promoterd.backends.base import Plan
from promoterd.errors import Refused
from promoterd.mounted import Mounted
from promoterd.overlay.listing import Layers
from promoterd.paths import show


async def complete(mount: Mounted, plan: Plan) -> list[bytes]:
    """Verify and mark. What reads wrong now was copied up by us: that trips the wire (R15)."""
    try:
        return await mount.run(mount.backend.complete, plan)
    except OSError as error:
        if error.errno not in (errno.EIO, errno.ESTALE):
            raise
        if error.errno == errno.ESTALE and await _has_changed(mount, plan):
            raise
        mount.trip(f"{error.strerror} in {show(plan.path)} when its shadows were verified")
        mount.check_not_paused()
        raise


async def _has_changed(mount: Mounted, plan: Plan) -> bool:
    """Whether the server has replaced, changed or deleted a directory of the plan since it was listed.

    A merged directory whose lower one was replaced answers ESTALE, and so does lower itself.
    """

    def changed(layers: Layers) -> bool:
        return any(
            layers.contributing(directory.path) != directory.layers
            or layers.stamps(directory.path, directory.layers) != directory.listing.stamps
            for directory in plan.directories
        )

    try:
        return await mount.with_layers(changed)
    except Refused:
        return True
    except OSError as error:
        return error.errno == errno.ESTALE
