"""``layer``: a local metadata layer between upper and the server, built one hot directory at a time.

Stat, access, missing names and readdir of a complete directory cost the server nothing, upper is never touched, and
with complete ancestors a server that is gone keeps nobody waiting. Files fetch their data when they are opened, through
a data-only layer (Linux 6.5; overlayfs.rst, data-only lower layers). In the manner of composefs, but live.
"""

import os
import stat
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import ClassVar

from promoterd.backends.base import Backend, Busy, MarkState, OnDisk, Plan, Terms, Traces
from promoterd.backends.layer import copying, effect, entries, graveyard
from promoterd.backends.layer.home import Home, empty, layer_xattr
from promoterd.backends.layer.lower import lower_attributes
from promoterd.backends.layer.placing import Placing
from promoterd.backends.layer.planning import is_complete, plan_layer, plan_resync
from promoterd.backends.layer.plans import LayerPlan
from promoterd.backends.layer.renewal import mounting_of
from promoterd.backends.layer.staging import Staged, Staging
from promoterd.backends.layer.store import LayerData
from promoterd.backends.layer.verifying import verify_names
from promoterd.backends.layer.walking import directories_in, marked_in_layer, names_in
from promoterd.backends.layer.watched import refuse_kept
from promoterd.overlay import activation, beneath, xattrs
from promoterd.overlay.attributes import Attributes
from promoterd.overlay.fitness import Facts, Finding
from promoterd.overlay.fitness_of_layers import layer_findings
from promoterd.overlay.ghosts import Removed
from promoterd.overlay.listing import Layers, LowerListing
from promoterd.overlay.mounts import Overlay
from promoterd.paths import ancestors, is_below, join, parent, show
from promoterd.payback import LAYER, LAYER_WITH_DATA, Prices
from promoterd.provenance import decode


