"""The real daemon in the guest: what it promotes by itself, and what that costs the server."""

import math
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from lab.guest import rpcs
from lab.guest.stack import cool
from lab.manifest import Manifest
from promoterd.backends import base as backends
from promoterd.backends.choice import verdicts
from promoterd.overlay import probe
from promoterd.overlay.mounts import overlay_at
from promoterd.paths import show
from promoterd.policy.mounts import HeatPolicy
from support.daemons import RunningDaemon, moment, mount_policy, wait_for
from support.overlays import MountedOverlay
from support.promotions import assert_marks_are_sound
from support.soundness import OPAQUE, xattr

PATIENCE = 600.0
BUDGET = "64MiB"
"""Of the data of small files; the share has less."""
_QUIET = 4.0
_UNDER_WAY = ("hot", "shadowing", "complete", "pinned")


@dataclass(frozen=True)
class Cost:
    """What giving local entries to so many names came to."""

    entries: int
    counts: rpcs.Counts
    seconds: float


def rules(manifest: Manifest, always: Sequence[str], state: str) -> list[dict[str, Any]]:
    """The policy of the share: these directories in any case, other releases when they are hot.

    Nothing is too young: the share's disk was made a moment ago. Rechecks stay out of what is counted. What is above
    releases grows, but for the state ``layer+chain``, in which nothing does.
    """
    keys: dict[str, Any] = {"min_age": "0s", "recheck": "1h"}
    if state.startswith("layer"):
        keys["xattrs"] = "skip"
    covered = [path for directory in always for path in (directory, f"{directory}/**")]
    above = {"chain": True} if "+chain" in state else {"growing": True}
    return [
        *({"path": path, "promote": "always", **keys} for path in covered),
        *({"path": path, **above, "threshold": 1e9, **keys} for path in manifest.growing),
        *({"path": path, **keys} for path in manifest.releases),
    ]


def fit_backends(overlay: MountedOverlay) -> list[str]:
    """Those that this kernel and mount are fit for and that mark something; the best first."""
    found = overlay_at(overlay.mountpoint)
    return [
        verdict.backend
        for verdict in verdicts(found, probe.gather(found))
        if verdict.fit and backends.load(verdict.backend).marks
    ]


class Promoter:
    """The daemon on one overlay with the share's policy; it works while :meth:`promote` runs."""

    def __init__(self, overlay: MountedOverlay, manifest: Manifest, state: str, budget: int | str = BUDGET) -> None:
        self.budget = budget
        self.overlay = overlay
        self.manifest = manifest
        self.state = state
        self.backend = state.partition("+")[0]
        self.daemon = RunningDaemon(tempfile.mkdtemp(prefix="daemon-").encode())

    def promote(self, always: Sequence[str] = (), use: Callable[[], object] = lambda: None) -> Cost:
        """Start the daemon, use the overlay, wait until nothing is left to do, and stop the daemon.

        ``always`` are directories that policy says are to be promoted; others are if they are hot. Raises
        AssertionError if it comes to no end, or does not end well.
        """
        more = {"copy_data": {"max_size": "64KiB", "budget": self.budget}} if "+data" in self.state else {}
        chosen = rules(self.manifest, always, self.state)
        heat = {"source": "auto", "threshold": HeatPolicy().threshold, "settle": "0s"}
        policy = mount_policy(self.overlay, chosen, backend=self.backend, activation_interval="1s", heat=heat, **more)
        self.daemon.policy["mounts"] = [policy]
        cool(self.overlay)
        with rpcs.counted() as counts, self.daemon as daemon:
            daemon.start()
            self._wait_until(lambda: (daemon.status().get("heat_source") or {}).get("armed"), lambda _: True)
            use()
            wait_for(lambda: self._are_marked(always), PATIENCE, poll=1.0)
            self._settle()
            copied = daemon.metric("promoterd_entries_copied_total")
        entries = 0 if math.isnan(copied) else int(copied)
        return Cost(entries, counts, self._seconds())

    def complete(self) -> list[str]:
        """The directories that are marked, each of which is found to be shadowed (I1)."""
        if not self.overlay.metadata:
            return sorted(map(os.fsdecode, assert_marks_are_sound(self.overlay)))
        rest = self.overlay.metadata[1]
        found = (os.path.relpath(directory, rest) for directory, _, _ in os.walk(rest))
        return sorted(os.fsdecode(path) for path in found if xattr(self.overlay.in_rest(path), OPAQUE))

    def fate(self, directory: str) -> str:
        """What the daemon's log says of a directory, since its last start."""
        path = os.fsencode(directory)
        return f"{self.daemon.states().get(show(path), 'cold')}, {self.daemon.reason(path)}"

    def _are_marked(self, directories: Sequence[str]) -> bool:
        """The daemon finds them first, which takes a while on a large share."""
        place = self.overlay.in_rest if self.overlay.metadata else self.overlay.in_upper
        return all(xattr(place(directory), OPAQUE) for directory in directories)

    def _seconds(self) -> float:
        """From the first entry to the last durable mark; 0 where nothing was promoted."""
        events = self.daemon.find("directory")
        first = min((moment(event) for event in events if event["state"] == "shadowing"), default=0.0)
        return max((moment(event) for event in events if event["state"] == "complete"), default=first) - first

    def _settle(self) -> None:
        """Wait until nothing is left to do. Raises AssertionError."""
        self._wait_until(
            lambda: self.daemon.status().get("states"),
            lambda states: not any(states.get(state) for state in _UNDER_WAY),
        )

    def _wait_until(self, look: Callable[[], Any], good: Callable[[Any], bool]) -> None:
        """Until what is seen is good and has not changed for a while. Raises AssertionError."""
        deadline = time.monotonic() + PATIENCE
        before, since = None, time.monotonic()
        while True:
            now, seen = time.monotonic(), look()
            if seen != before:
                before, since = seen, now
            if seen is not None and good(seen) and now - since >= _QUIET:
                return
            assert now < deadline, f"not settled after {PATIENCE:.0f} s: {seen}; {self.daemon.tail()}"
            time.sleep(1.0)


def chown(overlay: MountedOverlay, directories: Sequence[str]) -> Cost:
    """``chown -hR`` to the owner that they have: metadata copy-up and nothing else, with cold caches."""
    entries = sum(
        len(below) + len(names)
        for directory in directories
        for _, below, names in os.walk(overlay.on_server(directory))
    )
    cool(overlay)
    with rpcs.counted() as counts:
        subprocess.run(["chown", "-hR", "0:0", "--", *map(overlay.at, directories)], check=True)
    return Cost(entries, counts, counts.seconds)
