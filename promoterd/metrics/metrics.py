"""All metrics of the daemon, and its mounts."""

from promoterd.metrics.families import Families, remove
from promoterd.metrics.mount import MountMetrics
from promoterd.metrics.server import MetricsServer


class Metrics(Families):
    """What the daemon says of itself, and where the mounts find theirs."""

    def __init__(self) -> None:
        super().__init__()
        self.reloaded(ok=True)

    def of(self, mount: str, backend: str) -> MountMetrics:
        """The metrics of a mount that is taken into work: its gauges begin anew, its counters go on."""
        self.mount_working(mount, on=False)
        self.backend(mount, backend)
        return MountMetrics(self, mount)

    def backend(self, mount: str, name: str) -> None:
        """The backend that works on the mount now."""
        remove(self.backend_info, mount)
        self.backend_info.labels(mount, name).set(1)

    def mount_working(self, mount: str, *, on: bool) -> None:
        """Whether the mount is there and worked on; where it is not, no other gauge has anything to say of it."""
        if not on:
            self.forget(mount)
        self.working.labels(mount).set(on)

    def reloaded(self, *, ok: bool) -> None:
        """The policy was read, and was good or bad."""
        self.reload_ok.set(ok)
        if ok:
            self.reload_at.set_to_current_time()

    def beat(self, is_well: bool) -> None:
        """A beat of the watchdog; see :meth:`promoterd.notify.Notifier.watchdog`."""
        self.watchdog_beats.labels("given" if is_well else "withheld").inc()

    def serve(self, address: tuple[str, int] | None) -> MetricsServer:
        """Answer scrapes at host and port, or nowhere. Raises UsageError where nothing can listen there."""
        return MetricsServer(self.registry, address)
