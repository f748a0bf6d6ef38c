"""Undoing marks on upper directories, so that what was deleted stays deleted (R5, R6).

While a directory is opaque, deleting a name leaves no whiteout, and re-creating a directory leaves no ``opaque`` of its
own: both have to be written before the mark goes. A whiteout made by hand under a directory that is opaque in memory
makes a later create of that name fail (ESTALE), so all this needs a window in which nobody writes; the gate notices if
somebody does, and the marks are put back. The whiteouts then stay: under a mark they change nothing, and without them
the names would come back wherever the directory is merged already.
"""

import errno
import os
import stat
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import partial

from promoterd.backends.base import Busy
from promoterd.errors import Refused
from promoterd.overlay import activation, beneath, rolls, xattrs
from promoterd.overlay.gate import UpperGate
from promoterd.overlay.listing import Layers
from promoterd.overlay.mounts import Overlay
from promoterd.overlay.shadows import completion_of, directory_stands_alone, file_stands_alone, stale_shadows
from promoterd.overlay.times import restore_times, times_kept
from promoterd.paths import ancestors, is_below, join, show
from promoterd.provenance import Provenance, decode


@dataclass(slots=True)
class _Undoing:
    """One directory on its way back to being merged: by its descriptor, wherever somebody moves it meanwhile."""

    path: bytes
    directory: int
    mark: bytes
    merged: bool
    provenance: Provenance
    names: list[str] = field(default_factory=list)
    """Names of lower that must not come back when a user deletes them."""
    whiteouts: list[str] = field(default_factory=list)
    """Those of them that are deleted already."""
    opaques: list[str] = field(default_factory=list)
    """Directories that a user made where lower has one."""
    stale: list[tuple[str, int]] = field(default_factory=list)


def reopen_upper(overlay: Overlay, paths: Sequence[bytes], *, check_quiet: Callable[[], None]) -> list[bytes]:
    """Undo the marks of ``paths``, given top-down, on the live mount; what was removed, but is held and so still shown.

    Nobody may have written there in the quiet period before, which ``check_quiet`` knows, nor until the effect is
    proven. Raises Busy where somebody did, or where a process holds a directory: the marks are then as before. Raises
    Refused, before anything is changed.
    """
    with ExitStack() as stack:
        layers = stack.enter_context(Layers(overlay))
        try:
            gate = stack.enter_context(UpperGate(layers.upper, paths))
        except (FileNotFoundError, NotADirectoryError) as error:
            raise Refused(path=show(paths[-1]), reason="it, or one above it, is not in upper any more") from error
        check_quiet()  # not before the gate is there: in between somebody could write unheard
        undoings = [_prepare(layers, path, stack) for path in paths]
        for undoing in undoings:
            if undoing.merged and activation.mark_in_effect(layers.root, layers.upper, undoing.path) is None:
                raise Busy(path=show(undoing.path), reason="its upper file system gives no proof of effect (one link)")
        return _undo(layers, undoings, gate)


def reopen_unmounted(layers: Layers, paths: Sequence[bytes], *, begin: Callable[[], None] = lambda: None) -> None:
    """Undo the marks of ``paths``, given top-down, in the layers of an overlay that is not mounted anywhere.

    ``begin`` is called before the first change. Raises Refused, before that, and OSError.
    """
    with ExitStack() as stack:
        undoings = [_prepare(layers, path, stack) for path in paths]
        begin()
        _unmark(layers, undoings, None)
        for undoing in undoings:
            _forget(layers, undoing)
        layers.sync_upper()


def finish_interrupted(layers: Layers, path: bytes) -> tuple[int, list[bytes]]:
    """After a crash in the reopening of ``path``: finish what was unmarked already.

    Returns how many directories that were, and what was removed there, but is held and so still shown. Where a mark
    still stands it stays, and so do the whiteouts that were written for it. Raises Busy where a process holds one of
    the directories, or somebody writes there: its mark is then put back.
    """
    chain = [*ancestors(path), path]
    with ExitStack() as stack:
        for directory in chain:
            with suppress(FileNotFoundError, NotADirectoryError), beneath.opened(layers.upper, directory) as opened:
                restore_times(opened)
        undoings = [
            _take_up(layers, directory, provenance, xattrs.OPAQUE_YES, stack)
            for directory in chain
            if layers.upper_xattr(directory, xattrs.OPAQUE) is None
            and (provenance := decode(layers.upper_xattr(directory, xattrs.PROVENANCE))) is not None
            and provenance.is_at(directory)
        ]
        if undoings:
            gate = stack.enter_context(UpperGate(layers.upper, [undoing.path for undoing in undoings]))
            held = _undo(layers, undoings, gate)
        else:
            activation.reconfigure(layers.overlay)
            held = []
        return len(undoings), held


