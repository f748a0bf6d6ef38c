"""Looks at the metadata layer of a mount and at its data-only layers: the part of :mod:`.probe` that is about those."""

import os
from collections.abc import Iterator

from promoterd.overlay import ext4, xattrs
from promoterd.overlay.facts import LayerFacts, Misplaced
from promoterd.overlay.mountinfo import MountTree, read
from promoterd.overlay.mounts import GRAVEYARD, STAGE, Overlay
from promoterd.overlay.nfs import FSTYPES
from promoterd.overlay.syscalls import Statx, statx

_TRIES = 3


def layer_facts(overlay: Overlay) -> LayerFacts | None:
    """Of the directory that holds both halves; None where the mount has no metadata layer, or only relative paths."""
    home = overlay.layer_home
    if home is None or not home.startswith(b"/"):
        return None
    mount = MountTree(read()).at(os.path.realpath(home))
    return LayerFacts(
        fstype="" if mount is None else mount.fstype,
        trusted_xattrs=trusted_xattrs_at(overlay.metadata[0]),
        apart=tuple(_apart(home, (*overlay.metadata, home + b"/" + STAGE, home + b"/" + GRAVEYARD))),
        with_server=tuple(layer for layer in overlay.lowers if _shares_file_system(layer, home)),
        inode_bytes=None if mount is None else ext4.inode_size(mount),
    )


def unlike_data(overlay: Overlay) -> tuple[Misplaced, ...]:
    """The data-only layers of a layered mount that show another tree than the server's layer in the same place.

    The server is asked for the attributes of both roots (AT_STATX_FORCE_SYNC), because two mounts of one export have
    attribute caches of their own. A copy of a tree has another change time, which nobody can set.
    """
    if not overlay.metadata or overlay.relative_layers:
        return ()
    return tuple(
        Misplaced(data, seen)
        for lower, data in zip(overlay.lowers, overlay.data_only, strict=False)
        if (seen := _difference(lower, data))
    )


def exports_of(overlay: Overlay) -> tuple[bytes, ...]:
    """``SERVER:/path`` of every layer of the server, in their order; none where one of them is not NFS."""
    if overlay.relative_layers:
        return ()
    tree = MountTree(read())
    found = []
    for layer in overlay.lowers:
        path = os.path.realpath(layer)  # also through symlinks on the server, which nobody can mount
        mount = tree.at(path)
        if mount is None or mount.fstype not in FSTYPES:
            return ()
        found.append(mount.source + path[len(mount.mountpoint) :])
    return tuple(found)


def trusted_xattrs_at(path: bytes) -> bool | None:
    """Whether the file system of a directory can hold trusted attributes; None where it cannot be opened."""
    try:
        directory = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return xattrs.has_trusted(directory)
    finally:
        os.close(directory)


def _apart(home: bytes, directories: tuple[bytes, ...]) -> Iterator[bytes]:
    """Those on another mount or file system (a subvolume of btrfs is one): rename(2) fails between them with EXDEV."""
    place = _place(home)
    for directory in directories:
        there = _place(directory)
        if there is not None and there != place:
            yield directory


def _place(directory: bytes) -> tuple[int, tuple[int, int]] | None:
    found = _stat(directory)
    return None if found is None else (found.mount_id, found.dev)


def _shares_file_system(layer: bytes, home: bytes) -> bool:
    one, other = _stat(layer), _stat(home)
    return one is not None and other is not None and one.dev == other.dev


def _difference(lower: bytes, data: bytes) -> str:
    for _ in range(_TRIES):  # somebody may change the root between the two looks at it
        there, here = _stat(lower, ask=True), _stat(data, ask=True)
        if there is None or here is None:
            return "its root cannot be looked at"
        if _identity(there) == _identity(here):
            return ""
    return "its root has another inode number, mode, owner or time"


def _identity(root: Statx) -> tuple[int, ...]:
    return root.ino, root.mode, root.uid, root.gid, root.mtime_ns, root.ctime_ns


def _stat(path: bytes, *, ask: bool = False) -> Statx | None:
    try:
        directory = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return statx(directory, force_sync=ask)
    except OSError:
        return None
    finally:
        os.close(directory)
