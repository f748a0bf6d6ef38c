"""What the backends that shadow in the upper layer share: copy-up in batches, verification, and the state on disk."""

import errno
import stat
import threading
import time
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from itertools import count
from typing import ClassVar, TypeVar

from promoterd.backends.base import Backend, Busy, MarkState, OnDisk, Plan, PlannedDirectory, Traces
from promoterd.backends.lanes import Piece, side_by_side, spread, steps
from promoterd.backends.reading import read_back
from promoterd.backends.reopening import finish_interrupted, reopen_upper
from promoterd.backends.traces import traces_below
from promoterd.overlay import beneath, copyup, ghosts, mounts, rolls, xattrs
from promoterd.overlay.activation import is_let_go, mark_in_effect
from promoterd.overlay.ancestors import adopt, adopt_ancestors, follow_lower
from promoterd.overlay.gate import UpperGate
from promoterd.overlay.ghosts import Removed
from promoterd.overlay.listing import Layers, LowerListing, UpperEntry
from promoterd.overlay.mounts import Overlay
from promoterd.overlay.scratch import lane
from promoterd.overlay.shadows import completion_of, is_unmodified_shadow, others_own
from promoterd.pacing import owe
from promoterd.paths import show
from promoterd.payback import COPIED_UP, Prices
from promoterd.provenance import Provenance, decode

T = TypeVar("T")

PASSES = 8
"""How often a directory that keeps changing is verified again before it counts as busy."""
_CLOCK_REALTIME_COARSE = 5  # include/uapi/linux/time.h
_TICK = 0.02
"""Seconds after which the kernel's coarse clock, which stamps inodes, has moved on (HZ is 100 or more)."""