def finish_unmounted(layers: Layers, path: bytes) -> None:
    """As :func:`finish_interrupted` for ``path`` alone, in the layers of an overlay that is not mounted anywhere.

    Also what a promotion that was cut off before the mark left beside the directory. Raises Refused, OSError.
    """
    provenance = decode(layers.upper_xattr(path, xattrs.PROVENANCE))
    if provenance is None or layers.upper_xattr(path, xattrs.OPAQUE) is not None:
        return
    with ExitStack() as stack:
        undoing = _take_up(layers, path, provenance, xattrs.OPAQUE_YES, stack)
        restore_times(undoing.directory)
        _unmark(layers, [undoing], None)
        _forget(layers, undoing)
        layers.sync_upper()


def _undo(layers: Layers, undoings: Sequence[_Undoing], gate: UpperGate) -> list[bytes]:
    first = show(undoings[0].path)
    try:
        _unmark(layers, undoings, gate)
        _prove_merged(layers, undoings)
        changed = gate.changed()
    except (FileNotFoundError, NotADirectoryError) as error:
        _put_back(layers, undoings)
        raise Busy(path=first, reason="somebody renamed or removed it while it was being reopened") from error
    except BaseException:
        _put_back(layers, undoings)
        raise
    if changed:
        _put_back(layers, undoings)
        raise Busy(path=first, reason="somebody wrote there while it was being reopened")
    return _forget_all(layers, undoings)


def _prepare(layers: Layers, path: bytes, stack: ExitStack) -> _Undoing:
    mark = layers.upper_xattr(path, xattrs.OPAQUE)
    provenance = decode(layers.upper_xattr(path, xattrs.PROVENANCE))
    if mark is None or provenance is None or not provenance.is_at(path):
        raise Refused(path=show(path), reason="it carries no mark of ours", hint="`promoterd explain` tells its state")
    return _take_up(layers, path, provenance, mark, stack)


def _take_up(layers: Layers, path: bytes, provenance: Provenance, mark: bytes, stack: ExitStack) -> _Undoing:
    directory = stack.enter_context(beneath.opened(layers.upper, path, beneath.READ_DIRECTORY))
    contributing = layers.contributing(path)
    listing = layers.list_lower(path, contributing)
    upper = layers.list_upper(path)
    completion = completion_of(layers, path)
    knows: Callable[[str], bool] = listing.entries.__contains__
    if not provenance.matches_stamps(listing.stamps):
        knows = completion.roll.knows if completion.roll is not None else upper.__contains__
        if completion.roll is None and not listing.entries.keys() <= upper.keys():
            raise Refused(
                path=show(path),
                reason="the server has changed it, and the roll of the names that it had is lost: what a user "
                "deleted cannot be told from what is new",
                hint="unmount the overlay, and remove the directory from the upper layer if it holds nothing of users",
            )
    names = [name for name in listing.entries if name in upper or knows(name)]
    return _Undoing(
        path,
        directory,
        mark,
        bool(contributing),
        provenance,
        names,
        [name for name in names if name not in upper],
        [name for name in listing.directories() if name in upper and _is_users(directory, name, upper[name].mode)],
        list(stale_shadows(layers, listing, upper, completion)),
    )


def _is_users(directory: int, name: str, mode: int) -> bool:
    """Whether a user made this directory: without an origin, a redirect or a mark it would merge with lower's."""
    itself = xattrs.entry(directory, name)
    return stat.S_ISDIR(mode) and all(
        xattrs.get(itself, attribute) is None for attribute in (xattrs.ORIGIN, xattrs.REDIRECT, xattrs.OPAQUE)
    )


