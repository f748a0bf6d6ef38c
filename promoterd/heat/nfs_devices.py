"""Which NFS file systems an overlay's layers lie on, and which other overlays lie on them, from the mount table alone.

No path is touched below a network file system, so that no server is asked, dead or alive.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from promoterd.heat.base import MountView
from promoterd.overlay.holding import mount_holding, mounts_holding
from promoterd.overlay.mountinfo import MountEntry, MountTree, is_at_or_below, read
from promoterd.overlay.mounts import read_overlays
from promoterd.overlay.nfs import FSTYPES
from promoterd.paths import join

_VERSION = re.compile(rb"(?:^|,)vers=(\d)")


Device: TypeAlias = tuple[tuple[int, int], int]
"""An NFS file system's device number, and the version of its protocol: 3 or 4."""


def devices_of(layers: Sequence[bytes]) -> list[Device]:
    """The NFS file systems that hold a layer."""
    found = (entry for entry in mounts_holding(layers) if entry is not None and entry.fstype in FSTYPES)
    return list(dict.fromkeys((entry.device, _version(entry)) for entry in found))


def _version(entry: MountEntry) -> int:
    match = _VERSION.search(entry.super_options)
    return 3 if match is None or match[1] in (b"2", b"3") else 4


@dataclass(frozen=True)
class Sharing:
    """What of an overlay's layers other overlays show as well, as far as this mount namespace has them."""

    roots: tuple[tuple[MountEntry | None, bytes], ...]
    others: tuple[tuple[tuple[int, int], bytes], ...]

    @classmethod
    def now(cls, view: MountView) -> "Sharing":
        """As the mount table is now. Raises OSError."""
        tree = MountTree(read())
        others = []
        for overlay in read_overlays():
            if overlay.device != view.device:
                places = (_place(tree, layer) for layer in overlay.lowers)
                others += [(entry.device, inside) for entry, inside in places if entry is not None]
        return cls(tuple(_place(tree, layer) for layer in view.layers), tuple(others))

    def shows(self, layer: int, place: bytes) -> bool:
        """Whether another overlay shows this directory of a layer."""
        entry, inside = self.roots[layer]
        if entry is None:
            return False
        path = b"/" + join(inside.strip(b"/"), place) if place else inside
        return any(device == entry.device and is_at_or_below(path, root) for device, root in self.others)


def _place(tree: MountTree, layer: bytes) -> tuple[MountEntry | None, bytes]:
    """The mount that holds a layer's root, and the root's path inside that file system."""
    entry, path = mount_holding(tree, layer)
    return entry, b"/" if entry is None else entry.inside(path)