class LayerBackend(Backend):
    """Keeps complete directories in the two halves of a metadata layer; see ``docs/backends.md``."""

    name = "layer"
    marks = True
    requests_per_entry: ClassVar[float] = 0.5
    resyncs: ClassVar[bool] = True
    reopens_live: ClassVar[bool] = True
    effect_shows_in_inode: ClassVar[bool] = True

    def __init__(self, overlay: Overlay, *, scratch: bytes, batch: int = 512, lanes: int = 2) -> None:
        super().__init__(overlay, scratch=scratch, batch=batch, lanes=lanes)
        self._stagings: dict[int, Staging] = {}
        self._changing = threading.RLock()
        """Held by whoever changes the halves: promotions side by side have ancestors in common."""
        self.data: LayerData = LayerData(overlay, self._changing, lambda: self.batch)

    @classmethod
    def findings(cls, overlay: Overlay, facts: Facts) -> list[Finding]:
        """What speaks against a metadata layer on this mount."""
        return layer_findings(overlay, facts)

    def prices(self, *, with_data: bool) -> Prices:
        """As :meth:`Backend.prices`."""
        return LAYER_WITH_DATA if with_data else LAYER

    @property
    def place(self) -> bytes:
        """The directory that holds both halves."""
        return self.overlay.layer_home or b"/"

    def plan(self, layers: Layers, path: bytes, terms: Terms) -> Plan:
        """The directory, with what is below it and above it as policy allows."""
        return plan_layer(layers, path, terms)

    def resync(self, layers: Layers, path: bytes, terms: Terms) -> Plan:
        """The directory alone, once more; what is younger than policy allows stops being a mark at once."""
        plan = plan_resync(layers, path, terms)
        if not plan.mark and layer_xattr(layers, path, xattrs.OPAQUE) is not None:
            with beneath.opened(layers.metadata[1], path) as directory:
                xattrs.remove(xattrs.descriptor(directory), xattrs.OPAQUE)
        return plan

    def shadow(self, plan: Plan) -> Iterator[int]:
        """Build everything aside."""
        assert isinstance(plan, LayerPlan)  # noqa: S101 - plan() made it
        staging = Staging(self.overlay, plan, lambda: self.batch)
        with self._changing:  # a sweep empties the stage where nothing is being built
            self._stagings[id(plan)] = staging
        yield from staging.build()

    def abandon(self, plan: Plan) -> None:
        """Remove what was built aside and not put in place."""
        staging = self._stagings.pop(id(plan), None)
        if staging is not None:
            staging.remove()

    def complete(self, plan: Plan) -> list[bytes]:
        """Verify, make durable, and put in place: children first, and in each the files first and the mark last."""
        staging = self._stagings.get(id(plan))
        if staging is None:
            return []
        try:
            with (
                self._changing,
                Layers(self.overlay) as layers,
                Home(layers) as home,
                staging.opened(home) as place,
            ):
                for staged in staging.staged.values():
                    verify_names(layers, staged.directory)
                home.sync()
                placing = Placing(home, place, mounting_of(self.overlay))
                for staged in staging.standing_alone():
                    self._put(home, placing, staging, staged)
        except FileNotFoundError as error:
            raise Busy(path=show(plan.path), reason="a directory in it was removed or renamed") from error
        finally:
            self.abandon(plan)
        return list(staging.staged) if staging.plan.mark else []

    def _put(self, home: Home, placing: Placing, staging: Staging, staged: Staged) -> None:
        path = staged.directory.path
        placing.ensure_ancestors(path)
        if not beneath.exists_beneath(home.rest, path):
            if staged.in_place:
                raise Busy(path=show(path), reason="it was taken out of the layer meanwhile")
            placing.put_whole(staged)
            return
        provenance = staging.provenance(staged.directory)
        with beneath.opened(home.rest, path) as directory:
            itself = xattrs.descriptor(directory)
            was_ours = xattrs.get(itself, xattrs.PROVENANCE) is not None
            if xattrs.get(itself, xattrs.OPAQUE) is None:  # from here on it is looked after (R1, R8)
                xattrs.put(itself, xattrs.PROVENANCE, provenance)
            placing.merge(staged, *staging.attributes(home, path), may_be_in_effect=was_ours)
            home.sync()
            xattrs.put(itself, xattrs.PROVENANCE, provenance)
            if staging.plan.mark:
                home.sync()
                xattrs.put(itself, xattrs.OPAQUE, xattrs.OPAQUE_YES)
        home.sync()

    def on_disk(self, layers: Layers, path: bytes) -> OnDisk:
        """The mark and its provenance in the rest half. That it is in effect can only be disproven here."""
        mark = layer_xattr(layers, path, xattrs.OPAQUE)
        provenance = decode(layer_xattr(layers, path, xattrs.PROVENANCE))
        if provenance is None:
            return OnDisk(MarkState.NONE if mark is None else MarkState.FOREIGN)
        if not provenance.is_at(path):
            return OnDisk(MarkState.MOVED, provenance)
        if mark is None:
            return OnDisk(MarkState.OPEN, provenance)
        try:
            disproven = effect.disproven(layers, path)
        except FileNotFoundError:  # hidden by a user
            disproven = False
        return OnDisk(MarkState.OURS, provenance, False if disproven else None)

    def reopen(self, paths: Sequence[bytes], *, check_quiet: Callable[[], None]) -> None:
        """Take the directories out, with everything below them, and let go of what nobody refers to any more."""
        del check_quiet  # whatever is written goes to upper, and is merged with lower as before
        with self._changing, Layers(self.overlay) as layers, Home(layers) as home:
            refuse_kept(layers, paths)
            mounting = mounting_of(self.overlay)
            for path in paths:
                if not any(path != above and is_below(path, above) for above in paths):
                    graveyard.take_out(home, path, mounting=mounting, stub=self._stub(layers, path))
                    self._prune(home, path, mounting)
            activation.reconfigure(self.overlay)
            graveyard.bury(home, mounting)

    def _stub(self, layers: Layers, path: bytes) -> entries.Dressed | None:
        """What has to stand in a complete parent for lower's directory to be found; None where lower has none (R5)."""
        if layer_xattr(layers, parent(path), xattrs.OPAQUE) is None:
            return None
        try:
            return lower_attributes(layers, path)
        except FileNotFoundError:
            return None

    def _prune(self, home: Home, path: bytes, mounting: str) -> None:
        """Take out the ancestors that were in the layer for this directory's sake alone; what is left freezes (R2)."""
        for ancestor in reversed(ancestors(path)):
            if layer_xattr(home.layers, parent(ancestor), xattrs.OPAQUE) is not None or (
                self.traces(home.layers, ancestor).marked
            ):
                return
            graveyard.take_out(home, ancestor, mounting=mounting)

    def read_back(self, layers: Layers, path: bytes) -> str | None:
        """Compares the listing, and the attributes of a few entries, with the layer's."""
        return effect.read_back(layers, path)

    def unshadowed(self, layers: Layers, path: bytes, listing: LowerListing) -> set[str]:
        """Names that are not in the half that they belong in."""
        files, rest = (set(names_in(half, path)) for half in layers.metadata)
        return {name for name, mode in listing.entries.items() if name not in (files if stat.S_ISREG(mode) else rest)}

    def checkable(self, layers: Layers, path: bytes) -> list[str]:
        """All files of the files half."""
        with beneath.opened(layers.metadata[0], path, beneath.READ_DIRECTORY) as files, os.scandir(files) as found:
            return [item.name for item in found if item.is_file(follow_symlinks=False)]

    def files_root(self, layers: Layers) -> int:
        """The files half."""
        return layers.metadata[0]

    def differs(self, shadows: int, name: str, now: os.stat_result) -> bool:
        """In the layer nobody but us has changed anything. A copy's record tells more: size and time can be again."""
        found = Attributes.of(now)
        if not entries.is_current(os.stat(name, dir_fd=shadows, follow_symlinks=False), found):
            return True
        copy = copying.copy_at(shadows, name)
        return copy is not None and not copy.is_of(found)

    def traces(self, layers: Layers, path: bytes) -> Traces:
        """Directories with provenance in the rest half, and their ancestors."""
        marked = marked_in_layer(layers, path)
        above = {ancestor for found in marked for ancestor in ancestors(found)}
        return Traces(marked, sorted(above.difference(marked)))

    def sweep(self, layers: Layers) -> int:
        """Bury what nothing can refer to any more; says how many graves have to stay."""
        with self._changing, Home(layers) as home:
            if not (self._stagings or self.data.is_at_work):
                empty(home.stage)
            graveyard.bury(home, mounting_of(self.overlay))
            return len(os.listdir(home.graveyard))

    def finish_promotion(self, layers: Layers, path: bytes) -> None:
        """A files half whose twin never came, or was taken out alone, is taken out."""
        files, rest = layers.metadata
        with self._changing, Home(layers) as home:
            for directory in [*ancestors(path), *directories_in(files, path)]:
                if beneath.exists_beneath(files, directory) and not beneath.exists_beneath(rest, directory):
                    graveyard.take_out(home, directory, mounting=mounting_of(self.overlay))

    def finish_reopening(self, layers: Layers, path: bytes) -> int:
        """Take out what is left of it."""
        marked = self.traces(layers, path).marked
        if marked or beneath.exists_beneath(layers.metadata[0], path):
            with Home(layers) as home:
                stub = self._stub(layers, path)
                graveyard.take_out(home, path, mounting=mounting_of(self.overlay), stub=stub)
        activation.reconfigure(self.overlay)  # what was taken out may be all that the kernel remembers
        return len(marked)

    def remove_ghost(self, layers: Layers, path: bytes) -> Removed:
        """Take out what the server has deleted. What a user made of it is in upper, and stays."""
        files, rest = layers.metadata
        shadows = sum(len({*names_in(files, found), *names_in(rest, found)}) for found in directories_in(rest, path))
        with self._changing, Home(layers) as home:
            graveyard.take_out(home, path, mounting=mounting_of(self.overlay))
            activation.reconfigure(self.overlay)
            graveyard.bury(home, mounting_of(self.overlay))
        return Removed(path, shadows, ())

    def follow(self, layers: Layers, path: bytes) -> bool:
        """Give a directory that is merged with lower's its owner, mode, times and attributes anew, in both halves."""
        if is_complete(layers, path) or not beneath.exists_beneath(layers.metadata[1], path):
            return False
        wanted = lower_attributes(layers, path)
        with self._changing:
            changed = [_redress(half, path, wanted) for half in layers.metadata]
        return any(changed)

    def followers(self, layers: Layers, path: bytes) -> list[bytes]:
        """Child directories that stand in it as stubs."""
        with beneath.opened(layers.metadata[1], path, beneath.READ_DIRECTORY) as rest, os.scandir(rest) as found:
            children = [join(path, os.fsencode(item.name)) for item in found if item.is_dir(follow_symlinks=False)]
        return [child for child in children if layer_xattr(layers, child, xattrs.PROVENANCE) is None]


def _redress(half: int, path: bytes, wanted: entries.Dressed) -> bool:
    """Give the directory of one half its attributes anew; whether it had others. It may be gone by now."""
    try:
        with beneath.opened(half, path) as directory:
            there = os.fstat(directory)
            found, extra = wanted
            if (
                entries.is_current(there, found)
                and there.st_mtime_ns == found.mtime_ns
                and entries.read_xattrs(xattrs.descriptor(directory)) == extra
            ):
                return False
            entries.redress(directory, found, extra)
            return True
    except FileNotFoundError:
        return False
