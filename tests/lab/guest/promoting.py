"""The real daemon in the guest: what it promotes by itself, and what that costs the server."""

import os
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self

from lab.guest import rpcs
from lab.manifest import Manifest
from support.daemons import RunningDaemon, mount_policy
from support.overlays import MountedOverlay

PATIENCE = 600.0
_QUIET = 2.0
_UNDER_WAY = ("hot", "shadowing", "complete", "pinned")


@dataclass(frozen=True)
class Cost:
    """What giving local entries to so many names came to."""

    entries: int
    counts: rpcs.Counts
    seconds: float


def rules(manifest: Manifest, always: Sequence[str]) -> list[dict[str, Any]]:
    """The policy of the share: these directories in any case, other releases when they are hot.

    Nothing is too young: the share's disk was made a moment ago. Rechecks stay out of what is counted.
    """
    keys = {"min_age": "0s", "recheck": "1h"}
    covered = [path for directory in always for path in (directory, f"{directory}/**")]
    return [
        *({"path": path, "promote": "always", **keys} for path in covered),
        *({"path": path, "growing": True, **keys} for path in manifest.growing),
        *({"path": path, **keys} for path in manifest.releases),
    ]


class Promoter:
    """The daemon at work on one overlay with the share's policy; a context manager."""

    def __init__(self, overlay: MountedOverlay, manifest: Manifest, base: str = "/run/promoterd") -> None:
        self.overlay = overlay
        self.manifest = manifest
        self.daemon = RunningDaemon(os.fsencode(base))
        self._ask_for([])

    def __enter__(self) -> Self:
        self.daemon.start()
        self.settle()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.daemon.__exit__(kind)

    def promote_by_heat(self, launch: Callable[[], object]) -> None:
        """Launch the application until that heats nothing more, and wait for what the daemon makes of it."""
        launch()
        launch()
        self.settle()

    def promote_always(self, directories: Sequence[str]) -> Cost:
        """Name directories in the policy, and count what their promotion asks of the server."""
        entries = self.entries()
        self._ask_for(directories)
        self.daemon.write_policy()
        with rpcs.counted() as counts:
            self.daemon.ask("reload")
            time.sleep(_QUIET)
            marked = self.settle()
        return Cost(self.entries() - entries, counts, marked - (time.monotonic() - counts.seconds))

    def settle(self) -> float:
        """Wait until nothing is left to do; returns when (monotonic) the last thing was done. Raises AssertionError."""
        deadline = time.monotonic() + PATIENCE
        before, since = None, time.monotonic()
        while True:
            now, states = time.monotonic(), self.daemon.status().get("states")
            if states != before:
                before, since = states, now
            if states is not None and not any(states.get(state) for state in _UNDER_WAY) and now - since >= _QUIET:
                return since
            assert now < deadline, f"not settled after {PATIENCE:.0f} s: {states}; {self.daemon.tail()}"
            time.sleep(0.25)

    def entries(self) -> int:
        """Entries that were copied up since the daemon started."""
        copied = self.daemon.metric("promoterd_entries_copied_total")
        return 0 if copied != copied else int(copied)  # noqa: PLR0124 - NaN: no such series yet

    def complete(self) -> list[str]:
        """The directories that answer without the server."""
        return sorted(path.lstrip("/") for path, state in self.daemon.states().items() if state == "active")

    def _ask_for(self, always: Sequence[str]) -> None:
        policy = mount_policy(self.overlay, rules(self.manifest, always), activation_interval="1s")
        self.daemon.policy["mounts"] = [policy]


def chown(directories: Sequence[str]) -> Cost:
    """``chown -hR`` to the owner that they have: metadata copy-up and nothing else."""
    entries = sum(len(below) + len(names) for directory in directories for _, below, names in os.walk(directory))
    with rpcs.counted() as counts:
        subprocess.run(["chown", "-hR", "0:0", "--", *directories], check=True)
    return Cost(entries, counts, counts.seconds)
