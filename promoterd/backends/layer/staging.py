"""Shadowing: the directories of a plan are built aside, from what was listed, where no lookup meets them.

A directory that the layer does not have yet is built as a whole, with its mark; of one that it has, only what differs
from lower is. One listing with attributes is all that this costs the server: the client's cache forgets attributes
after seconds, and would then ask for each entry. Symlinks (READLINK) and extended attributes are asked for one by one.
"""

import os
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field

from promoterd.backends.base import DirectoryTerms, PlannedDirectory
from promoterd.backends.layer import entries, links
from promoterd.backends.layer.carrying import Carrying
from promoterd.backends.layer.home import Home, fresh_name, remove_tree
from promoterd.backends.layer.lower import lower_attributes
from promoterd.backends.layer.plans import LayerPlan
from promoterd.backends.layer.store import note_use
from promoterd.backends.layer.verifying import verify_shadows
from promoterd.overlay import beneath, mounts, xattrs
from promoterd.overlay.attributes import Attributes
from promoterd.overlay.listing import Layers
from promoterd.overlay.mounts import Overlay
from promoterd.pacing import owe
from promoterd.paths import join
from promoterd.provenance import Provenance

Rows = Sequence[tuple[str, Attributes]]


@dataclass(slots=True)
class Staged:
    """Where a directory of a plan was built. ``in_place``: the layer has it, and here is only what differs."""

    directory: PlannedDirectory
    number: int
    in_place: bool
    adopted: bool = False
    """Whether it was built into the directory above it."""
    first_links: dict[tuple[int, int], str] = field(default_factory=dict)
    """The first name of every file with several, by layer and inode."""

    @property
    def files(self) -> str:
        """The name of the files half in the stage."""
        return f"{self.number}.files"

    @property
    def rest(self) -> str:
        """The name of the other half."""
        return f"{self.number}.rest"


@dataclass(frozen=True, slots=True)
class _Open:
    """Descriptors for one batch: where it is built, where it is to go (-1: nowhere yet), and where it comes from."""

    path: bytes
    files: int
    rest: int
    there_files: int
    there_rest: int
    lowers: dict[int, int]
    demands: DirectoryTerms
    carrying: Carrying


