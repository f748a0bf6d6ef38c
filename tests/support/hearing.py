"""A heat source on a real overlay, and a sink that keeps what it is told."""

import os
from collections import Counter
from collections.abc import Callable

from promoterd.heat.base import MountView
from promoterd.heat.discovery import Walk
from promoterd.heat.inotify import InotifySource
from promoterd.overlay import xattrs
from promoterd.paths import is_below
from promoterd.units import Amount, Share
from support.overlays import MountedOverlay
from support.trees import Tree

HALF = Share(0.5)
TREE: Tree = {
    "app": {"lib": {"a": "1", "b": "2", "sub": {"c": "3"}}, "doc": {"d": "4"}},
    "never": {"e": {"f": "5"}},
}


class Sink:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.heat: Counter[tuple[bytes, str]] = Counter()
        self.appearances: list[bytes] = []
        self.vanishings: list[bytes] = []
        self.overflows = 0

    def touched(self, path: bytes, weight: float, kind: str) -> None:
        self.heat[path, kind] += int(weight)

    def overflowed(self) -> None:
        self.overflows += 1

    def appeared(self, path: bytes) -> None:
        self.appearances.append(path)

    def vanished(self, path: bytes) -> None:
        self.vanishings.append(path)

    def nothing(self) -> bool:
        return not (self.heat or self.appearances or self.vanishings or self.overflows)


class Heard:
    """A source on an overlay with its sink; every question drains it first."""

    def __init__(self, overlay: MountedOverlay, max_watches: Share | Amount) -> None:
        self.overlay = overlay
        self._sink = Sink()
        self.source = InotifySource(view_of(overlay, max_watches), self._sink)
        self.source.start()

    @property
    def sink(self) -> Sink:
        while self.source.drain():
            pass
        return self._sink


def view_of(overlay: MountedOverlay, max_watches: Share | Amount = HALF) -> MountView:
    device = os.stat(overlay.mountpoint).st_dev

    def allowed(path: bytes) -> bool:
        return not is_below(path, b"never")

    return MountView(
        overlay.mountpoint,
        (os.major(device), os.minor(device)),
        allowed,
        allowed,
        layers=(overlay.upper, *overlay.layers),
        max_watches=max_watches,
    )


Listen = Callable[..., Heard]


def complete(overlay: MountedOverlay, path: bytes) -> None:
    """Copy a directory of regular files up and mark it, as the opaque backend does."""
    os.mkdir(overlay.at("never/scratch"))
    for name in os.listdir(overlay.at(path)):
        os.link(overlay.at(path + b"/" + name), overlay.at("never/scratch/x"))
        os.unlink(overlay.at("never/scratch/x"))
    os.rmdir(overlay.at("never/scratch"))
    os.setxattr(overlay.in_upper(path), xattrs.OPAQUE, xattrs.OPAQUE_YES)


def found_below(overlay: MountedOverlay, start: bytes) -> list[bytes]:
    view = view_of(overlay)
    walk = Walk(view.layers, view.may_promote, view.may_promote_below, max_directories=10_000)
    return [path for batch in walk.batches(start) for path in batch]
