"""Ghosts: what promotion copied up of a release that the server has deleted since (R1).

A copied-up directory outlives its lower directory: it is still listed, and stat of its files fails with EIO, so that
they cannot even be unlinked through the overlay. A whole ghost directory can be renamed through it, though, which makes
the path disappear at once; its files are then removed in the scratch directory, where nobody looks.
"""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from promoterd.overlay import activation, beneath, rolls, xattrs
from promoterd.overlay.listing import Layers
from promoterd.overlay.scratch import empty_in_upper, open_scratch, temporary_name
from promoterd.overlay.shadows import completion_of, is_unmodified_shadow
from promoterd.overlay.times import restore_times, times_kept
from promoterd.paths import ancestors, join, parent
from promoterd.provenance import decode


@dataclass(frozen=True, slots=True)
class Removed:
    """What became of a ghost: how many of our shadows went, and what of the user's stays.

    ``held``: what went, but is still shown, since a process holds it.
    """

    path: bytes
    shadows: int
    kept: tuple[bytes, ...]
    held: tuple[bytes, ...] = ()


def remove_ghost(layers: Layers, path: bytes, scratch_name: bytes) -> Removed:
    """Remove our shadows at and below ``path``, which no lower layer has; never what a user made or changed.

    Directories of ours that hold something of a user's stay, without mark. Raises OSError: ESTALE where a process holds
    the directory and its file system says so, which passes.
    """
    # A merged directory whose lower one is gone gives ESTALE until its dentry is dropped (ovl_dentry_revalidate).
    activation.reconfigure(layers.overlay)
    with beneath.opened(layers.upper, parent(path)) as above:
        restore_times(above)
    ours: list[bytes] = []
    kept: list[bytes] = []
    if beneath.exists_beneath(layers.upper, path):
        for found, is_ours in _upper_tree(layers, path):
            (ours if is_ours else kept).append(found)
    removed = []
    if kept:
        removed = _remove_around(layers, ours, kept)
    elif ours:
        _rename_away(layers, path, scratch_name)
    held = activation.reconfigure_until(layers.overlay, removed, partial(activation.is_let_go, layers.root))
    rolls.sweep(layers)
    return Removed(path, len(ours), tuple(kept), tuple(held))


def _upper_tree(layers: Layers, path: bytes) -> Iterator[tuple[bytes, bool]]:
    """Everything in upper at and below ``path``, children before parents, and whether it is an unmodified shadow.

    What is in a directory of the user's is not looked at: all of it is the user's.
    """
    waiting = [(path, False)]
    while waiting:
        directory, listed = waiting.pop()
        if listed:
            yield directory, True
            continue
        if not _is_copy(layers, directory):
            yield directory, False
            continue
        waiting.append((directory, True))
        completion = completion_of(layers, directory)
        with beneath.opened(layers.upper, directory) as opened:
            for name, entry in layers.list_upper(directory).items():
                found = join(directory, os.fsencode(name))
                if stat.S_ISDIR(entry.mode):
                    waiting.append((found, False))
                else:
                    yield found, entry.whiteout or is_unmodified_shadow(opened, name, entry, completion)


def _is_copy(layers: Layers, directory: bytes) -> bool:
    """Whether an upper directory was copied up from where it is; one that a user moved here tells so."""
    provenance = decode(layers.upper_xattr(directory, xattrs.PROVENANCE))
    return (
        layers.upper_xattr(directory, xattrs.ORIGIN) is not None
        and layers.upper_xattr(directory, xattrs.REDIRECT) is None
        and (provenance is None or provenance.is_at(directory))
    )


def _rename_away(layers: Layers, path: bytes, scratch_name: bytes) -> None:
    above, _, name = path.rpartition(b"/")
    with beneath.opened(layers.root, above) as directory, beneath.opened(layers.upper, above) as upper:
        hidden = open_scratch(layers.root, scratch_name)
        try:
            with times_kept(upper):
                os.rename(name, temporary_name("ghost"), src_dir_fd=directory, dst_dir_fd=hidden)
                _remove_whiteout(upper, name)
        finally:
            os.close(hidden)
    empty_in_upper(layers.upper, scratch_name)


def _remove_whiteout(upper: int, name: bytes) -> None:
    """The rename of a merged directory leaves a whiteout, which would hide a release that is published there again."""
    with suppress(FileNotFoundError):
        status = os.stat(name, dir_fd=upper, follow_symlinks=False)
        if xattrs.stat_is_whiteout(status.st_mode, status.st_rdev):
            os.unlink(name, dir_fd=upper)


def _remove_around(layers: Layers, ours: list[bytes], kept: list[bytes]) -> list[bytes]:
    """One by one, in upper: the overlay cannot unlink a file whose data is gone (EIO). Returns what was removed."""
    removed = []
    holding = {above for path in kept for above in [*ancestors(path), path]}
    for path in ours:
        with beneath.opened(layers.upper, parent(path)) as directory, suppress(FileNotFoundError):
            restore_times(directory)
            name = path.rpartition(b"/")[2]
            is_directory = stat.S_ISDIR(os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode)
            if is_directory:
                _give_to_user(layers, path)
            if path in holding:
                continue
            try:
                with times_kept(directory):
                    (os.rmdir if is_directory else os.unlink)(name, dir_fd=directory)
                removed.append(path)
            except OSError as error:
                if error.errno != errno.ENOTEMPTY:
                    raise
    return removed


def _give_to_user(layers: Layers, path: bytes) -> None:
    """Neither complete nor followed any more: an upper directory like any other."""
    provenance = decode(layers.upper_xattr(path, xattrs.PROVENANCE))
    with beneath.opened(layers.upper, path) as directory:
        itself = xattrs.descriptor(directory)
        if provenance is not None:
            xattrs.remove(itself, xattrs.OPAQUE)
        xattrs.remove(itself, xattrs.PROVENANCE)
        xattrs.remove(itself, xattrs.ANCESTOR)