class Staging:
    """The private place of one plan in the stage. Holds no descriptor between two batches (R16)."""

    def __init__(self, overlay: Overlay, plan: LayerPlan, batch: Callable[[], int]) -> None:
        self.plan = plan
        self.identities = [mounts.lower_identity(layer) for layer in overlay.lowers]
        self.began_ns = time.time_ns()
        self.staged: dict[bytes, Staged] = {}
        self._overlay = overlay
        self._batch = batch
        self._name = fresh_name()

    def build(self) -> Iterator[int]:
        """Build everything; yields the size of each batch before doing it. Raises Refused, OSError."""
        with self._home() as home:
            os.mkdir(self._name, 0o700, dir_fd=home.stage)
            if any(demands.wants_data is not None for demands in self.plan.demands.values()):
                note_use(home.files)
        for number, directory in enumerate(self.plan.directories):
            yield from self._build_directory(number, directory)

    def standing_alone(self) -> list[Staged]:
        """What is to be put in place by itself, children first."""
        return [staged for staged in self.staged.values() if not staged.adopted]

    def remove(self) -> None:
        """Forget what was built and not placed."""
        with self._home() as home:
            remove_tree(home.stage, self._name)

    @contextmanager
    def opened(self, home: Home) -> Iterator[int]:
        """The place, in a home that is open already."""
        with beneath.opened(home.stage, self._name, beneath.READ_DIRECTORY) as place:
            yield place

    @contextmanager
    def _home(self) -> Iterator[Home]:
        with Layers(self._overlay, mounted=False) as layers, Home(layers) as home:
            yield home

    def _build_directory(self, number: int, directory: PlannedDirectory) -> Iterator[int]:
        table = directory.listing.attributes
        assert table is not None  # noqa: S101 - plan_layer() asked for it
        with self._home() as home, self.opened(home) as place:
            staged = Staged(directory, number, beneath.exists_beneath(home.rest, directory.path))
            for half in (staged.files, staged.rest):
                os.mkdir(half, 0o700, dir_fd=place)
        room = self.plan.data_room.get(directory.path, 0)
        carrying = Carrying.of(directory, self.plan.demands[directory.path], room)
        rows = iter(zip(directory.listing.entries, table, strict=True))
        while chunk := carrying.chunk(rows, self._batch()):
            yield len(chunk)
            with self._home() as home, self.opened(home) as place, self._open(home, place, staged, carrying) as opened:
                for name, found in chunk:
                    self._build_entry(opened, staged, name, found)
            self.plan.data_cost += carrying.cost
            carrying.cost = 0
        self.staged[directory.path] = staged
        if not staged.in_place:
            with self._home() as home, self.opened(home) as place:
                self._adopt_children(place, staged)
                with (
                    beneath.opened(place, staged.files.encode(), beneath.READ_DIRECTORY) as files,
                    beneath.opened(place, staged.rest.encode(), beneath.READ_DIRECTORY) as rest,
                ):
                    verify_shadows(files, rest, directory)
                self._finish(home, place, staged)

    def provenance(self, directory: PlannedDirectory) -> bytes:
        """What stands beside the directory's mark (R9)."""
        return Provenance.of(
            "layer",
            directory.path,
            [self.identities[index] for index in directory.layers],
            directory.listing.stamps,
            self.began_ns,
            len(directory.listing.entries),
        ).encode()

    def attributes(self, home: Home, path: bytes) -> tuple[Attributes, entries.Xattrs | None]:
        """What the directory itself is to look like. Raises OSError."""
        copied = self.plan.demands[path].copy_xattrs
        found, extra = lower_attributes(home.layers, path, with_xattrs=copied, force_sync=False)
        return found, extra if copied else None

    @contextmanager
    def _open(self, home: Home, place: int, staged: Staged, carrying: Carrying) -> Iterator[_Open]:
        path = staged.directory.path
        with ExitStack() as stack:
            files, rest = (
                stack.enter_context(beneath.opened(place, half.encode())) for half in (staged.files, staged.rest)
            )
            there = [-1, -1]
            if staged.in_place:
                for half, root in enumerate(home.halves):
                    with suppress(FileNotFoundError):
                        there[half] = stack.enter_context(beneath.opened(root, path))
            lowers = {
                index: stack.enter_context(beneath.opened(home.layers.lowers[index], path))
                for index in staged.directory.layers
            }
            yield _Open(path, files, rest, there[0], there[1], lowers, self.plan.demands[path], carrying)

    def _build_entry(self, opened: _Open, staged: Staged, name: str, found: Attributes) -> None:
        try:
            if stat.S_ISREG(found.mode):
                _build_file(opened, staged, name, found)
            elif stat.S_ISDIR(found.mode):
                child = self.staged.get(join(opened.path, os.fsencode(name)))
                if child is None or child.in_place:
                    _build_directory_stub(opened, name, found)
            else:
                _build_other(opened, name, found)
        except FileNotFoundError:
            return  # gone from the server since it was listed, which the verification will tell
        except OSError as error:
            refused = entries.explain_failure(error, opened.path, name)
            if refused is not None:
                raise refused from error
            raise

    def _finish(self, home: Home, place: int, staged: Staged) -> None:
        """Everything that makes it complete, where nobody sees it yet."""
        path = staged.directory.path
        found, extra = self.attributes(home, path)
        for half in (staged.files, staged.rest):
            with beneath.opened(place, half.encode(), beneath.READ_DIRECTORY) as opened:
                if half == staged.rest:
                    os.setxattr(opened, xattrs.REDIRECT, b"/" + path)
                    os.setxattr(opened, xattrs.PROVENANCE, self.provenance(staged.directory))
                    os.setxattr(opened, xattrs.OPAQUE, xattrs.OPAQUE_YES)
                entries.dress(opened, found, extra or ())
                entries.check_times_fit(os.fstat(opened), found, path)

    def _adopt_children(self, place: int, staged: Staged) -> None:
        """What was built of its child directories becomes part of it, so that one rename puts all in place."""
        for name in staged.directory.listing.directories():
            child = self.staged.get(join(staged.directory.path, os.fsencode(name)))
            if child is not None and not child.in_place:
                child.adopted = True
                for own, half in ((child.files, staged.files), (child.rest, staged.rest)):
                    os.rename(own, f"{half}/{name}", src_dir_fd=place, dst_dir_fd=place)


