"""Ghosts: what promotion copied up of a release that the server has deleted since (R1).

A copied-up directory outlives its lower directory: it is still listed, and stat of its files fails with EIO, so that
they cannot even be unlinked through the overlay. A whole ghost directory can be renamed through it, though, which makes
the path disappear at once; its files are then removed in the scratch directory, where nobody looks.
"""

import errno
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass

from promoterd.overlay import activation, beneath, xattrs
from promoterd.overlay.listing import Layers
from promoterd.overlay.scratch import empty_in_upper, open_scratch, temporary_name
from promoterd.overlay.shadows import is_unmodified_shadow
from promoterd.paths import ancestors, join, parent
from promoterd.provenance import decode

_BEYOND = 1 << 63


@dataclass(frozen=True, slots=True)
class Removed:
    """What became of a ghost: how many of our shadows went, and what of the user's stays."""

    path: bytes
    shadows: int
    kept: tuple[bytes, ...]


def ghost_root(layers: Layers, path: bytes) -> bytes | None:
    """The topmost directory on the way to ``path``, itself included, that no lower layer has any more; None: all live.

    The root of a layer always exists, so a server that answers nothing at all raises OSError instead of a ghost.
    """
    contributing = tuple(range(len(layers.lowers)))
    for directory in [*ancestors(path), path]:
        contributing = layers.contributing_below(contributing, directory)
        if not contributing:
            return directory
    return None


def remove_ghost(layers: Layers, path: bytes, scratch_name: bytes) -> Removed:
    """Remove our shadows at and below ``path``, which no lower layer has; never what a user made or changed.

    Raises OSError.
    """
    ours: list[bytes] = []
    kept: list[bytes] = []
    for found, is_ours in _upper_tree(layers, path):
        (ours if is_ours else kept).append(found)
    if not kept:
        _rename_away(layers, path, scratch_name)
    else:
        _remove_around(layers, ours, kept)
    activation.reconfigure(layers.overlay)
    return Removed(path, len(ours), tuple(kept))


def _upper_tree(layers: Layers, path: bytes) -> Iterator[tuple[bytes, bool]]:
    """Everything in upper at and below ``path``, children before parents, and whether it is an unmodified shadow."""
    waiting = [(path, False)]
    while waiting:
        directory, listed = waiting.pop()
        if listed:
            yield directory, layers.upper_xattr(directory, xattrs.ORIGIN) is not None
            continue
        waiting.append((directory, True))
        provenance = decode(layers.upper_xattr(directory, xattrs.PROVENANCE))
        limit = provenance.completed_ns if provenance is not None else _BEYOND
        with beneath.opened(layers.upper, directory) as opened:
            for name, entry in layers.list_upper(directory).items():
                found = join(directory, os.fsencode(name))
                if stat.S_ISDIR(entry.mode):
                    waiting.append((found, False))
                else:
                    yield found, entry.whiteout or is_unmodified_shadow(opened, name, entry, limit)


def _rename_away(layers: Layers, path: bytes, scratch_name: bytes) -> None:
    above, _, name = path.rpartition(b"/")
    with beneath.opened(layers.root, above) as directory:
        itself = xattrs.descriptor(directory)
        before = os.stat(itself)
        hidden = open_scratch(layers.root, scratch_name)
        try:
            os.rename(name, temporary_name("ghost"), src_dir_fd=directory, dst_dir_fd=hidden)
        finally:
            os.close(hidden)
        os.utime(itself, ns=(before.st_atime_ns, before.st_mtime_ns))
    empty_in_upper(layers.upper, scratch_name)


def _remove_around(layers: Layers, ours: list[bytes], kept: list[bytes]) -> None:
    """One by one, in upper: each is a name that the overlay answers with EIO, so nobody is using it."""
    for path in ours:
        with beneath.opened(layers.upper, parent(path)) as directory:
            name = path.rpartition(b"/")[2]
            is_directory = stat.S_ISDIR(os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode)
            if is_directory and any(user.startswith(path + b"/") for user in kept):
                continue
            try:
                if is_directory:
                    os.rmdir(name, dir_fd=directory)
                else:
                    os.unlink(name, dir_fd=directory)
            except OSError as error:
                if error.errno not in (errno.ENOENT, errno.ENOTEMPTY):
                    raise
