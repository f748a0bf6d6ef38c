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

SCRATCH = b".promoterd"
OPAQUE, METACOPY = "trusted.overlay.opaque", "trusted.overlay.metacopy"
REDIRECT, ORIGIN = "trusted.overlay.redirect", "trusted.overlay.origin"
PROVENANCE = "trusted.overlay.promoterd.mark"

NOT_COPIED_UP = ("trusted.SGI_ACL_", "system.nfs4_acl")
"""Other forms in which xfs and NFS 4 show a mode and an ACL; no local file system takes them over."""

View = dict[bytes, Entry]


def xattr(path: bytes, name: str) -> bytes | None:
    """An attribute, or None."""
    try:
        return os.getxattr(path, name, follow_symlinks=False)
    except OSError:
        return None


def allow(**demands: Any) -> Callable[[bytes], DirectoryTerms]:
    """The same demands on every directory; nothing that exists now is too young, unless they say so."""
    demands.setdefault("oldest_allowed_ns", time.time_ns() + 1_000_000_000)
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
        plan = self.plan(path, **terms)
        self.shadow(plan)
        return self.backend.complete(plan)

    def activate(self) -> None:
        activation.reconfigure(self.overlay)

    def promote(self, path: bytes, **terms: Any) -> list[bytes]:
        """:meth:`mark`, and activate; every directory must then be known to be in effect."""
        marked = self.mark(path, **terms)
        self.activate()
        for directory in marked:
            assert self.on_disk(directory).in_effect is not False, directory
        return marked

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


def is_whiteout(path: bytes) -> bool:
    status = os.lstat(path)
    return stat.S_ISCHR(status.st_mode) and not status.st_rdev


def lower_names(mounted: MountedOverlay, path: bytes) -> set[bytes]:
    """The names that the lower layers merge at ``path``; whiteouts and opaque directories of theirs respected."""
    found: set[bytes] = set()
    hidden: set[bytes] = set()
    for number in range(len(mounted.lowers)):
        directory, parts = mounted.lowers[number], path.split(b"/")
        covered = False
        for part in parts:
            covered = covered or xattr(directory, OPAQUE) == b"y"
            directory += b"/" + part
            if not os.path.lexists(directory):
                break
            if not stat.S_ISDIR(os.lstat(directory).st_mode):
                return found
        else:
            attributes = xattr(directory, OPAQUE) == b"x"
            for name in os.listdir(directory):
                entry = directory + b"/" + name
                whiteout = is_whiteout(entry) or (attributes and xattr(entry, "trusted.overlay.whiteout") is not None)
                if name not in hidden | found:
                    (hidden if whiteout else found).add(name)
            covered = covered or xattr(directory, OPAQUE) == b"y"
        if covered:
            break
    return found


def assert_marks_are_sound(mounted: MountedOverlay, *, deleted: Iterable[bytes] = ()) -> list[bytes]:
    """I1 on the layers as they lie there; returns the directories that are marked by us.

    ``deleted``: paths that a user removed while their directory was active, which leaves no whiteout.
    """
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
