"""What the layer asks of the server for one directory, besides its listing."""

import errno
import os

from promoterd.backends.layer import entries
from promoterd.overlay import beneath, syscalls, xattrs
from promoterd.overlay.attributes import Attributes
from promoterd.overlay.listing import Layers
from promoterd.pacing import owe


def lower_attributes(
    layers: Layers, path: bytes, *, with_xattrs: bool = True, force_sync: bool = True
) -> tuple[Attributes, entries.Xattrs]:
    """What the topmost lower directory at ``path`` is; without ``force_sync`` as the client knows it.

    Raises FileNotFoundError where there is none, OSError.
    """
    contributing = layers.contributing(path)
    if not contributing:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), os.fsdecode(path))
    owe(1 + with_xattrs)
    with beneath.opened(layers.lowers[contributing[0]], path) as lower:
        if force_sync:
            syscalls.statx(lower, force_sync=True)
        extra = entries.read_xattrs(xattrs.descriptor(lower)) if with_xattrs else ()
        return Attributes.of(os.fstat(lower)), extra