class UpperBackend(Backend):
    """Shadows by copy-up through the live overlay; subclasses say how a directory is marked."""

    marks: ClassVar[bool] = True
    requests_per_entry: ClassVar[float] = 6.0
    uses_scratch: ClassVar[bool] = True
    mark_value: ClassVar[bytes]

    def __init__(self, overlay: Overlay, *, scratch: bytes, batch: int = 512, lanes: int = 2) -> None:
        super().__init__(overlay, scratch=scratch, batch=batch, lanes=lanes)
        self._shared_parents = threading.Lock()
        self._free_lanes: list[int] = []
        self._next_lane = count()
        self.held: list[bytes] = []

    def prices(self, *, with_data: bool) -> Prices:
        """As :meth:`Backend.prices`."""
        del with_data
        return COPIED_UP

    def shadow(self, plan: Plan) -> Iterator[int]:
        """Copy up what is not in upper yet: the directories first, then what is in them, several side by side."""
        with _busy_where_replaced(plan):
            yield from self._shadow(plan)

    def _shadow(self, plan: Plan) -> Iterator[int]:
        # two copy-ups at once in one parent leave it a wrong mtime: ovl_copy_up_one() takes the parent's times before
        # it holds the lock under which it sets them back (fs/overlayfs/copy_up.c)
        with self._shared_parents, Layers(self.overlay) as layers:
            adopt_ancestors(layers, plan.path)
            adopt(layers, plan.path, layers.contributing(plan.path))
        for directories in self._batches(plan.directories):
            yield sum(directory.path != plan.path for directory in directories)  # it is no entry of its own
            with Layers(self.overlay) as layers:
                for directory in directories:
                    owe(1)
                    # it keeps a full one's own times, and follows lower's attributes once it is reopened (R2)
                    adopt(layers, directory.path, directory.layers)
        for step in steps(self._pieces(plan), lambda: self.batch * self.lanes):
            yield sum(len(names) for _, names in step)
            side_by_side([partial(self._copy_pieces_up, pieces) for pieces in spread(step, self.lanes)])

    def _pieces(self, plan: Plan) -> Iterator[Piece]:
        """The work of the plan, directory by directory, in pieces of at most a batch."""
        for directory in plan.directories:
            with Layers(self.overlay) as layers:
                work = self._unshadowed(layers, directory, layers.list_upper(directory.path))
            for batch in self._batches(work):
                yield directory.path, batch

    def _batches(self, things: list[T]) -> Iterator[list[T]]:
        """In their order, each as large as a batch is when it is taken."""
        start = 0
        while start < len(things):
            size = self.batch
            yield things[start : start + size]
            start += size

    def complete(self, plan: Plan) -> list[bytes]:
        """Passes over the closure until one finds nothing to do and no change, then make it durable and mark it."""
        paths = [directory.path for directory in plan.directories]
        if not paths:
            return []
        with _busy_where_replaced(plan), Layers(self.overlay) as layers, UpperGate(layers.upper, paths) as gate:
            try:
                self._settle(layers, plan, gate)
                self._mark(layers, plan, gate)
            except BaseException:
                _forget_unmarked(layers, plan)
                raise
        return paths

    def on_disk(self, layers: Layers, path: bytes) -> OnDisk:
        """The mark and its provenance in the upper layer, and whether it answers on the live mount."""
        mark = layers.upper_xattr(path, xattrs.OPAQUE)
        provenance = decode(layers.upper_xattr(path, xattrs.PROVENANCE))
        if mark is None:
            return OnDisk(MarkState.NONE)
        if provenance is None or mark != self.mark_value:
            return OnDisk(MarkState.FOREIGN)
        if not provenance.is_at(path):
            return OnDisk(MarkState.MOVED, provenance)
        return OnDisk(MarkState.OURS, provenance, self._in_effect(layers, path))

    @abstractmethod
    def _mark(self, layers: Layers, plan: Plan, gate: UpperGate) -> None:
        """Mark the plan's directories, children first; each level is durable before the next."""

    def reopen(self, paths: Sequence[bytes], *, check_quiet: Callable[[], None]) -> None:
        """Undo the marks; see :func:`promoterd.backends.reopening.reopen_upper`."""
        self.held += reopen_upper(self.overlay, paths, check_quiet=check_quiet)

    def read_back(self, layers: Layers, path: bytes) -> str | None:
        """Compares the listing, and the attributes of a few entries, with upper's."""
        return read_back(layers, path)

    def unshadowed(self, layers: Layers, path: bytes, listing: LowerListing) -> set[str]:
        """Names without an upper entry, and upper files that would look for their data beside themselves."""
        directory = PlannedDirectory(path, (), listing)
        return {name for name, _ in self._unshadowed(layers, directory, layers.list_upper(path))}

    def checkable(self, layers: Layers, path: bytes) -> list[str]:
        """The files of which upper holds nothing but a copy of lower's attributes."""
        completion = completion_of(layers, path)
        with beneath.opened(layers.upper, path) as upper:
            return [
                name
                for name, entry in layers.list_upper(path).items()
                if stat.S_ISREG(entry.mode) and is_unmodified_shadow(upper, name, entry, completion)
            ]

    def traces(self, layers: Layers, path: bytes) -> Traces:
        """What is ours in the upper layer, at ``path`` and below."""
        return traces_below(layers, path)

    def sweep(self, layers: Layers) -> int:
        """Remove rolls that belong to no mark; how much is still shown that was removed."""
        rolls.sweep(layers)
        self.held = [path for path in self.held if not is_let_go(layers.root, path)]
        return len(self.held)

    def finish_reopening(self, layers: Layers, path: bytes) -> int:
        """Finish it or undo it; see :func:`promoterd.backends.reopening.finish_interrupted`."""
        directories, held = finish_interrupted(layers, path)
        self.held += held
        return directories

    def remove_ghost(self, layers: Layers, path: bytes) -> Removed:
        """Remove what we copied up and nobody changed; see :mod:`promoterd.overlay.ghosts`."""
        removed = ghosts.remove_ghost(layers, path, self.scratch)
        self.held += removed.held
        return removed

    def follow(self, layers: Layers, path: bytes) -> bool:
        """Through the overlay, but for what a user changed; see :mod:`promoterd.overlay.ancestors`."""
        return follow_lower(layers, path)

    def _settle(self, layers: Layers, plan: Plan, gate: UpperGate) -> None:
        """Pass over the closure until nothing is left to do, nobody changes it, and all of it is durable."""
        for _ in range(PASSES):
            time.sleep(_TICK)
            gate.changed()
            began = time.clock_gettime_ns(_CLOCK_REALTIME_COARSE)
            if not self._verify(layers, plan):
                continue
            self._write_down(layers, plan, began)
            layers.sync_upper()
            if not gate.changed():
                return
        raise Busy(path=show(plan.path), reason=f"still changing after {PASSES} passes")

    def _in_effect(self, layers: Layers, path: bytes) -> bool | None:
        try:
            return mark_in_effect(layers.root, layers.upper, path)
        except FileNotFoundError:
            return None

    def _unshadowed(
        self, layers: Layers, directory: PlannedDirectory, upper: dict[str, UpperEntry]
    ) -> list[tuple[str, int]]:
        """Names, with their modes, that a copy-up has to be triggered for."""
        del layers
        return [(name, mode) for name, mode in directory.listing.entries.items() if name not in upper]

    @contextmanager
    def _lane(self) -> Iterator[int]:
        """The number of a lane that no other thread is on."""
        try:
            number = self._free_lanes.pop()
        except IndexError:
            number = next(self._next_lane)
        try:
            yield number
        finally:
            self._free_lanes.append(number)

    def _copy_pieces_up(self, pieces: Sequence[Piece]) -> None:
        """Trigger the copy-up of these entries; the links go through a directory that nobody else uses meanwhile.

        link(2) holds the lock of the directory that it links into for as long as the copy-up takes (do_linkat).
        """
        with (
            Layers(self.overlay) as layers,
            self._lane() as number,
            lane(layers.root, layers.upper, self.scratch, number) as own,
        ):
            for path, batch in pieces:
                with beneath.opened(layers.root, path) as directory:
                    for name, mode in batch:
                        owe(self.requests_per_entry)
                        try:
                            copyup.copy_up(directory, name, mode, own)
                        except OSError as error:
                            refused = copyup.explain_failure(error, path, name)
                            if refused is not None:
                                raise refused from error
                            raise

    def _verify(self, layers: Layers, plan: Plan) -> bool:
        """One pass: every lower name shadowed, the merged listing as expected, the server's stamps unchanged.

        Does the work that it finds and then returns False. Raises Busy where the server changed.
        """
        clean = True
        for directory in plan.directories:
            upper = layers.list_upper(directory.path)
            work = self._unshadowed(layers, directory, upper)
            if work:
                self._copy_pieces_up([(directory.path, work)])
                clean = False
                continue
            self._check_children(layers, plan, directory, upper)
            if layers.stamps(directory.path, directory.layers) != directory.listing.stamps:
                raise Busy(path=show(plan.path), reason=f"the server changed {show(directory.path)}")
            visible = {name for name, entry in upper.items() if not entry.whiteout}
            clean = clean and set(layers.list_merged(directory.path)) == visible
            directory.others = others_own(layers, directory.path, directory.listing, upper)
        return clean

    def _check_children(
        self, layers: Layers, plan: Plan, directory: PlannedDirectory, upper: dict[str, UpperEntry]
    ) -> None:
        """Raise Busy where a child directory does not allow the mark."""

    def _write_down(self, layers: Layers, plan: Plan, began_ns: int) -> None:
        """Beside each directory its provenance, and in its roll its names, for a reopening."""
        identities = [mounts.lower_identity(layer) for layer in self.overlay.lowers]
        for directory in plan.directories:
            names, others = directory.listing.entries, directory.others
            rolls.write(self.overlay, directory.path, began_ns, names.keys() - others, others)
            record = Provenance.of(
                self.name,
                directory.path,
                [identities[index] for index in directory.layers],
                directory.listing.stamps,
                began_ns,
                len(names),
                rolls.place(self.overlay, directory.path),
            )
            with beneath.opened(layers.upper, directory.path) as opened:
                xattrs.put(xattrs.descriptor(opened), xattrs.PROVENANCE, record.encode())


@contextmanager
def _busy_where_replaced(plan: Plan) -> Iterator[None]:
    """A directory of the plan that is not there any more, or is no directory: somebody was at work."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            raise
        raise Busy(path=show(plan.path), reason="a directory in it was removed or renamed") from error


def _forget_unmarked(layers: Layers, plan: Plan) -> None:
    """After a failure: what was written beside marks that were not set."""
    for directory in plan.directories:
        with suppress(OSError), beneath.opened(layers.upper, directory.path) as opened:
            itself = xattrs.descriptor(opened)
            if xattrs.get(itself, xattrs.OPAQUE) is None:
                rolls.discard(layers.overlay, directory.path)
                xattrs.remove(itself, xattrs.PROVENANCE)
