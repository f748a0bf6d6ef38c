"""The scratch directory's verbs on an overlay of a test."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from promoterd.overlay.listing import Layers
from promoterd.overlay.mounts import overlay_at
from promoterd.overlay.scratch import DEFAULT_NAME, Scratch
from support.overlays import MountedOverlay


@contextmanager
def layers_of(made: MountedOverlay) -> Iterator[Layers]:
    with Layers(overlay_at(made.mountpoint)) as layers:
        yield layers


def ensure(made: MountedOverlay, name: bytes = DEFAULT_NAME) -> None:
    with layers_of(made) as layers:
        Scratch(name).ensure(layers.root, layers.upper, layers.lowers)


def empty(made: MountedOverlay) -> int:
    with layers_of(made) as layers:
        return Scratch().empty(layers.root, layers.upper)


def remove(made: MountedOverlay) -> bool:
    with layers_of(made) as layers:
        return Scratch().remove(layers.root, layers.upper)


def times(made: MountedOverlay) -> tuple[int, int]:
    status = os.stat(made.mountpoint)
    return status.st_atime_ns, status.st_mtime_ns
