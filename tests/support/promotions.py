"""Driving a backend by hand, and judging what it leaves by means of its own: nothing here asks the code under test."""

import os
import stat
import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import replace
from functools import partial
from typing import Any

from promoterd.backends import base
from promoterd.backends.base import Backend, DirectoryTerms, OnDisk, Plan, Terms
from promoterd.backends.quiet import QuietPeriod
from promoterd.demo.view import Entry, differences, snapshot
from promoterd.overlay import activation, mounts
from promoterd.overlay.listing import Layers
from promoterd.overlay.scratch import Scratch
from support.overlays import MountedOverlay
from support.soundness import (
    METACOPY,
    OPAQUE,
    PROVENANCE,
    REDIRECT,
    assert_layer_is_sound,
    lower_names,
    stage_leftovers,
    xattr,
)

SCRATCH = b".promoterd"
ORIGIN = "trusted.overlay.origin"

NOT_COPIED_UP = ("trusted.SGI_ACL_", "system.nfs4_acl")
"""Other forms in which xfs and NFS 4 show a mode and an ACL; no local file system takes them over."""

View = dict[bytes, Entry]


def allow(**demands: Any) -> Callable[[bytes], DirectoryTerms]:
    """The same demands on every directory; nothing that exists now is too young, and no ancestor is to be complete,
    unless they say so.
    """
    demands.setdefault("oldest_allowed_ns", time.time_ns() + 1_000_000_000)
    demands.setdefault("chain", False)
    return lambda _: DirectoryTerms(**demands)


def readable(path: bytes) -> bool:
    """Whether a file can be opened and read."""
    try:
        with open(path, "rb") as file:
            file.read()
    except OSError:
        return False
    return True


class Bench:
    """A backend at work on a mounted overlay."""

    def __init__(self, mounted: MountedOverlay, backend: str = "opaque", *, batch: int = 256, lanes: int = 2) -> None:
        self.mounted = mounted
        self._name, self._batch, self._lanes = backend, batch, lanes
        self.refresh()

    def refresh(self) -> None:
        """Look at the mount anew, as after a remount."""
        self.overlay = mounts.overlay_at(self.mounted.mountpoint)
        self.backend: Backend = base.load(self._name)(
            self.overlay, scratch=SCRATCH, batch=self._batch, lanes=self._lanes
        )
        if self.backend.uses_scratch:
            with self.layers() as layers:
                Scratch(SCRATCH).ensure(layers.root, layers.upper, layers.lowers)

    def layers(self) -> Layers:
        return Layers(self.overlay)

    def plan(
        self,
        path: bytes,
        *,
        of: Callable[[bytes], DirectoryTerms] | None = None,
        max_entries: int = 100_000,
        recursive: bool = True,
    ) -> Plan:
        with self.layers() as layers:
            return self.backend.plan(layers, path, Terms(max_entries, recursive, of or allow()))

    def shadow(self, plan: Plan) -> int:
        return sum(self.backend.shadow(plan))

    def mark(self, path: bytes, **terms: Any) -> list[bytes]:
        """Plan, shadow and complete."""
        return self._do(self.plan(path, **terms))

    def resync(self, path: bytes, **demands: Any) -> list[bytes]:
        """Bring a complete or open directory in line with the server."""
        with self.layers() as layers:
            plan = self.backend.resync(layers, path, Terms(1_000_000, recursive=True, of=allow(**demands)))
        return self._do(plan)

    def _do(self, plan: Plan) -> list[bytes]:
        try:
            self.shadow(plan)
            return self.backend.complete(plan)
        finally:
            self.backend.abandon(plan)

    def activate(self) -> None:
        activation.reconfigure(self.overlay)

    def activated(self, paths: Collection[bytes]) -> dict[bytes, bool | None]:
        """Activate, and tell of each directory whether that is known to have taken effect."""
        before = self._inodes(paths)
        self.activate()
        after = self._inodes(paths)
        found = {path: self.on_disk(path).in_effect for path in paths}
        if self.backend.effect_shows_in_inode:
            return {path: before[path] != after[path] if known is None else known for path, known in found.items()}
        return found

    def _inodes(self, paths: Collection[bytes]) -> dict[bytes, int]:
        if not self.backend.effect_shows_in_inode:
            return {}
        return {path: os.stat(self.mounted.at(path)).st_ino for path in paths}

    def promote(self, path: bytes, **terms: Any) -> list[bytes]:
        """:meth:`mark`, and activate; every directory must then be known to be in effect."""
        marked = self.mark(path, **terms)
        for directory, in_effect in self.activated(marked).items():
            assert in_effect is True, directory
        return marked

    def places(self, path: bytes | str) -> list[bytes]:
        """Where the shadows of a directory's entries are."""
        if self.mounted.metadata:
            return [self.mounted.in_files(path), self.mounted.in_rest(path)]
        return [self.mounted.in_upper(path)]

    def leftovers(self) -> list[bytes]:
        """What was prepared, and put nowhere."""
        if self.mounted.metadata:
            return stage_leftovers(self.mounted)
        return scratch_leftovers(self.mounted)

    def on_disk(self, path: bytes) -> OnDisk:
        with self.layers() as layers:
            return self.backend.on_disk(layers, path)

    def reopen(self, *paths: bytes, quiet: float = 0.0) -> None:
        with QuietPeriod(self.overlay, paths, quiet) as period:
            time.sleep(quiet)
            self.backend.reopen(paths, check_quiet=partial(period.check, paths))

    def view(self) -> View:
        """What applications see; our scratch directory aside."""
        return view_of(self.mounted)

    def remount(self) -> None:
        self.mounted.remount()
        self.refresh()


