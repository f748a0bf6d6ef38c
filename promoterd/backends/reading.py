"""A marked directory as an application reads it back, against what its layers hold."""

import os
import stat
from collections.abc import Mapping

from promoterd.overlay import beneath
from promoterd.overlay.listing import Layers
from promoterd.paths import display, join, show

_SAMPLE = 8
"""How many entries of a newly active directory are read back, besides its listing."""


def read_back(layers: Layers, path: bytes) -> str | None:
    """What is wrong with a marked directory of upper as an application sees it; None where nothing is."""
    try:
        visible = {name for name, entry in layers.list_upper(path).items() if not entry.whiteout}
        return compare(layers, path, visible, dict.fromkeys(visible, layers.upper))
    except OSError as error:
        return str(error)


def compare(layers: Layers, path: bytes, expected: set[str], shadows: Mapping[str, int]) -> str | None:
    """How a directory, as an application sees it, differs from what is expected; None where it does not.

    ``shadows``: the roots of the layers that have our entries. The attributes of a few of these are compared as well: a
    cold stat of every one might ask the server for each. Raises OSError.
    """
    seen = set(layers.list_merged(path))
    if seen != expected:
        names = sorted(seen ^ expected)[:3]
        return f"its listing differs in {', '.join(display(os.fsencode(name)) for name in names)}"
    with beneath.opened(layers.root, path) as merged:
        for name in sorted(shadows)[:: max(1, len(shadows) // _SAMPLE)]:
            with beneath.opened(shadows[name], path) as directory:
                ours = os.stat(name, dir_fd=directory, follow_symlinks=False)
            there = os.stat(name, dir_fd=merged, follow_symlinks=False)
            if _content(ours) != _content(there) and not stat.S_ISDIR(there.st_mode):
                return f"{show(join(path, os.fsencode(name)))} has another type or size than its shadow"
    return None


def _content(status: os.stat_result) -> tuple[int, int]:
    return stat.S_IFMT(status.st_mode), status.st_size