def _unmark(layers: Layers, undoings: Sequence[_Undoing], gate: UpperGate | None) -> None:
    """First everything that the merged directories rely on, then the marks, each durable before the next (I4)."""
    for undoing in undoings:
        _write_whiteouts(undoing, undoing.whiteouts, gate)
        for name in undoing.opaques:
            xattrs.put(xattrs.entry(undoing.directory, name), xattrs.OPAQUE, xattrs.OPAQUE_YES)
    layers.sync_upper()
    for undoing in undoings:
        xattrs.remove(xattrs.descriptor(undoing.directory), xattrs.OPAQUE)
        layers.sync_upper()


def _write_whiteouts(undoing: _Undoing, names: Sequence[str], gate: UpperGate | None = None) -> None:
    """Whiteouts where there are no names; links to one inode, as overlayfs makes them (ovl_whiteout, dir.c)."""
    if not names:
        return
    shared = ""
    with times_kept(undoing.directory):
        for name in names:
            if gate is not None:
                gate.expect(undoing.path, name)
            if not (shared and _linked(undoing.directory, shared, name)):
                os.mknod(name, stat.S_IFCHR, 0, dir_fd=undoing.directory)
                shared = name


def _linked(directory: int, shared: str, name: str) -> bool:
    try:
        os.link(shared, name, src_dir_fd=directory, dst_dir_fd=directory, follow_symlinks=False)
    except OSError as error:
        if error.errno != errno.EMLINK:
            raise
        return False
    return True


def _prove_merged(layers: Layers, undoings: Sequence[_Undoing]) -> None:
    waiting = [undoing.path for undoing in undoings if undoing.merged]

    def is_merged(path: bytes) -> bool:
        return activation.mark_in_effect(layers.root, layers.upper, path) is False

    held = activation.reconfigure_until(layers.overlay, waiting, is_merged)
    if held:
        raise Busy(path=show(held[0]), reason="a process holds it")


def _put_back(layers: Layers, undoings: Sequence[_Undoing]) -> None:
    """Marks as before, children first.

    In a directory that was merged for a moment somebody may have made what a mark would break. It stays merged, and so
    do the directories above it; what was deleted there before it was merged gets its whiteout now.
    """
    merged: list[_Undoing] = []
    for undoing in reversed(undoings):
        if _has_what_a_mark_breaks(undoing) or any(is_below(other.path, undoing.path) for other in merged):
            merged.append(undoing)
            upper = set(os.listdir(undoing.directory))
            _write_whiteouts(undoing, [name for name in undoing.names if name not in upper])
        else:
            xattrs.put(xattrs.descriptor(undoing.directory), xattrs.OPAQUE, undoing.mark)
    _forget_all(layers, merged)


def _has_what_a_mark_breaks(undoing: _Undoing) -> bool:
    with os.scandir(undoing.directory) as found:
        for item in found:
            if item.is_dir(follow_symlinks=False):
                alone = directory_stands_alone(undoing.directory, item.name)
            else:
                alone = not item.is_file(follow_symlinks=False) or file_stands_alone(undoing.directory, item.name)
            if not alone:
                return True
    return False


def _forget_all(layers: Layers, undoings: Sequence[_Undoing]) -> list[bytes]:
    """Make them ordinary directories, for those who look there as well; what is held, and so still shown."""
    removed = [path for undoing in undoings for path in _forget(layers, undoing)]
    layers.sync_upper()
    return activation.reconfigure_until(layers.overlay, removed, partial(activation.is_let_go, layers.root))


def _forget(layers: Layers, undoing: _Undoing) -> list[bytes]:
    """What only a mark needs: stale shadows of ours, which are returned, the roll and the provenance."""
    removed = []
    if undoing.stale:
        with times_kept(undoing.directory):
            for name, ctime_ns in undoing.stale:
                with suppress(FileNotFoundError):
                    if os.stat(name, dir_fd=undoing.directory, follow_symlinks=False).st_ctime_ns == ctime_ns:
                        os.unlink(name, dir_fd=undoing.directory)
                        removed.append(join(undoing.path, os.fsencode(name)))
    rolls.remove(layers.overlay, undoing.provenance)
    xattrs.remove(xattrs.descriptor(undoing.directory), xattrs.PROVENANCE)
    return removed
