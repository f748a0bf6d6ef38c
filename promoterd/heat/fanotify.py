"""Heat from one fanotify mark on the whole overlay: nothing to arm, no walk through the tree, no limit on watches.

What it hears: files opened or executed, directories opened, through whichever mount of the overlay, in containers too.
What it does not: stat, access, readlink and lookups of missing names, as with inotify; and what is made, renamed or
removed, which an overlay tells only by file handles that this kind of mark cannot have. A directory gets its heat under
the name that it has when it is used.

Each event that is read opens its file once more, on the server as well where the data lies there. Therefore no more
than ENOUGH opens of one directory are heard in a PERIOD, and none of files in directories that policy leaves alone:
the kernel is told to ignore those, by marks that pin nothing.

An event holds its file from when it happens until it is read, so that no mount can be unmounted and no directory be
activated meanwhile. A thread reads them at once, a little later for the sake of few readings; what is disarmed raises
none, and has none left when :meth:`FanotifySource.disarm` returns. It is a thread because that open can wait for a
server that does not answer.
"""

import os
import select
import threading
from collections.abc import Callable, Iterable
from contextlib import ExitStack, suppress
from time import monotonic

from promoterd import fanotify, threads
from promoterd.errors import MountGone, NoHeatSource
from promoterd.fanotify import Fanotify, RawEvent
from promoterd.heat.base import Armed, HeatSink, HeatSource, Kind, MountView, SourceStats
from promoterd.heat.places import Place, Places, use_of
from promoterd.heat.tally import Tally
from promoterd.overlay import beneath, mountinfo
from promoterd.paths import display

ENOUGH = 200
"""Opens of one directory's files that are heard in one PERIOD."""
PERIOD = 60.0
"""Seconds."""
_GATHERING = 0.1
"""Seconds for which events may gather: fewer readings, and a mount that is left can be unmounted at once."""
_JOINING = 0.2
"""Seconds that closing waits for the thread, which has nothing to wait for but a server that does not answer."""
_MOST_DIRECTORIES = 65_536
_PORTIONS = 128
_FAILURES = 16


