"""Who holds what must not change its identity while it is held.

An overlay inode that somebody watches outlives its dentry, and keeps the lower file that it was made of. A file that
upper has changed is found by its upper inode: with another lower file below it, the kernel finds that the two do not
belong together, and answers ESTALE until the watch is gone (ovl_verify_inode, fs/overlayfs/inode.c).
"""

import os
import stat
from collections.abc import Iterator, Sequence

from promoterd.backends.base import Busy
from promoterd.overlay import watchers
from promoterd.overlay.listing import Layers
from promoterd.paths import join, show


def refuse_held(layers: Layers, paths: Sequence[bytes]) -> None:
    """Raise Busy where a file at or below ``paths`` that upper has changed is watched by another process."""
    changed = [found for path in paths for found in _changed_files(layers, path)]
    if not changed:
        return
    for path, pids in watchers.watched_by_others(layers.root, changed, directories=False).items():
        raise Busy(
            path=show(path),
            reason=f"process {', '.join(map(str, sorted(pids)))} watches it (inotify), and it was changed on this "
            "machine: it would answer ESTALE",
            hint="stop that process, then try again",
        )


def _changed_files(layers: Layers, path: bytes) -> Iterator[bytes]:
    waiting = [path]
    while waiting:
        directory = waiting.pop()
        for name, entry in layers.list_upper(directory).items():
            found = join(directory, os.fsencode(name))
            if stat.S_ISDIR(entry.mode):
                waiting.append(found)
            elif stat.S_ISREG(entry.mode):
                yield found
