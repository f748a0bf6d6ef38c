"""What is ours in an upper layer, found by walking it."""

import os
import stat

from promoterd.backends.base import Traces
from promoterd.overlay import xattrs
from promoterd.overlay.listing import Layers
from promoterd.paths import join


def marks_below(layers: Layers, path: bytes) -> list[bytes]:
    """Directories of the upper layer, ``path`` and below, that carry provenance of ours."""
    return traces_below(layers, path).marked


def traces_below(layers: Layers, path: bytes) -> Traces:
    """What is ours in the upper layer, at ``path`` and below. Raises OSError."""
    found = Traces([], [])
    waiting = [path]
    while waiting:
        directory = waiting.pop()
        if directory and layers.upper_xattr(directory, xattrs.PROVENANCE) is not None:
            found.marked.append(directory)
        if directory and layers.upper_xattr(directory, xattrs.ANCESTOR) is not None:
            found.followed.append(directory)
        waiting.extend(
            join(directory, os.fsencode(name))
            for name, entry in layers.list_upper(directory).items()
            if stat.S_ISDIR(entry.mode)
        )
    return found
