"""A marked upper directory as an application reads it back, against what upper holds."""

import os
import stat
from collections.abc import Sequence

from promoterd.overlay import beneath
from promoterd.overlay.listing import Layers
from promoterd.paths import display, join, show

_SAMPLE = 8
"""How many entries of a newly active directory are read back, besides its listing."""


def read_back(layers: Layers, path: bytes) -> str | None:
    """What is wrong with a marked directory as an application sees it; None where nothing is.

    Its listing against the upper layer's, and the attributes of a few of its entries: a cold stat of every one would
    ask the server for each.
    """
    try:
        expected = {name for name, entry in layers.list_upper(path).items() if not entry.whiteout}
        seen = set(layers.list_merged(path))
        if seen != expected:
            names = sorted(seen ^ expected)[:3]
            return f"its listing differs in {', '.join(display(os.fsencode(name)) for name in names)}"
        return _sample_back(layers, path, sorted(seen))
    except OSError as error:
        return str(error)


def _sample_back(layers: Layers, path: bytes, names: Sequence[str]) -> str | None:
    with beneath.opened(layers.root, path) as merged, beneath.opened(layers.upper, path) as upper:
        for name in names[:: max(1, len(names) // _SAMPLE)]:
            ours = os.stat(name, dir_fd=upper, follow_symlinks=False)
            seen = os.stat(name, dir_fd=merged, follow_symlinks=False)
            if (stat.S_IFMT(ours.st_mode), ours.st_size) != (stat.S_IFMT(seen.st_mode), seen.st_size) and (
                not stat.S_ISDIR(seen.st_mode)
            ):
                return f"{show(join(path, os.fsencode(name)))} has another type or size than its shadow"
    return None
