"""Undoing marks on upper directories, so that what was deleted stays deleted (R5, R6).

While a directory is opaque, deleting a name leaves no whiteout, and re-creating a directory leaves no ``opaque`` of its
own: both have to be written before the mark goes. A whiteout made by hand under a directory that is opaque in memory
makes a later create of that name fail (ESTALE), so all this needs a window in which nobody writes; the gate notices if
somebody does, and everything is put back.
"""

import os
import stat
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from promoterd.backends.base import Busy
from promoterd.errors import Refused
from promoterd.overlay import activation, beneath, xattrs
from promoterd.overlay.gate import UpperGate
from promoterd.overlay.listing import Layers, LowerListing, UpperEntry
from promoterd.overlay.mounts import Overlay
from promoterd.overlay.shadows import is_unmodified_shadow
from promoterd.paths import join, show
from promoterd.provenance import decode

TRIES = 20
"""How many reconfigures a reopening may take before the directory counts as held."""
_PAUSE = 0.05
_TEMPORARY = ".promoterd-whiteout"


@dataclass(slots=True)
class _Undoing:
    """One directory on its way back to being merged, with what was written for it."""

    path: bytes
    mark: bytes
    merged: bool
    whiteouts: list[str] = field(default_factory=list)
    opaques: list[str] = field(default_factory=list)
    stale: list[str] = field(default_factory=list)


def reopen_upper(overlay: Overlay, paths: Sequence[bytes], *, quiet: float) -> None:
    """Undo the marks of ``paths``, given top-down, on the live mount.

    Nobody may have written there for ``quiet`` seconds, nor until the effect is proven. Raises Busy where somebody did,
    or where a process holds a directory: the marks are then as before.
    """
    with Layers(overlay) as layers, UpperGate(layers.upper, paths) as gate:
        time.sleep(quiet)
        if gate.changed():
            raise Busy(path=show(paths[0]), reason=f"somebody wrote there in the last {quiet:g} s")
        undoings = [_prepare(layers, path) for path in paths]
        expected = frozenset(os.fsencode(name) for undoing in undoings for name in [_TEMPORARY, *undoing.whiteouts])
        try:
            for undoing in undoings:
                _unmark(layers, undoing)
            _prove_merged(layers, undoings)
            if gate.changed(expected=expected):
                raise Busy(path=show(paths[0]), reason="somebody wrote there while it was being reopened")
        except BaseException:
            _put_back(layers, undoings)
            raise
        for undoing in undoings:
            _drop_stale(layers, undoing)
        activation.reconfigure(overlay)
        layers.sync_upper()


def reopen_unmounted(layers: Layers, paths: Sequence[bytes]) -> None:
    """Undo the marks of ``paths``, given top-down, in the layers of an overlay that is not mounted anywhere."""
    for path in paths:
        undoing = _prepare(layers, path)
        _unmark(layers, undoing)
        _drop_stale(layers, undoing)
    layers.sync_upper()


def finish_interrupted(layers: Layers, path: bytes) -> int:
    """After a crash in a reopening: take our own whiteouts out again where the mark still stands; how many there were."""
    if layers.upper_xattr(path, xattrs.OPAQUE) is None:
        return 0
    removed = 0
    with beneath.opened(layers.upper, path) as directory, _times_kept(directory):
        for name, entry in layers.list_upper(path).items():
            if entry.whiteout and xattrs.get(xattrs.entry(directory, name), xattrs.OUR_WHITEOUT) is not None:
                os.unlink(name, dir_fd=directory)
                removed += 1
    return removed


def _prepare(layers: Layers, path: bytes) -> _Undoing:
    mark = layers.upper_xattr(path, xattrs.OPAQUE)
    provenance = decode(layers.upper_xattr(path, xattrs.PROVENANCE))
    if mark is None or provenance is None:
        raise Refused(path=show(path), reason="it carries no mark of ours", hint="`promoterd explain` tells its state")
    contributing = layers.contributing(path)
    listing = layers.list_lower(path, contributing)
    upper = layers.list_upper(path)
    undoing = _Undoing(path, mark, bool(contributing))
    undoing.whiteouts = [name for name in listing.entries if name not in upper]
    for name in listing.directories():
        above = upper.get(name)
        if above is not None and stat.S_ISDIR(above.mode) and _is_pure_upper(layers, join(path, os.fsencode(name))):
            undoing.opaques.append(name)
    undoing.stale = _stale_shadows(layers, path, contributing, listing, upper, provenance.completed_ns)
    return undoing


def _is_pure_upper(layers: Layers, child: bytes) -> bool:
    """Whether a user made this directory: without an origin, a redirect or a mark it would merge with lower's."""
    return all(
        layers.upper_xattr(child, attribute) is None for attribute in (xattrs.ORIGIN, xattrs.REDIRECT, xattrs.OPAQUE)
    )


def _stale_shadows(  # noqa: PLR0913 - the two listings and where they come from
    layers: Layers,
    path: bytes,
    contributing: tuple[int, ...],
    listing: LowerListing,
    upper: dict[str, UpperEntry],
    completed_ns: int,
) -> list[str]:
    """Our shadows that lower has removed or replaced since, and that no user changed."""
    with beneath.opened(layers.upper, path) as above:
        return [
            name
            for name, entry in upper.items()
            if is_unmodified_shadow(above, name, entry, completed_ns)
            and (name not in listing.entries or _was_replaced(layers, path, contributing, above, name))
        ]


