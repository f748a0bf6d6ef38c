"""Times, as ratios within one boot: launches on a metadata layer and on a local disk, building it and ``chown``.

Only reported, never asserted: the machine is an emulated one.
"""

import argparse
import os
import shutil
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from lab.guest import promoting, server
from lab.guest.launch import launch
from lab.guest.measure import MANIFEST, say
from lab.guest.promoting import Promoter
from lab.guest.stack import Nfs, cool, layered_on, mounted_nfs, overlay_on, upper_home
from lab.manifest import Manifest
from support.overlays import MountedOverlay
from support.promotions import Bench, allow
from support.trees import build, files

_ENTRIES = 2000
_BUILT = b"bench/race/lib"
_SHARE = server.EXPORT + b"/share"


class Race:
    """Everything at one distance from the server; ``pairs`` are alternated."""

    def __init__(self, nfs: Nfs, latency: float, pairs: int) -> None:
        self.nfs, self.latency, self.pairs = nfs, latency, pairs
        self.manifest = Manifest.load(MANIFEST)

    def building(self) -> None:
        """Entries per second of the layer, and of ``chown -hR`` on an overlay without one."""
        build(_SHARE + b"/" + _BUILT, files(_ENTRIES))
        ratios = []
        for _ in range(3):
            with (
                mounted_nfs(self.nfs) as share,
                upper_home("tmpfs") as home,
                overlay_on([share], home) as overlay,
                self._far_away(),
            ):
                copied_up = promoting.chown(overlay, [os.fsdecode(_BUILT)]).seconds
            with self._layered("tmpfs") as overlay:
                cool(overlay)
                bench = Bench(overlay, "layer")
                with self._far_away():
                    begun = time.monotonic()
                    bench.mark(_BUILT, of=allow(copy_xattrs=False))
                    built = time.monotonic() - begun
            ratios.append(copied_up / built)
            say(f"race: {_ENTRIES} entries, chown {copied_up:.2f} s, layer {built:.2f} s")
        say(f"race: the layer is built {statistics.median(ratios):.1f} times as fast as chown -hR, median of 3")

    def launching(self, state: str) -> None:
        """Cold launches on the layer and on a copy of the share on a local disk, one after the other."""
        with upper_home("xfs", b"/mnt/copy") as copy, self._layered("ext4") as overlay:
            local = copy + b"/share"
            shutil.copytree(os.fsdecode(_SHARE), os.fsdecode(local), symlinks=True)
            Promoter(overlay, self.manifest, state).promote(self.manifest.search_path)
            ratios = []
            for pair in range(self.pairs):
                seconds = {}
                for place in [local, overlay.mountpoint][:: 1 if pair % 2 else -1]:
                    cool(overlay)
                    with self._far_away():
                        seconds[place] = launch(os.fsdecode(place), MANIFEST).seconds
                ratios.append(seconds[overlay.mountpoint] / seconds[local])
                say(f"race: {state}: local {seconds[local]:.1f} s, overlay {seconds[overlay.mountpoint]:.1f} s")
        say(f"race: a launch on {state} takes {statistics.median(ratios):.2f} times as long as on a local disk")

    @contextmanager
    def _layered(self, upper: str) -> Iterator[MountedOverlay]:
        with upper_home(upper) as home, layered_on(self.nfs, home) as overlay:
            yield overlay

    @contextmanager
    def _far_away(self) -> Iterator[None]:
        server.delay(self.latency)
        try:
            yield
        finally:
            server.delay(0)


def main() -> int:
    """Run it, and say what came of it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--nfs", default="4.2")
    parser.add_argument("--options", default="actimeo=600")
    parser.add_argument("--latency", type=float, default=1.0, help="milliseconds that a round trip takes")
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--states", nargs="*", default=["layer+chain", "layer+chain+data"])
    arguments = parser.parse_args()
    server.start("/dev/vdb")
    race = Race(Nfs(arguments.nfs, arguments.options), arguments.latency, arguments.pairs)
    race.building()
    for state in arguments.states:
        race.launching(state)
    return 0


if __name__ == "__main__":
    sys.exit(main())
