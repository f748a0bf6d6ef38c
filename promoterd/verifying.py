"""Finding files that the server rewrote in place, which leaves the directory that they are in as it was (R8)."""

import os
import stat
from collections.abc import Sequence
from functools import partial

from promoterd.mounted import Mounted
from promoterd.overlay import beneath, syscalls
from promoterd.overlay.listing import Layers
from promoterd.overlay.shadows import completion_of, is_unmodified_shadow

_BATCH = 256


async def rewritten(mount: Mounted, path: bytes) -> str | None:
    """The first file of a complete directory whose size or time on the server is not that of our shadow, if any.

    One request to the server for each file, held back by the mount's throttle. Raises OSError, MountGone.
    """
    names = await mount.with_layers(partial(_shadows, path))
    for start in range(0, len(names), _BATCH):
        batch = names[start : start + _BATCH]
        mount.metrics.throttled(await mount.throttle.take(len(batch)))
        found = await mount.with_layers(partial(_first_rewritten, path, batch))
        if found is not None:
            return found
    return None


def _shadows(path: bytes, layers: Layers) -> list[str]:
    """The files of which upper holds nothing but a copy of lower's attributes."""
    completion = completion_of(layers, path)
    with beneath.opened(layers.upper, path) as upper:
        return [
            name
            for name, entry in layers.list_upper(path).items()
            if stat.S_ISREG(entry.mode) and is_unmodified_shadow(upper, name, entry, completion)
        ]


def _first_rewritten(path: bytes, names: Sequence[str], layers: Layers) -> str | None:
    for index in layers.contributing(path):
        with beneath.opened(layers.upper, path) as upper, beneath.opened(layers.lowers[index], path) as lower:
            for name in names:
                try:
                    now = syscalls.statx(lower, name, force_sync=True)
                except FileNotFoundError:  # another layer's; one that is gone has changed the directory
                    continue
                shadow = os.stat(name, dir_fd=upper, follow_symlinks=False)
                if (now.size, now.mtime_ns) != (shadow.st_size, shadow.st_mtime_ns):
                    return name
    return None