def _extra(opened: _Open, name: str, found: Attributes) -> entries.Xattrs:
    if not opened.demands.copy_xattrs:
        return ()
    owe(1)
    return entries.read_xattrs(xattrs.entry(opened.lowers[found.layer], name))


def _build_file(opened: _Open, staged: Staged, name: str, found: Attributes) -> None:
    first = name
    if found.nlink > 1:
        first = staged.first_links.setdefault((found.layer, found.inode), name)
    redirect = b"/" + join(opened.path, os.fsencode(first))
    extra = _extra(opened, name, found)
    lower = opened.lowers[found.layer]
    if opened.carrying.provide(lower, opened.files, opened.there_files, first, name, found, extra):
        return
    if _file_is_current(opened, name, found, redirect, extra) and (
        first == name or links.are_linked(opened.files, opened.there_files, first, name)
    ):
        return
    if first != name and links.link(opened.files, opened.there_files, first, name):
        return
    entries.make_stub(opened.files, name, found, redirect, extra)


def _file_is_current(opened: _Open, name: str, found: Attributes, redirect: bytes, extra: entries.Xattrs) -> bool:
    there = _there(opened.there_files, name)
    if there is None or not entries.is_current(there, found):
        return False
    itself = xattrs.entry(opened.there_files, name)
    if xattrs.get(itself, xattrs.METACOPY) is None or xattrs.get(itself, xattrs.REDIRECT) != redirect:
        return False
    return not opened.demands.copy_xattrs or entries.read_xattrs(itself) == extra


def _build_other(opened: _Open, name: str, found: Attributes) -> None:
    lower = opened.lowers[found.layer]
    target = ""
    if stat.S_ISLNK(found.mode):
        owe(1)
        target = os.readlink(name, dir_fd=lower)
    extra = _extra(opened, name, found)
    there = _there(opened.there_rest, name)
    if (
        there is not None
        and entries.is_current(there, found)
        and (not target or os.readlink(name, dir_fd=opened.there_rest) == target)
        and (not opened.demands.copy_xattrs or entries.read_xattrs(xattrs.entry(opened.there_rest, name)) == extra)
    ):
        return
    entries.make_other(opened.rest, name, found, target, extra)


def _build_directory_stub(opened: _Open, name: str, found: Attributes) -> None:
    """In both halves: the overlay would not see what comes into the files half after it has found the other."""
    extra = _extra(opened, name, found)
    redirect = b"/" + join(opened.path, os.fsencode(name))
    for half, there, lead in ((opened.files, opened.there_files, b""), (opened.rest, opened.there_rest, redirect)):
        if not _directory_is_current(opened, there, name, found, extra):
            entries.make_directory(half, name, found, lead, extra)


def _directory_is_current(opened: _Open, directory: int, name: str, found: Attributes, extra: entries.Xattrs) -> bool:
    there = _there(directory, name)
    return (
        there is not None
        and entries.is_current(there, found)
        and there.st_mtime_ns == found.mtime_ns
        and (not opened.demands.copy_xattrs or entries.read_xattrs(xattrs.entry(directory, name)) == extra)
    )


def _there(directory: int, name: str) -> os.stat_result | None:
    return None if directory < 0 else beneath.status_of(directory, name)
