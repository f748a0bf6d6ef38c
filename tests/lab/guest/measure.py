"""All that is measured over one NFS version, in one boot; leaves ``results.json`` for the host."""

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from typing import Any

from lab.guest import promoting, rpcs, server
from lab.guest.launch import launch
from lab.guest.promoting import Promoter
from lab.guest.stack import UPPERS, Nfs, cool, layered_on, mounted_nfs, overlay_on, upper_home
from lab.guest.tracing import mount_tracefs
from lab.guest.workloads import WORKLOADS
from lab.manifest import Manifest
from lab.results import Cell, LaunchCell, Promotion, Results, Run, Scale
from promoterd.backends.base import Terms
from promoterd.backends.prime import PrimeBackend
from promoterd.demo.reader import Known, Reader
from promoterd.demo.view import differences
from promoterd.overlay import probe
from promoterd.overlay.listing import Layers
from promoterd.overlay.mounts import overlay_at
from promoterd.paths import join
from support.overlays import MountedOverlay
from support.promotions import SCRATCH, allow, view_below

MANIFEST = "/lab/share.json"
OUT = "/tmp/out"  # noqa: S108 - the guest's own
_SHARE = server.EXPORT + b"/share"
_READ = ("apps/tool/1.0/lib", "apps/other/1.0/lib", "apps/other/1.1/lib")
"""Directories that a reader works in while they are promoted."""
_LAYERED = ("layer", "layer+chain", "layer+chain+data")
_PROBES = 3
_LAUNCHES = 3
"""That make directories hot: three machines that had one each, or one machine with long pauses. One is enough for most
(docs/heat.md), and all that a short run has."""
_LEAST_REQUESTS = 50


def say(text: str) -> None:
    """A line for the host, which shows it."""
    with open("/proc/uptime", encoding="ascii") as file:
        print(f"LAB {file.read().split()[0]:>7} s  {text}", flush=True)  # noqa: T201 - the console is the report


