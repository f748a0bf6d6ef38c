"""The fanotify source on a real overlay, and applications that it is to hear."""

import subprocess
import sys
from collections import Counter
from contextlib import suppress
from typing import Any

from promoterd.heat.base import HeatSource, Kind
from promoterd.heat.fanotify import FanotifySource
from support.daemons import wait_for
from support.hearing import Sink, view_of
from support.overlays import MountedOverlay

MARKER = "app/doc"
"""A directory of :data:`support.hearing.TREE` in which tests open nothing themselves."""

APPLICATION = """
import contextlib, os, sys
for action, path in zip(sys.argv[1::2], sys.argv[2::2]):
    with contextlib.suppress(OSError):
        match action:
            case "open":
                open(path, "rb").close()
            case "list":
                os.listdir(path)
            case "stat":
                os.stat(path)
            case "access":
                os.access(path, os.R_OK)
            case "path":
                os.close(os.open(path, os.O_PATH))
"""


def use(*actions: str | bytes, within: tuple[str, ...] = ()) -> None:
    """Have another process ``open``, ``list``, ``stat``, ... these paths; errors are its own business."""
    subprocess.run([*within, sys.executable, "-c", APPLICATION, *actions], check=True)


class Hearing:
    """A source on an overlay. Every question waits until all is read that happened before it."""

    def __init__(self, overlay: MountedOverlay, view: Any = None) -> None:
        self.overlay = overlay
        self.sink = Sink()
        self.source: HeatSource = FanotifySource(view_of(overlay) if view is None else view, self.sink)
        self.source.start()

    def heat(self) -> Counter[tuple[bytes, str]]:
        """What was heard since the last time."""
        key = (MARKER.encode(), Kind.LIST)
        use("list", self.overlay.at(MARKER))

        def marker_is_heard() -> bool:
            while self.source.drain():
                pass
            return self.sink.heat[key] > 0

        wait_for(marker_is_heard)
        found = Counter(self.sink.heat)
        self.sink.heat.clear()
        found[key] -= 1
        return +found

    def close(self) -> None:
        with suppress(OSError):
            self.source.close()
