"""Heat from inotify watches on the directories of the overlay itself.

What it hears: an entry opened or executed, a directory opened, made, renamed or removed, by whomever. What no watch
tells: stat, access, readlink, and lookups of names that do not exist; a directory that is searched in vain must be
opened or listed once in a while to be found. inotify(7) names no process, so our own work is kept out otherwise: we
open with O_PATH, which raises no event, and where that is not enough the directory is disarmed.

IN_ACCESS is not asked for. It would come for every read(2) of every file, and a directory that is read was opened.
"""

import errno
import os
import threading
from collections.abc import Iterable
from contextlib import suppress

from promoterd.errors import WatchLimitReached
from promoterd.heat.base import Armed, HeatSink, HeatSource, MountView, SourceStats
from promoterd.heat.watchtable import HEARD, STRUCTURE, WatchTable, digest
from promoterd.inotify import Closed, Inotify, RawEvent, watch_limit
from promoterd.overlay import beneath
from promoterd.paths import ancestors

_GONE = frozenset({
    errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EXDEV, errno.ESTALE, errno.ENAMETOOLONG, errno.EACCES,
})  # fmt: skip
_MOST_UNCLAIMED = 4096


class InotifySource(HeatSource):
    """Watches directories of the overlay, and their ancestors too, whose renaming would move them unheard."""

    name = "inotify"

    def __init__(self, view: MountView, sink: HeatSink) -> None:
        super().__init__(view, sink)
        self._instance: Inotify | None = None
        self._lock = threading.Lock()  # never held over anything that can wait for the mount
        self._table = WatchTable()
        self._adding = 0  # calls that are about to add a watch, wherever they hang
        self._entering = 0  # those of them whose watch may be there already, but is not in the table yet
        self._dead: set[int] = set()
        self._refused: dict[bytes, None] = {}
        self._muted: set[bytes] = set()
        self._unclaimed: list[RawEvent] = []
        self._events = 0
        self._overflows = 0

    @classmethod
    def unfit(cls) -> str | None:
        """As :meth:`HeatSource.unfit`."""
        try:
            watch_limit()
        except OSError as error:
            return f"this kernel has no inotify: {error}"
        return None

    def start(self) -> None:
        """Open the inotify instance. Raises InstanceLimitReached."""
        self._instance = Inotify()

    def close(self) -> None:
        """Drop all watches."""
        with self._lock:
            instance, self._instance = self._instance, None
            self._table = WatchTable()
            self._unclaimed.clear()
            self._refused.clear()
            self._muted.clear()
            self._dead.clear()
        if instance:
            instance.close()

    def fileno(self) -> int | None:
        """The inotify descriptor."""
        return self._instance.fileno() if self._instance else None

    def paths(self) -> list[bytes]:
        """As :meth:`HeatSource.paths`."""
        with self._lock:
            return self._table.heard()

    def refused(self) -> list[bytes]:
        """As :meth:`HeatSource.refused`."""
        with self._lock:
            return list(self._refused)

    def limit(self) -> int:
        """How many watches policy lets us use, and the kernel grants at all."""
        granted = watch_limit()
        return min(self.view.max_watches.of(granted), granted)

    def stats(self) -> SourceStats:
        """As :meth:`HeatSource.stats`."""
        limit = self.limit()
        with self._lock:
            return SourceStats(
                limit=limit,
                watches=len(self._table),
                armed=self._table.heard_count(),
                refused=len(self._refused),
                events=self._events,
                overflows=self._overflows,
            )

    def drain(self) -> int:
        """As :meth:`HeatSource.drain`."""
        instance = self._instance
        if instance is None:
            return 0
        events = instance.read()
        with self._lock:
            found = digest([*self._unclaimed, *events], self._table, self.view.may_promote_below)
            self._dead.update(found.dead)
            # an event can come before the thread that adds the watch has entered it in the table
            unclaimed = [event for event in found.unclaimed if self._adding and event.wd not in self._dead]
            if len(unclaimed) > _MOST_UNCLAIMED:
                unclaimed.clear()
                found.overflows += 1
            self._unclaimed = unclaimed
            if found.unmounted:
                self._table = WatchTable()
            self._events += len(events)
            self._overflows += found.overflows
            self._forget_vanished({path for path, appeared in found.changes if not appeared})
        self._sweep()
        if found.overflows:
            self._drop_dead(instance)
        for path, appeared in found.changes:
            (self.sink.appeared if appeared else self.sink.vanished)(path)
        for (path, kind), weight in found.touched.items():
            self.sink.touched(path, weight, kind)
        if found.overflows:
            self.sink.overflowed()
        if found.unmounted:
            self.sink.vanished(b"")
        return len(events)

    def disarm(self, paths: Iterable[bytes]) -> None:
        """As :meth:`HeatSource.disarm`."""
        muted = set(paths)
        with self._lock:
            self._muted |= muted
            self._no_longer_refused(muted)
            self._drop(muted)
        self._sweep()

    def rearm(self, paths: Iterable[bytes]) -> Armed:
        """As :meth:`HeatSource.rearm`."""
        again = list(paths)
        with self._lock:
            self._muted.difference_update(again)
        return self._arm(again, anew=True)

    def arm(self, paths: Iterable[bytes]) -> Armed:
        """As :meth:`HeatSource.arm`."""
        return self._arm(paths, anew=False)

    def _arm(self, paths: Iterable[bytes], *, anew: bool) -> Armed:
        instance = self._instance
        asked = [path for path in dict.fromkeys(paths) if self.view.may_promote(path)]
        with self._lock:
            wanted = [path for path in asked if path not in self._muted and (anew or not self._table.is_heard(path))]
        if instance is None or not wanted:
            return Armed()
        refused: list[bytes] = []
        gone: list[bytes] = []
        failed: list[tuple[bytes, int]] = []
        root = beneath.open_mount_root(self.view.mountpoint, self.view.device)
        try:
            limit = self.limit()
            for path in wanted:
                try:
                    gone += self._cover(instance, root, path, limit)
                    gone += self._watch(instance, root, path, limit, HEARD)
                except WatchLimitReached:
                    refused.append(path)
                    with self._lock:
                        self._drop([path])  # it had one to be renewed, which is dead for all that is known
                    limit = min(limit, len(self._table))  # do not ask the server for what the kernel will not grant
                except OSError as error:
                    if error.errno in _GONE:
                        gone += self._forget(path)
                    else:
                        failed.append((path, error.errno or 0))
        except Closed:
            return Armed()  # nobody hears any more
        finally:
            os.close(root)
            self._sweep()
        with self._lock:
            self._no_longer_refused(wanted)
            self._refused.update(dict.fromkeys([*refused, *(path for path, _ in failed)]))
        return Armed(tuple(refused), tuple(gone), tuple(failed))

    def _cover(self, instance: Inotify, root: int, path: bytes, limit: int) -> list[bytes]:
        """Watch the ancestors that are not watched yet; returns the paths that were found to be wrong."""
        above = [b"", *ancestors(path)] if path else []
        with self._lock:
            missing = [each for each in above if each not in self._table and each not in self._muted]
        return [wrong for each in missing for wrong in self._watch(instance, root, each, limit, STRUCTURE)]

    def _watch(self, instance: Inotify, root: int, path: bytes, limit: int, mask: int) -> list[bytes]:
        """Add one watch and enter it in the table; returns the paths that were found to be wrong."""
        with self._lock:
            if path not in self._table and len(self._table) + self._adding >= limit:
                raise WatchLimitReached(limit=limit)
            self._adding += 1
        try:
            with beneath.opened(root, path) as directory:
                wrong = self._add(instance, directory, path, mask)
                # whoever renamed it before the watch was there has left no event of that
                if _name(directory) != (_name(root).rstrip(b"/") + b"/" + path).rstrip(b"/"):
                    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        finally:
            with self._lock:
                self._adding -= 1
            self._sweep()
        return wrong

    def _add(self, instance: Inotify, directory: int, path: bytes, mask: int) -> list[bytes]:
        with self._lock:
            self._entering += 1
        try:
            wd = instance.add(directory, mask)
            with self._lock:
                if self._instance is not instance:
                    raise Closed
                return self._enter(wd, path, heard=mask == HEARD)
        finally:
            with self._lock:
                self._entering -= 1

    def _enter(self, wd: int, path: bytes, *, heard: bool) -> list[bytes]:
        if path in self._muted:
            self._dead.add(wd)
            return []
        displaced = self._table.put(wd, path, heard=heard)
        if displaced.wd is not None:
            self._dead.add(displaced.wd)
        if displaced.path is None:
            return []
        wrong = [found for found in self._table.below(displaced.path) if found != path]
        self._drop(wrong)
        return [displaced.path, *wrong]

    def _forget(self, path: bytes) -> list[bytes]:
        """Drop what is not there any more, with all below it; returns the paths, the first one known or not."""
        with self._lock:
            known = self._table.below(path)
            self._drop(known)
        return [path, *(found for found in known if found != path)]

    def _forget_vanished(self, vanished: set[bytes]) -> None:
        self._no_longer_refused(vanished)
        if vanished:
            self._muted = {path for path in self._muted if vanished.isdisjoint([path, *ancestors(path)])}

    def _no_longer_refused(self, paths: Iterable[bytes]) -> None:
        for path in paths:
            self._refused.pop(path, None)

    def _drop(self, paths: Iterable[bytes]) -> None:
        self._dead.update(wd for wd in map(self._table.drop, paths) if wd is not None)

    def _sweep(self) -> None:
        """Remove the watches that the table has given up.

        Not while another thread may just have been given one of them again, since an inode that is watched already
        keeps its watch; whoever is last to enter one sweeps. Removing asks no file system.
        """
        with self._lock, suppress(Closed):
            if self._entering or self._instance is None:
                return
            while self._dead:
                wd = self._dead.pop()
                if self._table.path(wd) is None:
                    self._instance.remove(wd)

    def _drop_dead(self, instance: Inotify) -> None:
        """Drop what the kernel has dropped: after an overflow nothing else tells."""
        with self._lock:
            known = self._table.watches()
        dead = known - instance.identities().keys()
        with self._lock:
            self._drop([path for path in map(self._table.path, dead) if path is not None])


def _name(descriptor: int) -> bytes:
    return os.readlink(b"/proc/self/fd/%d" % descriptor)