def _was_replaced(layers: Layers, path: bytes, contributing: tuple[int, ...], above: int, name: str) -> bool:
    """Whether lower's entry differs in what only the server changes; a changed owner or mode may be the user's."""
    shadow = os.stat(name, dir_fd=above, follow_symlinks=False)
    for index in contributing:
        with beneath.opened(layers.lowers[index], path) as lower:
            try:
                now = os.stat(name, dir_fd=lower, follow_symlinks=False)
            except FileNotFoundError:
                continue
            if stat.S_IFMT(now.st_mode) != stat.S_IFMT(shadow.st_mode):
                return True
            if stat.S_ISLNK(now.st_mode):
                return os.readlink(name, dir_fd=lower) != os.readlink(name, dir_fd=above)
            if (now.st_mode, now.st_uid, now.st_gid) != (shadow.st_mode, shadow.st_uid, shadow.st_gid):
                return False
            same = (now.st_size, now.st_mtime_ns, now.st_rdev)
            return same != (shadow.st_size, shadow.st_mtime_ns, shadow.st_rdev)
    return True


def _unmark(layers: Layers, undoing: _Undoing) -> None:
    with beneath.opened(layers.upper, undoing.path) as directory, _times_kept(directory):
        _write_whiteouts(directory, undoing.whiteouts)
        for name in undoing.opaques:
            xattrs.put(xattrs.entry(directory, name), xattrs.OPAQUE, xattrs.OPAQUE_YES)
        layers.sync_upper()
        xattrs.remove(xattrs.descriptor(directory), xattrs.OPAQUE)
        layers.sync_upper()


def _write_whiteouts(directory: int, names: list[str]) -> None:
    """Hard links of one tagged whiteout, so that each appears at once with its tag and replaces nothing.

    overlayfs itself shares one whiteout inode in the same way (ovl_whiteout, fs/overlayfs/dir.c).
    """
    if not names:
        return
    with suppress(FileNotFoundError):
        os.unlink(_TEMPORARY, dir_fd=directory)
    os.mknod(_TEMPORARY, stat.S_IFCHR, 0, dir_fd=directory)
    try:
        xattrs.put(xattrs.entry(directory, _TEMPORARY), xattrs.OUR_WHITEOUT, b"y")
        for name in names:
            os.link(_TEMPORARY, name, src_dir_fd=directory, dst_dir_fd=directory, follow_symlinks=False)
    finally:
        os.unlink(_TEMPORARY, dir_fd=directory)


@contextmanager
def _times_kept(directory: int) -> Iterator[None]:
    """Names that are written or removed behind overlayfs' back must not show in the directory's times (I2)."""
    itself = xattrs.descriptor(directory)
    before = os.stat(itself)
    try:
        yield
    finally:
        os.utime(itself, ns=(before.st_atime_ns, before.st_mtime_ns))


def _prove_merged(layers: Layers, undoings: Sequence[_Undoing]) -> None:
    waiting = [undoing for undoing in undoings if undoing.merged]
    for _ in range(TRIES):
        activation.reconfigure(layers.overlay)
        effects = [(undoing, activation.mark_in_effect(layers.root, layers.upper, undoing.path)) for undoing in waiting]
        unproven = [undoing for undoing, effect in effects if effect is None]
        if unproven:
            raise Busy(path=show(unproven[0].path), reason="this upper file system gives no proof of effect (one link)")
        waiting = [undoing for undoing, effect in effects if effect]
        if not waiting:
            return
        time.sleep(_PAUSE)
    raise Busy(path=show(waiting[0].path), reason="a process holds it")


def _put_back(layers: Layers, undoings: Sequence[_Undoing]) -> None:
    """Marks as before, children first, and nothing of ours left."""
    for undoing in reversed(undoings):
        with beneath.opened(layers.upper, undoing.path) as directory, _times_kept(directory):
            xattrs.put(xattrs.descriptor(directory), xattrs.OPAQUE, undoing.mark)
            for name in undoing.whiteouts:
                _unlink_our_whiteout(directory, name)
            for name in undoing.opaques:
                xattrs.remove(xattrs.entry(directory, name), xattrs.OPAQUE)
    layers.sync_upper()
    activation.reconfigure(layers.overlay)


def _unlink_our_whiteout(directory: int, name: str) -> None:
    with suppress(FileNotFoundError):
        if xattrs.get(xattrs.entry(directory, name), xattrs.OUR_WHITEOUT) is not None:
            os.unlink(name, dir_fd=directory)


def _drop_stale(layers: Layers, undoing: _Undoing) -> None:
    with beneath.opened(layers.upper, undoing.path) as directory, _times_kept(directory):
        for name in undoing.stale:
            with suppress(FileNotFoundError):
                os.unlink(name, dir_fd=directory)
        xattrs.remove(xattrs.descriptor(directory), xattrs.PROVENANCE)
