"""The NFS client's tracepoints as a heat source, in the process of a test."""

import os
import subprocess
from collections import Counter
from collections.abc import Sequence

from promoterd.heat import tracefs
from promoterd.heat.nfs_trace import NfsTraceSource
from support.hearing import Sink, found_below, view_of
from support.overlays import MountedOverlay

INSTANCES = f"{tracefs.ROOT}/instances"


def mount_tracefs() -> None:
    """As systemd does at boot."""
    if not os.path.isdir(INSTANCES):
        subprocess.run(["mount", "-t", "tracefs", "tracefs", tracefs.ROOT], check=True)


class Tracing:
    """A source on an overlay that knows these directories, or all."""

    def __init__(self, overlay: MountedOverlay, paths: Sequence[bytes] = ()) -> None:
        self.overlay = overlay
        self.sink = Sink()
        self.source = NfsTraceSource(view_of(overlay), self.sink)
        self.source.start()
        assert not self.source.arm(paths or found_below(overlay, b"")).failed

    def drained(self) -> Counter[tuple[bytes, str]]:
        """What is heard since the last time, with all that has to be confirmed for it."""
        for _ in range(4):
            self.source.drain()
            self.source.confirm(self.source.unsure())
        heard, self.sink.heat = self.sink.heat, Counter()
        return heard
