"""What is in the halves of a metadata layer, found by walking them."""

import os
from collections.abc import Iterator

from promoterd.backends.layer.home import layer_xattr
from promoterd.overlay import beneath, xattrs
from promoterd.overlay.listing import Layers
from promoterd.paths import join


def marked_in_layer(layers: Layers, path: bytes = b"") -> list[bytes]:
    """Directories at ``path`` and below that are complete or open, parents first. Raises OSError."""
    found = directories_in(layers.metadata[1], path)
    return [directory for directory in found if layer_xattr(layers, directory, xattrs.PROVENANCE) is not None]


def names_in(half: int, path: bytes) -> list[str]:
    """The names of one half's directory; none where there is none."""
    try:
        with beneath.opened(half, path, beneath.READ_DIRECTORY) as directory:
            return os.listdir(directory)
    except (FileNotFoundError, NotADirectoryError):
        return []


def directories_in(half: int, path: bytes) -> Iterator[bytes]:
    """Every directory of one half at ``path`` and below, parents first."""
    waiting = [path]
    while waiting:
        directory = waiting.pop()
        try:
            with beneath.opened(half, directory, beneath.READ_DIRECTORY) as opened:
                if directory:
                    yield directory
                with os.scandir(opened) as found:
                    waiting.extend(
                        join(directory, os.fsencode(item.name)) for item in found if item.is_dir(follow_symlinks=False)
                    )
        except (FileNotFoundError, NotADirectoryError):
            continue
