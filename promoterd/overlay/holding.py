"""Which mount holds a layer, from the mount table: nothing is touched below a network file system, no server asked."""

import os
from collections.abc import Iterator, Sequence

from promoterd.overlay.mountinfo import MountEntry, MountTree, is_network, read

_MOST_LINKS = 40


def mounts_holding(layers: Sequence[bytes]) -> list[MountEntry | None]:
    """For each layer; None for a relative path, which may mean anything. Raises OSError."""
    tree = MountTree(read())
    return [mount_holding(tree, layer)[0] for layer in layers]


def mount_holding(tree: MountTree, path: bytes) -> tuple[MountEntry | None, bytes]:
    """The mount that holds a path, and the path without the symlinks that lie on local file systems.

    A symlink on a network's file system counts as if it led to nowhere else.
    """
    if not path.startswith(b"/"):
        return None, path
    resolved = _resolve(tree, path)
    return tree.at(resolved), resolved


def _resolve(tree: MountTree, path: bytes) -> bytes:
    done, rest, links = b"/", list(_names(path)), 0
    while rest:
        here = os.path.join(done, rest.pop(0))
        entry = tree.at(here)
        if entry is None or is_network(entry.fstype):
            return os.path.normpath(os.path.join(here, *rest))
        try:
            target = os.readlink(here)
        except OSError:
            done = here
            continue
        links += 1
        if links > _MOST_LINKS:
            return path
        rest = [*_names(target), *rest]
        done = b"/" if target.startswith(b"/") else done
    return os.path.normpath(done)


def _names(path: bytes) -> Iterator[bytes]:
    return (name for name in path.split(b"/") if name not in (b"", b"."))
