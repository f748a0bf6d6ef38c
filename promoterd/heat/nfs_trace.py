"""Heat from the NFS client's tracepoints: names that were looked up on the server, found and missed.

Nothing is armed and nothing read while nobody looks anything up: the kernel counts by directory, and each drain reads
what the counts have gained. An event names a lower directory by its inode; which directory of the overlay that is, is
learned where directories are found anyway, and confirmed for those in use. What cannot be attributed is counted.
"""

import errno
import threading
import time
from collections.abc import Iterable, Sequence

from promoterd.errors import NoHeatSource
from promoterd.heat import tracefs
from promoterd.heat.attribution import Attribution, Inode
from promoterd.heat.base import Armed, HeatSink, HeatSource, MountView, SourceStats
from promoterd.heat.counting import LookupCounter
from promoterd.heat.lookups import Taken
from promoterd.heat.nfs_devices import Device, Sharing, devices_of
from promoterd.heat.tracepoints import EXIT, kernel_device
from promoterd.overlay import parts
from promoterd.overlay.parts import Part
from promoterd.paths import parent

DIRECTORIES = 4096
"""Directories that each histogram has room for; it is emptied when half of them are taken."""
CONFIRM_AT_ONCE = 256
_GONE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EXDEV, errno.ESTALE, errno.EACCES})


class NfsTraceSource(HeatSource):
    """Hears lookups on the NFS layers of one overlay, in a tracing instance of its own."""

    name = "nfs-trace"
    arms = False

    def __init__(self, view: MountView, sink: HeatSink) -> None:
        super().__init__(view, sink)
        self._lock = threading.Lock()  # never held over anything that can wait for the mount
        self._counter: LookupCounter | None = None
        self._devices: list[Device] = []
        self._numbers: frozenset[int] = frozenset()
        self._vanished: list[bytes] = []
        self._known = Attribution(view.max_directories, time.monotonic())
        self._unattributed = self._sampled = self._events = self._overflows = 0
        self._has_drained = False

    @classmethod
    def unfit(cls) -> str | None:
        """As :meth:`HeatSource.unfit`."""
        return tracefs.lacking(EXIT)

    def start(self) -> None:
        """Begin to count. Raises NoHeatSource, also where no layer of the overlay lies on NFS."""
        devices = devices_of(self.view.layers)
        if not devices:
            raise NoHeatSource(source=self.name, reason="no layer of the overlay lies on NFS")
        lack = self.unfit()
        if lack is not None:
            raise NoHeatSource(source=self.name, reason=lack)
        tracefs.remove_leftovers()
        self._devices = devices
        self._numbers = frozenset(kernel_device(device) for device, _ in devices)
        self._count(devices)

    def _count(self, devices: Sequence[Device]) -> None:
        try:
            self._counter = LookupCounter(devices, DIRECTORIES)
        except OSError as error:
            raise NoHeatSource(source=self.name, reason=f"the kernel refuses to count lookups: {error}") from error

    def close(self) -> None:
        """Remove the tracing instance."""
        with self._lock:
            counter, self._counter = self._counter, None
            if counter is not None:
                counter.close()

    def fileno(self) -> int | None:
        """None: counts are read now and then."""
        return None

    def paths(self) -> list[bytes]:
        """The directories whose inodes are known."""
        with self._lock:
            return self._known.paths()

    def stats(self) -> SourceStats:
        """As :meth:`HeatSource.stats`."""
        with self._lock:
            return SourceStats(
                limit=None,
                watches=0,
                armed=len(self._known),
                refused=0,
                events=self._events,
                overflows=self._overflows,
                unattributed=self._unattributed + self._known.unattributed,
                sampled=self._sampled,
            )

    def drain(self) -> int:
        """As :meth:`HeatSource.drain`; next to something there is nothing, so that a busy mount keeps nobody here.

        Raises NoHeatSource where somebody has removed the instance, and no other can be had.
        """
        if self._has_drained:
            self._has_drained = False
            return 0
        now = time.monotonic()
        with self._lock:
            taken = self._take()
            self._has_drained = taken.events > 0
            self._events += taken.events
            self._unattributed += taken.elsewhere
            self._sampled += taken.dropped
            self._overflows += taken.dropped > 0
            for (inode, kind), count in taken.uses.items():
                self._known.hear(inode, kind, count, now)
            touched = self._known.settle(now)
            wants_search = self._known.wants_search(now)
            vanished, self._vanished = self._vanished, []
        for path in vanished:
            self.sink.vanished(path)
            self.sink.appeared(parent(path))  # under another name, if it was renamed
        for (path, kind), weight in touched.items():
            self.sink.touched(path, weight, kind)
        if wants_search:
            self.sink.appeared(b"")
        return taken.events

    def _take(self) -> Taken:
        if self._counter is None:
            return Taken()
        try:
            return self._counter.take()
        except OSError:
            self._counter.close()
            self._counter = None
            self._count(self._devices)
            return Taken()

    def catch_up(self) -> None:
        """As :meth:`HeatSource.catch_up`."""
        self._has_drained = False

    def unsure(self) -> list[bytes]:
        """As :meth:`HeatSource.unsure`."""
        with self._lock:
            return self._known.doubtful(CONFIRM_AT_ONCE)

    def arm(self, paths: Iterable[bytes]) -> Armed:
        """Learn by which inodes of the layers the kernel knows these directories. Raises OSError."""
        wanted = [path for path in dict.fromkeys(paths) if self.view.may_promote(path)]
        gone: list[bytes] = []
        failed: list[tuple[bytes, int]] = []
        if not wanted or self._counter is None:
            return Armed()
        sharing = Sharing.now(self.view)
        with parts.opened(self.view.layers) as layers:
            for path in wanted:
                try:
                    found = layers.of(path)
                except OSError as error:
                    if error.errno not in _GONE:
                        failed.append((path, error.errno or 0))
                        continue
                    found = []
                if not found:
                    gone.append(path)
                self._learn(path, found, sharing)
        return Armed(gone=tuple(gone), failed=tuple(failed))

    def _learn(self, path: bytes, found: Sequence[Part], sharing: Sharing) -> None:
        inodes = {part: Inode(kernel_device(part.device), part.inode) for part in found}
        inodes = {part: inode for part, inode in inodes.items() if inode.device in self._numbers}
        shared = [inode for part, inode in inodes.items() if sharing.shows(part.layer, part.place)]
        with self._lock:
            if inodes:
                self._known.confirm(path, inodes.values(), shared, time.monotonic())
            elif path in self._known:
                self._known.forget(path)
                self._vanished.append(path)

    def confirm(self, paths: Iterable[bytes]) -> None:
        """As :meth:`HeatSource.confirm`."""
        self.arm(paths)

    def rearm(self, paths: Iterable[bytes]) -> Armed:
        """As :meth:`arm`."""
        return self.arm(paths)
