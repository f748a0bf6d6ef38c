"""What the overlay shows of a directory of the layer: whether its mark is in effect, and whether it reads back right.

That a mark took effect is proven in two steps (R13). A child that the overlay shows from elsewhere disproves it: a file
has the inode number of the layer that it comes from (ovl_map_dev_ino, fs/overlayfs/inode.c, without xino). The other
way round that is no proof, since the layer's files are shown before the mark as well. But a directory's own number is
drawn when its overlay inode is made, and with the mark on disk before that, another number means that it was read.
"""

import os
from itertools import islice

from promoterd.backends.reading import compare
from promoterd.overlay import beneath
from promoterd.overlay.listing import Layers, opened_to_read

_SAMPLE = 8


def disproven(layers: Layers, path: bytes) -> bool:
    """Whether the overlay shows a child of the directory that does not come from the layer. Raises OSError."""
    above = layers.list_upper(path)
    with beneath.opened(layers.root, path) as merged:
        for half in layers.metadata:
            with opened_to_read(half, path) as directory, os.scandir(directory) as found:
                files = (item for item in found if not item.is_dir(follow_symlinks=False) and item.name not in above)
                for item in islice(files, _SAMPLE):
                    try:
                        seen = os.stat(item.name, dir_fd=merged, follow_symlinks=False)
                    except FileNotFoundError:
                        return True
                    if seen.st_ino != item.inode():
                        return True
    return False


def read_back(layers: Layers, path: bytes) -> str | None:
    """What is wrong with a directory in effect as an application sees it; None where nothing is."""
    try:
        above = layers.list_upper(path)
        expected = {name for name, entry in above.items() if not entry.whiteout}
        own: dict[str, int] = {}
        for half in reversed(layers.metadata):
            with opened_to_read(half, path) as directory:
                own.update((name, half) for name in os.listdir(directory) if name not in above)
        return compare(layers, path, expected | own.keys(), own)
    except OSError as error:
        return str(error)