class Measurement:
    """Everything for one NFS version and one share; :attr:`run` grows as it goes on."""

    def __init__(self, nfs: Nfs, upper: str, latency: float, manifest: Manifest) -> None:
        self.nfs, self.upper, self.latency, self.manifest = nfs, upper, latency, manifest
        self.workloads: dict[str, dict[str, Cell]] = {}
        self.launch: dict[str, LaunchCell] = {}
        self.launch_by_heat: dict[str, LaunchCell] = {}
        self.launch_absent: dict[str, LaunchCell] = {}
        self.promotion: dict[str, Promotion] = {}
        self.noent_in_complete = 0
        self.reader_errors: list[str] = []
        self.changed: list[str] = []

    def all(self) -> None:
        """Every state in turn, each on a new mount."""
        self._unpromoted()
        with self._overlay() as overlay:
            say("metacopy: chown -hR")
            self._cost("metacopy", promoting.chown(overlay, self._promoted))
            self._state("metacopy", overlay.mountpoint, overlay)
        with self._overlay() as overlay:
            self._primed(overlay)
        with self._overlay() as overlay:
            fit = promoting.fit_backends(overlay)
        for backend in fit:
            self._backend(backend, self._overlay)
        if probe.host().trial.data_only_layers:
            *simple, last = _LAYERED
            for state in simple:
                self._by_policy(state)
            self._backend(last, self._layered)

    def layers(self) -> None:
        """What a metadata layer does, because policy says so, against the overlay without one."""
        self._unpromoted()
        for state in _LAYERED:
            self._by_policy(state)

    def best(self) -> None:
        """What the best that this kernel can have does, by heat and because policy says so."""
        self._unpromoted()
        if probe.host().trial.data_only_layers:
            with self._layered() as overlay:
                self._marked(_LAYERED[-1], overlay, launches=1)
        else:
            with self._overlay() as overlay:
                self._marked(promoting.fit_backends(overlay)[0], overlay, launches=1)

    def _unpromoted(self) -> None:
        with mounted_nfs(self.nfs) as share:
            self._state("plain", share)
        with self._overlay() as overlay:
            self._state("unpromoted", overlay.mountpoint, overlay)

    def _by_policy(self, state: str) -> None:
        """All search directories in a metadata layer because policy says so, and what that leads to."""
        with self._layered() as overlay:
            say(f"{state}: all of it, because policy says so")
            self._cost(state, Promoter(overlay, self.manifest, state).promote(self._promoted))
            self._state(state, overlay.mountpoint, overlay)
            self.changed += self._differences(overlay)

    def _backend(self, state: str, overlays: Callable[[], AbstractContextManager[MountedOverlay]]) -> None:
        with overlays() as overlay:
            say(f"{state}: all of it, because policy says so")
            self._cost(state, Promoter(overlay, self.manifest, state).promote(self._promoted))
        with overlays() as overlay:
            self._marked(state, overlay)

    @property
    def _promoted(self) -> Sequence[str]:
        return (*self.manifest.search_path, self.manifest.workload)

    @contextmanager
    def _overlay(self) -> Iterator[MountedOverlay]:
        with ExitStack() as stack:
            layer = stack.enter_context(mounted_nfs(self.nfs))
            home = stack.enter_context(upper_home(self.upper))
            yield stack.enter_context(overlay_on([layer], home))

    @contextmanager
    def _layered(self) -> Iterator[MountedOverlay]:
        """With a metadata layer. ``noacl``, as docs/layout.md has it for NFS 3: ACLs cost a request for each file."""
        options = f"{self.nfs.options},noacl" if self.nfs.version.startswith("3") else self.nfs.options
        with upper_home(self.upper) as home, layered_on(replace(self.nfs, options=options), home) as overlay:
            yield overlay

    def _primed(self, overlay: MountedOverlay) -> None:
        """What follows on one reading of every directory; not by the daemon, which would read on."""
        say("prime: every directory read once")
        backend = PrimeBackend(overlay_at(overlay.mountpoint), scratch=SCRATCH)
        terms = Terms(max_entries=self.manifest.entries + 1, recursive=False, of=allow())
        with Layers(backend.overlay) as layers:
            plans = [backend.plan(layers, os.fsencode(path), terms) for path in self._promoted]

        def read() -> int:
            return sum(size for plan in plans for size in backend.shadow(plan))

        cool(overlay)
        with rpcs.counted() as counts:
            entries = read()
        self._cost("prime", promoting.Cost(entries, counts, counts.seconds))
        self._state("prime", overlay.mountpoint, overlay, warm=read)

    def _marked(self, state: str, overlay: MountedOverlay, launches: int = _LAUNCHES) -> None:
        """What a backend's marks lead to; ``launches`` make directories hot.

        The daemon is not there while something is measured: its own rechecks are no part of a launch.
        """
        promoter = Promoter(overlay, self.manifest, state)
        say(f"{state}: by heat alone")
        promoter.promote(use=partial(self._use, overlay, launches))
        say(f"{state}: {len(promoter.complete())} directories complete")
        self.launch_by_heat[state] = self._launch(state, overlay.mountpoint, [overlay])
        say(f"{state}: all of it, because policy says so, and other releases, which a reader is at work in")
        with self._reader(overlay) as reader:
            promoter.promote([*self._promoted, *_READ])
            self.reader_errors += reader.stop()
        complete = promoter.complete()
        say(f"{state}: {len(complete)} directories complete, {reader.requests} requests of the reader")
        lacking = {*self._promoted, *_READ} - set(complete)
        if lacking or reader.requests < _LEAST_REQUESTS:
            why = {path: promoter.fate(path) for path in sorted(lacking)[:5]}
            raise RuntimeError(f"{len(lacking)} directories are not complete ({why}), or nobody read")
        self._state(state, overlay.mountpoint, overlay)
        self.noent_in_complete += self._missing_in(overlay, complete)
        say(f"{state}: is the view what the server has?")
        self.changed += self._differences(overlay)

    def _use(self, overlay: MountedOverlay, launches: int) -> None:
        for _ in range(launches):
            cool(overlay)
            launch(os.fsdecode(overlay.mountpoint), MANIFEST)

    def _reader(self, overlay: MountedOverlay) -> Reader:
        """Reads the releases that are promoted meanwhile, and nothing else: what is read is hot."""
        inside = tuple(os.fsencode(path) for path in _READ)
        known = Known.of(_SHARE, [path + b"/never-there" for path in inside])
        return Reader(
            overlay.mountpoint,
            Known(
                {path: content for path, content in known.contents.items() if path.startswith(inside)},
                {path: names for path, names in known.listings.items() if path.startswith(inside)},
                known.absent,
            ),
            think=0.02,
        )

    def _state(
        self, state: str, root: bytes, *overlays: MountedOverlay, warm: Callable[[], object] | None = None
    ) -> None:
        directory = os.fsdecode(join(root, os.fsencode(self.manifest.workload)))
        self.workloads[state] = {}
        for name, work in WORKLOADS.items():
            counts = self._cold(overlays, lambda work=work: work(directory), warm)  # type: ignore[misc]
            self.workloads[state][name] = Cell.model_validate(_cell(counts))
        say(f"{state}: workloads " + ", ".join(f"{name} {cell.total}" for name, cell in self.workloads[state].items()))
        self.launch[state] = self._launch(state, root, overlays, warm=warm)
        self.launch_absent[state] = self._launch(state, root, overlays, "absent", warm=warm)

    def _launch(
        self,
        state: str,
        root: bytes,
        overlays: Sequence[MountedOverlay],
        *phases: str,
        warm: Callable[[], object] | None = None,
    ) -> LaunchCell:
        chosen = phases or ("libraries", "modules", "plugins")
        counts = self._cold(overlays, lambda: launch(os.fsdecode(root), MANIFEST, chosen), warm)
        say(f"{state}: launch {' '.join(phases)} {counts.total} RPCs, {counts.missing} missing, {counts.seconds:.1f} s")
        return LaunchCell.model_validate({**_cell(counts), "noent": counts.missing})

    def _cold(
        self,
        overlays: Sequence[MountedOverlay],
        work: Callable[[], object],
        warm: Callable[[], object] | None = None,
    ) -> rpcs.Counts:
        """What ``work`` causes with cold caches, but for what ``warm`` leaves in them."""
        cool(*overlays)
        if warm is not None:
            warm()
        with rpcs.counted() as counts:
            work()
        return counts

    def _missing_in(self, overlay: MountedOverlay, complete: Sequence[str]) -> int:
        """Lookups of missing names that reach the server, though they are in complete directories."""

        def probe() -> None:
            for directory in complete:
                for number in range(_PROBES):
                    if os.path.lexists(overlay.at(f"{directory}/not-there-{number}")):
                        raise FileExistsError(directory)

        return self._cold([overlay], probe).missing

    def _cost(self, state: str, cost: promoting.Cost) -> None:
        calls = cost.counts.at_server if self.nfs.version.startswith("3") else cost.counts.total
        say(f"{state}: {cost.entries} entries, {calls} RPCs, {cost.seconds:.1f} s")
        self.promotion[state] = Promotion(
            entries=cost.entries,
            rpcs_per_entry=calls / max(1, cost.entries),
            entries_per_second=cost.entries / max(0.001, cost.seconds),
        )

    def _differences(self, overlay: MountedOverlay) -> list[str]:
        """Of what the server has and the overlay shows; the daemon's scratch directory is no part of it."""
        found = []
        for path in map(os.fsencode, (*self._promoted, *_READ)):
            found += differences(view_below(join(_SHARE, path)), view_below(overlay.at(path)))
        return found + [
            f"{name!r} at the root"
            for name in set(os.listdir(_SHARE)) ^ set(os.listdir(overlay.mountpoint))
            if name != SCRATCH
        ]

    @property
    def run(self) -> Run:
        """What was found, for the report."""
        manifest = self.manifest
        return Run(
            kernel=os.uname().release,
            nfs=self.nfs.version,
            workloads=self.workloads,
            launch=self.launch,
            launch_by_heat=self.launch_by_heat,
            launch_absent=self.launch_absent,
            promotion=self.promotion,
            noent_in_complete=self.noent_in_complete,
            reader_errors=len(self.reader_errors),
            view_identical=not self.changed,
            options={
                "mount": self.nfs.mount_options,
                "upper": self.upper,
                **({"latency": f"{self.latency:g} ms"} if self.latency else {}),
            },
            scale=Scale(
                search_directories=len(manifest.search_path),
                entries=manifest.entries,
                missing=manifest.missing,
                found=manifest.found,
            ),
            date=datetime.now(UTC).date().isoformat(),
        )