class FanotifySource(HeatSource):
    """Hears a whole overlay through one mark."""

    name = "fanotify"
    arms = False
    wants_directories = False

    def __init__(self, view: MountView, sink: HeatSink) -> None:
        super().__init__(view, sink)
        self._group: Fanotify | None = None
        self._home: tuple[int, Place] = (0, Place(view.mountpoint, b""))
        self._own_pid = os.getpid()
        self._thread: threading.Thread | None = None
        self._wake = -1
        self._stopping = threading.Event()
        self._ended = False
        self._failure: Exception | None = None
        self._reading = threading.Lock()  # held from the reading of events to the closing of their files
        self._lock = threading.Lock()  # never held over anything that can wait for the mount
        self._tally = Tally(ENOUGH, _MOST_DIRECTORIES)
        self._period_ends: float | None = None
        self._disarmed: set[bytes] = set()
        self._ignored: set[bytes] = set()
        self._events = 0
        self._told = 0
        self._overflows = 0
        self._lost = False
        self._unattributed = 0

    @classmethod
    def unfit(cls) -> str | None:
        """As :meth:`HeatSource.unfit`."""
        return fanotify.lack()

    def start(self) -> None:
        """Mark the overlay, and read from then on. Raises NoHeatSource, MountGone."""
        lack = fanotify.lack()
        if lack is not None:
            raise NoHeatSource(source=self.name, reason=lack)
        try:
            mount_id = self._find_home()
            group = Fanotify()
        except OSError as error:
            raise NoHeatSource(source=self.name, reason=str(error)) from error
        try:
            group.mark_file_system(self.view.mountpoint)
        except OSError as error:
            group.close()
            raise NoHeatSource(source=self.name, reason=f"the mark is refused: {error.strerror}") from error
        self._home = (mount_id, self._home[1])
        self._group = group
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        name = f"fanotify {display(self.view.mountpoint)}"
        self._thread = threads.start(self._serve, group, self._wake, name=name)

    def _find_home(self) -> int:
        entry = mountinfo.MountTree(mountinfo.read()).at(self.view.mountpoint)
        if entry is None or entry.device != self.view.device or entry.root != b"/":
            raise MountGone(mountpoint=display(self.view.mountpoint))
        return entry.mount_id

    def close(self) -> None:
        """Take the mark away; waits no longer than a moment for a reading that a dead server holds up."""
        thread, self._thread = self._thread, None
        if thread is None:
            return
        with self._lock:
            self._stopping.set()
            self._tally.take()
            if self._ended:
                os.close(self._wake)
            else:
                os.eventfd_write(self._wake, 1)
        thread.join(_JOINING)

    def fileno(self) -> int | None:
        """None: a thread reads."""
        return None

    def stats(self) -> SourceStats:
        """As :meth:`HeatSource.stats`."""
        with self._lock:
            return SourceStats(
                limit=None,
                watches=0,
                armed=0,
                refused=0,
                events=self._events,
                overflows=self._overflows,
                unattributed=self._unattributed,
                sampled=self._tally.sampled,
            )

    def drain(self) -> int:
        """As :meth:`HeatSource.drain`; what the thread has read so far. Raises NoHeatSource where that has ended."""
        with self._lock:
            if self._failure is not None and not self._stopping.is_set():
                raise NoHeatSource(source=self.name, reason=str(self._failure)) from self._failure
            touched, no_room = self._tally.take()
            events, self._told = self._events - self._told, self._events
            lost, self._lost = self._lost, False
        for (path, kind), weight in touched.items():
            self.sink.touched(path, weight, kind)
        if lost or no_room:
            self.sink.overflowed()
        return events

    def catch_up(self) -> None:
        """As :meth:`HeatSource.catch_up`."""
        group = self._group
        if group is not None:
            self._read_pending(group)

    def disarm(self, paths: Iterable[bytes]) -> None:
        """As :meth:`HeatSource.disarm`; no event of theirs is left either, which would pin them."""
        quiet = set(paths)
        with self._reading:
            self._disarmed |= quiet
            group = self._group
            if group is None or not quiet:
                return
            if not self._stopping.is_set():
                self._for_each(quiet, lambda directory: group.leave_out(directory, fanotify.EVERYTHING))
        self._read_pending(group)

    def rearm(self, paths: Iterable[bytes]) -> Armed:
        """As :meth:`HeatSource.rearm`."""
        again = set(paths)
        with self._reading:
            self._disarmed -= again
            self._ignored -= again
            group = self._group
            if group is not None and again and not self._stopping.is_set():
                self._for_each(again, group.let_in)
        return Armed()

    # The thread

    def _serve(self, group: Fanotify, wake: int) -> None:
        try:
            self._read_until_closed(group, wake)
        except Exception as error:  # noqa: BLE001 - it belongs to whoever drains
            with self._lock:
                self._failure = error
        with self._reading:
            group.close()
            self._group = None
        with self._lock:
            self._ended = True
            if self._stopping.is_set():
                os.close(wake)

    def _read_until_closed(self, group: Fanotify, wake: int) -> None:
        poll = select.poll()
        poll.register(group.fileno(), select.POLLIN)
        poll.register(wake, select.POLLIN)
        self._leave_out_disarmed(group)
        while not self._stopping.is_set():
            ends = self._period_ends
            poll.poll(None if ends is None else max(0.0, ends - monotonic()) * 1000)
            if ends is not None and monotonic() >= ends:
                self._begin_period(group)
            if not self._stopping.wait(_GATHERING):
                self._read_pending(group)

    def _begin_period(self, group: Fanotify) -> None:
        with self._reading:
            group.let_all_in()
            self._ignored.clear()
            self._period_ends = None
            with self._lock:
                self._tally.new_period()
        self._leave_out_disarmed(group)

    def _leave_out_disarmed(self, group: Fanotify) -> None:
        with self._reading:
            self._for_each(self._disarmed, lambda directory: group.leave_out(directory, fanotify.EVERYTHING))

    def _read_pending(self, group: Fanotify) -> None:
        """All there is, or as much as the kernel keeps at once: it may come faster than it can be read."""
        failures = 0
        for _ in range(_PORTIONS):
            with self._reading:
                if self._stopping.is_set() or self._group is not group:
                    return
                try:
                    events = group.read()
                except OSError:  # the file of one event could not be opened, and that event is gone
                    failures += 1
                    with self._lock:
                        self._events += 1
                        self._unattributed += 1
                    if failures > _FAILURES:
                        return
                    continue
                if not events:
                    return
                self._take(group, events)

    def _take(self, group: Fanotify, events: list[RawEvent]) -> None:
        enough: set[bytes] = set()
        with ExitStack() as files:
            for event in events:
                if event.descriptor >= 0:
                    files.callback(os.close, event.descriptor)
            places = Places(self.view.device, *self._home)
            for event in events:
                enough.update(self._hear(event, places))
        self._leave_out(group, enough - self._ignored)

    def _hear(self, event: RawEvent, places: Places) -> list[bytes]:
        """Count one event; returns the directory where no more are to be heard of."""
        if event.mask & fanotify.FAN_Q_OVERFLOW:
            with self._lock:
                self._overflows += 1
                self._lost = True
            return []
        directory, kind = (
            (None, Kind.OPEN) if event.pid == self._own_pid else use_of(event.descriptor, event.pid, places)
        )
        is_promotable = directory is not None and self.view.may_promote(directory)
        with self._lock:
            self._events += 1
            if directory is None:
                self._unattributed += event.pid != self._own_pid
                return []
            if is_promotable:
                had_enough = directory not in self._disarmed and self._tally.add(directory, kind)
            else:
                had_enough = kind is Kind.OPEN
        return [directory] if had_enough else []

    def _leave_out(self, group: Fanotify, paths: set[bytes]) -> None:
        """Hear no more of the files in these directories before the next period."""
        if not paths or len(self._ignored) >= _MOST_DIRECTORIES:
            return
        if self._period_ends is None:
            self._period_ends = monotonic() + PERIOD
        self._ignored |= paths
        self._for_each(paths, lambda directory: group.leave_out(directory, fanotify.FILES))

    def _for_each(self, paths: Iterable[bytes], act: Callable[[int], None]) -> None:
        """Do something with descriptors of directories; those that are not there any more need nothing."""
        try:
            root = beneath.open_mount_root(self.view.mountpoint, self.view.device)
        except (MountGone, OSError):
            return
        try:
            for path in paths:
                with suppress(OSError), beneath.opened(root, path) as directory:
                    act(directory)
        finally:
            os.close(root)
