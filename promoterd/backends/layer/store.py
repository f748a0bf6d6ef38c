"""Copies of data in a layer that is in use: counted, added and evicted, each by a rename that replaces the other form.

A dentry of the overlay keeps the file that it was made of, and so does whoever has it open or mapped: they go on
reading the same bytes, from the copy that has no name any more or from the server.
"""

import os
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from heapq import nsmallest
from itertools import islice
from threading import RLock

from promoterd.backends.base import Plan
from promoterd.backends.data import DataStore, Holding, Wants
from promoterd.backends.layer import copying, entries
from promoterd.backends.layer.groups import Group, groups
from promoterd.backends.layer.home import Home, parents_times_kept, private_place
from promoterd.backends.layer.plans import LayerPlan
from promoterd.overlay import beneath, syscalls, xattrs
from promoterd.overlay.attributes import Attributes
from promoterd.overlay.listing import Layers, opened_to_read
from promoterd.overlay.mounts import Overlay
from promoterd.pacing import owe
from promoterd.paths import join

_USED = b"1"
_AT_ONCE = 8 << 20
_MOST = 10_000
"""Copies that one filling adds at most; they are chosen in memory."""


class LayerData(DataStore):
    """The copies in the files half. ``changing`` is held by whoever changes the halves."""

    def __init__(self, overlay: Overlay, changing: RLock, batch: Callable[[], int]) -> None:
        self._overlay = overlay
        self._changing = changing
        self._batch = batch
        self._workers = 0

    @property
    def is_at_work(self) -> bool:
        """Whether there is something of ours in the stage; ask while ``changing`` is held."""
        return self._workers > 0

    @contextmanager
    def _working(self) -> Iterator[None]:
        with self._changing:
            self._workers += 1
        try:
            yield
        finally:
            with self._changing:
                self._workers -= 1

    def was_used(self, layers: Layers) -> bool:
        """Written down on the half's root."""
        return xattrs.get(xattrs.descriptor(layers.metadata[0]), xattrs.DATA) is not None

    def forget_use(self, layers: Layers) -> None:
        """Taken back."""
        xattrs.remove(xattrs.descriptor(layers.metadata[0]), xattrs.DATA)

    def holding(self, layers: Layers, path: bytes, wants: Wants | None) -> Holding:
        """One look at each file of the directory."""
        copies = held = unwanted = lacking = missing = smallest = 0
        try:
            with opened_to_read(layers.metadata[0], path) as files:
                for group in groups(files):
                    wanted = group.is_wanted(files, path, wants)
                    size = group.status.st_size
                    if group.copy is not None:
                        copies += 1
                        held += size
                        unwanted += not wanted
                    elif wanted:
                        smallest = min(smallest, size) if lacking else size
                        lacking += 1
                        missing += size
        except (FileNotFoundError, NotADirectoryError):
            return Holding()
        return Holding(copies, held, unwanted, lacking, missing, smallest)

    def wanted(self, plan: Plan) -> dict[bytes, int]:
        """By the sizes that were listed."""
        assert isinstance(plan, LayerPlan)  # noqa: S101 - plan() made it
        found = {}
        for directory in plan.directories:
            wants = plan.demands[directory.path].wants_data
            if wants is not None and directory.listing.attributes is not None:
                rows = zip(directory.listing.entries, directory.listing.attributes, strict=True)
                found[directory.path] = sum(
                    row.size
                    for name, row in rows
                    if stat.S_ISREG(row.mode) and wants(join(directory.path, os.fsencode(name)), row.size)
                )
        return found

    def fill(self, path: bytes, wants: Wants, *, oldest_allowed_ns: int, room: int) -> Iterator[int]:
        """Batch by batch: copied aside, made durable, and renamed over the stubs."""
        with Layers(self._overlay) as layers, opened_to_read(layers.metadata[0], path) as files:
            stubs = (group for group in groups(files) if group.copy is None)
            lacking = nsmallest(_MOST, (group for group in stubs if group.is_wanted(files, path, wants)), key=_size_of)
        for batch in _batches(lacking, room, self._batch):
            yield sum(1 + copying.cost(group.status.st_size) for group in batch)
            with self._working(), Layers(self._overlay) as layers, Home(layers) as home:
                self._fill(home, path, batch, oldest_allowed_ns)

    def _fill(self, home: Home, path: bytes, batch: Sequence[Group], oldest_allowed_ns: int) -> None:
        note_use(home.files)
        with ExitStack() as stack:
            lowers = [
                stack.enter_context(beneath.opened(home.layers.lowers[index], path))
                for index in home.layers.contributing(path)
            ]
            if any(_is_young(lower, oldest_allowed_ns) for lower in lowers):
                return
            files = stack.enter_context(beneath.opened(home.files, path, beneath.READ_DIRECTORY))
            place = stack.enter_context(private_place(home.stage))
            copied = {
                str(number): group
                for number, group in enumerate(batch)
                if _pull(lowers, group, files, path, place, str(number), oldest_allowed_ns)
            }
            self._exchange(home, path, files, place, copied)

    def evict(self, path: bytes, wants: Wants | None, at_least: int) -> int:
        """Those that nobody wants first. Nothing is asked of the server."""
        with self._working(), Layers(self._overlay) as layers, Home(layers) as home:
            try:
                files = beneath.open_beneath(home.files, path, beneath.READ_DIRECTORY)
            except FileNotFoundError:
                return 0
            try:
                unwanted = (group for group in groups(files) if not group.is_wanted(files, path, wants))
                freed = self._evict(home, path, files, unwanted, None)
                return freed + self._evict(home, path, files, groups(files), max(0, at_least - freed))
            finally:
                os.close(files)

    def _evict(self, home: Home, path: bytes, files: int, among: Iterator[Group], at_least: int | None) -> int:
        """Replace copies by stubs, all or until enough bytes are freed; says how many were.

        What is listed once more while it is replaced is a stub by then.
        """
        freed = 0
        copies = (group for group in among if group.copy is not None)
        while at_least is None or freed < at_least:
            going: dict[str, Group] = {}
            with private_place(home.stage) as place:
                for group in islice(copies, self._batch()):
                    source = str(len(going))
                    _make_stub(files, path, group, place, source)
                    going[source] = group
                    freed += group.status.st_size
                    if at_least is not None and freed >= at_least:
                        break
                self._exchange(home, path, files, place, going)
            if not going:
                break
        return freed

    def mend(self, layers: Layers, path: bytes) -> None:
        """The times of the half's directory, which the overlay shows, are those of its twin."""
        try:
            with beneath.opened(layers.metadata[1], path) as rest, beneath.opened(layers.metadata[0], path) as files:
                right, there = os.fstat(rest), os.fstat(files)
                if right.st_mtime_ns != there.st_mtime_ns:
                    os.utime(xattrs.descriptor(files), ns=(right.st_atime_ns, right.st_mtime_ns))
        except (FileNotFoundError, NotADirectoryError):
            return

    def _exchange(self, home: Home, path: bytes, files: int, place: int, made: dict[str, Group]) -> None:
        """Put what was made in place of what is there, under all its names, once it is durable."""
        if not made:
            return
        home.sync()
        with self._changing, parents_times_kept(home, join(path, b".")):
            for source, group in made.items():
                if not group.is_as_before(files):
                    continue
                for name in group.names[1:]:
                    os.link(source, f"{source}.link", src_dir_fd=place, dst_dir_fd=place)
                    os.rename(f"{source}.link", name, src_dir_fd=place, dst_dir_fd=files)
                os.rename(source, group.names[0], src_dir_fd=place, dst_dir_fd=files)
            home.sync()