def view_of(mounted: MountedOverlay) -> View:
    """What applications see; our scratch directory aside."""
    return view_below(mounted.mountpoint, skip={SCRATCH})


def view_below(root: bytes, skip: Collection[bytes] = ()) -> View:
    """What is seen in a directory, but for the attributes in :data:`NOT_COPIED_UP`."""
    seen = snapshot(root, skip=skip, threads=1)
    return {
        path: replace(entry, xattrs=tuple(item for item in entry.xattrs if not item[0].startswith(NOT_COPIED_UP)))
        for path, entry in seen.items()
    }


def assert_same_view(before: View, after: View) -> None:
    found = differences(before, after)
    assert not found, "\n".join(found[:20])


def upper_directories(mounted: MountedOverlay) -> Iterable[bytes]:
    """Every directory of the upper layer, by its path."""
    for directory, _, _ in os.walk(mounted.upper):
        path = os.path.relpath(directory, mounted.upper)
        if path != SCRATCH:
            yield b"" if path == b"." else path


def assert_marks_are_sound(mounted: MountedOverlay, *, deleted: Iterable[bytes] = ()) -> list[bytes]:
    """I1 on the layers as they lie there; returns the directories that are marked by us.

    ``deleted``: paths that a user removed while their directory was active, which leaves no whiteout.
    """
    if mounted.metadata:
        return assert_layer_is_sound(mounted)
    marked = []
    for path in upper_directories(mounted):
        directory = mounted.in_upper(path)
        if xattr(directory, PROVENANCE) is None or xattr(directory, OPAQUE) is None:
            continue
        marked.append(path)
        above = set(os.listdir(directory))
        lower = lower_names(mounted, path)
        missing = {name for name in lower - above if path + b"/" + name not in deleted}
        assert not missing, f"{path!r} is marked, but {sorted(missing)[:5]} are not shadowed"
        for name in above:
            _assert_stands_alone(directory + b"/" + name, merged=name in lower)
    return marked


def _assert_stands_alone(path: bytes, *, merged: bool) -> None:
    """What stands in an opaque directory is found without looking beside itself in lower."""
    mode = os.lstat(path).st_mode
    redirect = xattr(path, REDIRECT)
    if stat.S_ISREG(mode) and xattr(path, METACOPY) is not None:
        assert redirect is not None, f"{path!r} is a metacopy without a redirect"
        assert redirect.startswith(b"/"), f"{path!r} has the relative redirect {redirect!r}"
    elif stat.S_ISDIR(mode) and xattr(path, OPAQUE) is None:
        assert redirect is None or redirect.startswith(b"/"), f"{path!r} has the relative redirect {redirect!r}"
        assert not merged or redirect is not None or xattr(path, ORIGIN) is None, (
            f"{path!r} is merged below an opaque directory"
        )


def scratch_leftovers(mounted: MountedOverlay) -> list[bytes]:
    """What is left in the scratch directory; an empty lane that could not be removed waits for its next use."""
    scratch = mounted.in_upper(SCRATCH)
    found = sorted(os.listdir(scratch))
    return [name for name in found if not name.startswith(b"lane-") or os.listdir(scratch + b"/" + name)]
