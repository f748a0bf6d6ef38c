"""Metrics for Prometheus, in base units, each value set when it changes.

A scrape reads memory only: a mount whose server hangs cannot hold it up. The mount point is a label, since policy names
it; a directory never is.
"""

import platform
from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics

from promoterd import __version__

# the time of each counter's birth as a series beside it, which Prometheus does not read
disable_created_metrics()  # type: ignore[no-untyped-call]

OUTCOMES = ("marked", "observed", "primed", "postponed", "refused", "busy", "failed", "gone")
"""How a promotion can end."""
REOPENS = ("live", "deferred", "offline")
EFFECTS = ("active", "pinned")
WARMING = ("complete", "waiting", "failed", "gone", "forbidden")
"""How far a directory that is to be warmed can be."""
HOLDS = ("maintenance", "budget", "entries", "inodes")
"""What can keep a whole mount from promoting."""
_PROMOTION_SECONDS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900, 3600)
_ACTIVATION_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class Families:
    """All metrics of one daemon, in a registry of their own. Any thread may set them."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._gauges: list[Gauge] = []
        self.directories = self._gauge("directories", "Directories by state.", "mount", "state")
        self.promotions = self._counter("promotions", "Promotions by how they ended.", "mount", "outcome")
        self.promotion_seconds = self._histogram(
            "promotion_duration_seconds", "Time from the plan of a promotion to its end.", _PROMOTION_SECONDS
        )
        self.entries_copied = self._counter("entries_copied", "Entries that were given a shadow.", "mount")
        self.entries_primed = self._counter("entries_primed", "Entries that were read to keep them known.", "mount")
        self.backlog, self.expected_savings = self._of_backlog()
        self._add_pace()
        self.activations = self._counter("activations", "Reconfigures that were to bring marks into effect.", "mount")
        self.activation_effects = self._counter(
            "activation_effects", "Directories looked at after an activation, by what it did.", "mount", "effect"
        )
        self.activation_seconds = self._histogram(
            "activation_duration_seconds", "Time that an activation took, its proof included.", _ACTIVATION_SECONDS
        )
        self.heat_events = self._counter("heat_events", "Uses of directories that were heard of.", "mount", "kind")
        self.sources = self._gauge("heat_source", "1 for each heat source that works there.", "mount", "source")
        self.source_events = self._counter("heat_source_events", "Events that it took.", "mount", "source")
        self.walks, self.swept = self._of_sweeps()
        self.overflows = self._counter("heat_overflows", "Times that events were lost and all was looked at.", "mount")
        self.unattributed = self._counter(
            "heat_unattributed", "Events that could not be said to belong to a directory of the mount.", "mount"
        )
        self.sampled = self._counter("heat_sampled", "Events that were only counted in samples.", "mount")
        self.armed = self._gauge("heat_directories_armed", "Directories that the heat source listens at.", "mount")
        self.refused = self._gauge("heat_directories_refused", "Directories that it should and cannot.", "mount")
        self.watches = self._gauge("heat_watches", "Watches that the heat source uses.", "mount")
        self.watches_limit = self._gauge("heat_watches_limit", "Watches that it may use at most.", "mount")
        self.tracked = self._gauge("tracked_directories", "Directories whose heat is remembered.", "mount")
        self.evictions = self._counter("tracker_evictions", "Directories whose heat was forgotten for room.", "mount")
        self.upper_free_bytes = self._gauge("upper_free_bytes", "Free space of upper's file system.", "mount")
        self.upper_size_bytes = self._gauge("upper_size_bytes", "Size of upper's file system.", "mount")
        self.upper_free_inodes = self._gauge("upper_free_inodes", "Free inodes of upper's file system.", "mount")
        self.upper_inodes = self._gauge("upper_inodes", "Inodes of upper's file system; 0: no fixed number.", "mount")
        self.data_bytes = self._gauge("data_bytes", "Bytes of files' data that the layer holds.", "mount")
        self.data_evicted = self._counter("data_evicted_bytes", "Bytes of data that were given up again.", "mount")
        self.warm = self._gauge(
            "warm_directories", "Directories of the lists to warm, by how far they are.", "mount", "state"
        )
        self.warm_bad = self._gauge("warm_bad_lists", "Lists that could not be read.", "mount")
        self.working = self._gauge("mount_working", "1 while promoterd works on the mount.", "mount")
        self.stuck_calls = self._gauge("mount_stuck_calls", "Calls that the mount's server does not answer.", "mount")
        self.is_stuck = self._gauge("mount_stuck", "1 while there is such a call.", "mount")
        self.is_paused = self._gauge("mount_paused", "1 while nothing is promoted there.", "mount")
        self.has_tripped = self._gauge("mount_trip_wire", "1 from a broken promise until `resume`.", "mount")
        self.rechecks = self._counter("rechecks", "Directories compared with the server's.", "mount")
        self.stale = self._counter("stale", "Directories found to have changed on the server.", "mount")
        self.ghosts = self._counter("ghosts_removed", "Shadows removed of what is gone on the server.", "mount")
        self.reopens = self._counter("reopens", "Reopenings by how they went.", "mount", "outcome")
        self.deferred = self._gauge("reopens_deferred", "Reopenings that wait for an unmounted overlay.", "mount")
        self.backend_info = self._gauge("backend_info", "1 for the backend that works there.", "mount", "backend")
        self.build_info = self._gauge("build_info", "1; its labels say what runs.", "version", "python", "kernel")
        self.reload_ok = self._gauge("policy_last_reload_successful", "Whether the last (re)load was good: 0 or 1.")
        self.reload_at = self._gauge("policy_last_reload_success_timestamp_seconds", "When the last good one was.")
        self.watchdog_beats = self._counter("watchdog_beats", "Beats of the watchdog, given or withheld.", "result")
        self.build_info.labels(__version__, platform.python_version(), platform.release()).set(1)
        for result in ("given", "withheld"):
            self.watchdog_beats.labels(result)

    def _add_pace(self) -> None:
        """How fast the server is asked, and what keeps it from being asked more."""
        self.throttled = self._counter("throttled_seconds", "Time that promotions waited for their rate.", "mount")
        self.requests_per_second = self._gauge("requests_per_second", "Rate that adapts to the server.", "mount")
        self.rate_cuts = self._counter("rate_cuts", "Times that it was cut because the server was slow.", "mount")
        self.answer_seconds = self._gauge("answer_seconds", "Time that the server took to answer of late.", "mount")
        self.usual_seconds = self._gauge("answer_usual_seconds", "Time that it usually takes for the same.", "mount")
        self.requests = self._counter("requests", "Requests to the server, as the daemon reckons them.", "mount")
        self.budget_left = self._gauge("budget_left_requests", "Requests left of the budget.", "mount")
        self.is_held = self._gauge("promotion_held", "1 for what keeps the mount from promoting.", "mount", "reason")

    def _of_backlog(self) -> tuple[Gauge, Gauge]:
        return (
            self._gauge("backlog_directories", "Directories that wait to be promoted.", "mount"),
            self._gauge(
                "expected_savings_requests_per_second",
                "Requests that the server would be spared if all that waits were promoted.",
                "mount",
            ),
        )

    def _of_sweeps(self) -> tuple[Counter, Counter]:
        return (
            self._counter("heat_sweeps", "Walks over the tree that were recognised.", "mount"),
            self._counter("heat_swept_events", "Uses that were no heat because of those.", "mount"),
        )

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(name, text, labels, namespace="promoterd", registry=self.registry)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        gauge = Gauge(name, text, labels, namespace="promoterd", registry=self.registry)
        if "mount" in labels:
            self._gauges.append(gauge)
        return gauge

    def _histogram(self, name: str, text: str, buckets: Sequence[float]) -> Histogram:
        return Histogram(name, text, ("mount",), namespace="promoterd", registry=self.registry, buckets=buckets)

    def forget(self, mount: str) -> None:
        """Take out the gauges of a mount: what they said is over."""
        for gauge in self._gauges:
            remove(gauge, mount)


def remove(gauge: Gauge, mount: str) -> None:
    """Take out every series of a mount."""
    for metric in gauge.collect():
        for sample in metric.samples:
            if sample.labels["mount"] == mount:
                gauge.remove(*sample.labels.values())
