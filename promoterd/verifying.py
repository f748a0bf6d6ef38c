"""Finding files that the server rewrote in place, which leaves the directory that they are in as it was (R8)."""

import os
from collections.abc import Sequence
from functools import partial

from promoterd.mounted import Mounted
from promoterd.overlay import beneath, syscalls
from promoterd.overlay.listing import Layers

_BATCH = 256


async def rewritten(mount: Mounted, path: bytes) -> str | None:
    """The first file of a complete directory whose size or time on the server is not that of our shadow, if any.

    One request to the server for each file, held back by the mount's throttle. Raises OSError, MountGone.
    """
    names = await mount.with_layers(partial(mount.backend.checkable, path=path))
    for start in range(0, len(names), _BATCH):
        batch = names[start : start + _BATCH]
        mount.metrics.throttled(await mount.throttle.take(len(batch)))
        found = await mount.with_layers(partial(_first_rewritten, mount, path, batch))
        if found is not None:
            return found
    return None


def _first_rewritten(mount: Mounted, path: bytes, names: Sequence[str], layers: Layers) -> str | None:
    for index in layers.contributing(path):
        root = mount.backend.files_root(layers)
        with beneath.opened(root, path) as shadows, beneath.opened(layers.lowers[index], path) as lower:
            for name in names:
                try:
                    now = syscalls.statx(lower, name, force_sync=True)
                except FileNotFoundError:  # another layer's; one that is gone has changed the directory
                    continue
                shadow = os.stat(name, dir_fd=shadows, follow_symlinks=False)
                if (now.size, now.mtime_ns) != (shadow.st_size, shadow.st_mtime_ns) or (
                    mount.backend.holds_other_data(shadows, name, now.ctime_ns, now.ino)
                ):
                    return name
    return None