def _cell(counts: rpcs.Counts) -> dict[str, Any]:
    return {
        "rpcs": {name: count for name, count in sorted(counts.operations.items()) if count},
        "total": counts.total,
        "server_total": counts.at_server,
        "seconds": round(counts.seconds, 2),
    }


def main() -> int:
    """Measure, and write ``results.json``; the host says what is to be thought of it, a reader's errors included."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--nfs", default="4.2")
    parser.add_argument("--options", default="actimeo=600")
    parser.add_argument("--upper", default="ext4", choices=list(UPPERS))
    parser.add_argument("--latency", type=float, default=0.0, help="milliseconds that a round trip takes besides")
    only = parser.add_mutually_exclusive_group()
    only.add_argument("--only-layers", dest="what", action="store_const", const=Measurement.layers)
    only.add_argument("--only-best", dest="what", action="store_const", const=Measurement.best)
    parser.set_defaults(what=Measurement.all)
    arguments = parser.parse_args()
    mount_tracefs()
    server.start("/dev/vdb")
    server.delay(arguments.latency)
    say(f"server up; NFS {arguments.nfs}, {os.uname().release}")
    measurement = Measurement(
        Nfs(arguments.nfs, arguments.options),
        arguments.upper,
        arguments.latency,
        Manifest.load(MANIFEST),
    )
    arguments.what(measurement)
    Results(runs=[measurement.run]).dump(f"{OUT}/results.json")
    for problem in [*measurement.reader_errors, *measurement.changed][:20]:
        say(f"WRONG: {problem}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