def note_use(files: int) -> None:
    """Write down that there may be copies, before there are any. Raises OSError."""
    itself = xattrs.descriptor(files)
    if xattrs.get(itself, xattrs.DATA) is None:
        xattrs.put(itself, xattrs.DATA, _USED)


def _size_of(group: Group) -> int:
    return group.status.st_size


def _batches(lacking: Sequence[Group], room: int, most: Callable[[], int]) -> Iterator[list[Group]]:
    """Those that there is room for, the small ones first, not too many and not too much at once."""
    batch: list[Group] = []
    data = 0
    for group in lacking:
        size = group.status.st_size
        if size > room:
            break
        room -= size
        batch.append(group)
        data += size
        if len(batch) >= most() or data >= _AT_ONCE:
            yield batch
            batch, data = [], 0
    if batch:
        yield batch


def _pull(  # noqa: PLR0913, PLR0917 - from where, what, to where
    lowers: Sequence[int], group: Group, files: int, path: bytes, place: int, target: str, oldest_allowed_ns: int
) -> bool:
    """Make the copy that goes in place of a stub; False where the server has another file than the stub says."""
    first = group.first(files, path)
    if first is None:
        return False
    for lower in lowers:
        with suppress(OSError):
            owe(1)
            now = copying.now_at(lower, first)
            if now is None:
                continue
            if not entries.is_current(group.status, now) or max(now.mtime_ns, now.ctime_ns) > oldest_allowed_ns:
                return False
            break
    else:
        return False
    extra = entries.read_xattrs(xattrs.entry(files, group.names[0]))
    return copying.pull(lower, first, now, place, target, extra)


def _is_young(lower: int, oldest_allowed_ns: int) -> bool:
    now = syscalls.statx(lower, force_sync=True)
    return max(now.mtime_ns, now.ctime_ns) > oldest_allowed_ns


def _make_stub(files: int, path: bytes, group: Group, place: int, target: str) -> None:
    """What goes in place of a copy: it looks the same, and finds its data on the server."""
    name = group.names[0]
    extra = entries.read_xattrs(xattrs.entry(files, name))
    entries.make_stub(place, target, Attributes.of(group.status), b"/" + join(path, os.fsencode(name)), extra)
