"""Who watches what comes into the layer or leaves it (R11).

The overlay finds an inode by the topmost lower one (ovl_hash_bylower, fs/overlayfs/inode.c): what comes into the layer
gets another, and a watch on the former one stays silent from then on. It also keeps that inode, as it was then. If the
entry is copied up meanwhile, and leaves the layer again, the kernel finds the kept inode, which knows nothing of upper,
and answers ESTALE until the watch is gone (ovl_verify_inode). So nothing is promoted that another process watches; and
where policy says so all the same, what was changed meanwhile stays.
"""

import os
import stat
from collections.abc import Iterator, Sequence

from promoterd.backends.base import Busy, DirectoryTerms
from promoterd.backends.layer.plans import LayerPlan
from promoterd.errors import Refused
from promoterd.overlay import beneath, watchers
from promoterd.overlay.listing import Layers
from promoterd.paths import ancestors, join, parent, show

Watched = dict[bytes, frozenset[int]]


def leave_out_watched(layers: Layers, plan: LayerPlan, demands: DirectoryTerms) -> None:
    """Refuse a plan whose directory, or what comes into the layer with it, is watched; leave others out of it.

    Fills in what comes into the layer. Raises Refused.
    """
    theirs = watchers.on_mount(layers.root, os.getpid())
    plan.entering = list(_entering(layers, plan))
    if not theirs or demands.ignore_watchers:
        return
    watched = watchers.watched_by_others(layers.root, plan.renewed)
    watched |= _watched_files(plan, theirs)
    # as a stub in its parent, too, it would have another inode
    blocked = {found for path in watched for found in (path, parent(path))}
    for path in watched:
        if path in (*ancestors(plan.path), plan.path) or parent(path) == plan.path:
            raise Refused(
                path=show(plan.path),
                reason=f"process {_pids(watched[path])} watches {show(path)} (inotify), and the watch would go dead on "
                "activation",
                hint="stop that process, or say `watched: ignore` in its rule",
            )
    plan.directories = [directory for directory in plan.directories if directory.path not in blocked]
    plan.entering = list(_entering(layers, plan))


def refuse_kept(layers: Layers, paths: Sequence[bytes]) -> None:
    """Raise Busy where something at, above or below ``paths`` was changed here, and a watch may keep its inode."""
    theirs = watchers.on_mount(layers.root, os.getpid())
    if not theirs:
        return
    changed = sorted({found for path in paths for found in [*ancestors(path), *_in_upper(layers, path)]})
    changed = [path for path in changed if beneath.exists_beneath(layers.upper, parent(path))]
    known = watchers.identities(layers.root, changed, directories=False).values()
    unknown = theirs.keys() - {inode.ino for inode in known}
    if changed and unknown:
        pids = _pids(frozenset().union(*(theirs[ino] for ino in unknown)))
        raise Busy(
            path=show(changed[-1]),
            reason=f"process {pids} watches something of the mount (inotify), perhaps since before this was completed "
            "and then changed on this machine: it would answer ESTALE",
            hint="stop that process, then try again",
        )


def _entering(layers: Layers, plan: LayerPlan) -> Iterator[bytes]:
    planned = {directory.path for directory in plan.directories}
    children = (
        join(directory.path, os.fsencode(name))
        for directory in plan.directories
        for name in directory.listing.directories()
    )
    for path in [*ancestors(plan.path), *children]:
        if path not in planned and not beneath.exists_beneath(layers.metadata[1], path):
            yield path


def _watched_files(plan: LayerPlan, theirs: dict[int, frozenset[int]]) -> Watched:
    """Files of the plan that are watched, each by its directory: their inodes have lower's number."""
    found: Watched = {}
    for directory in plan.directories:
        table = directory.listing.attributes
        for row in table or ():
            if stat.S_ISREG(row.mode) and row.inode in theirs:
                found[directory.path] = found.get(directory.path, frozenset()) | theirs[row.inode]
    return found


def _in_upper(layers: Layers, path: bytes) -> Iterator[bytes]:
    waiting = [path]
    while waiting:
        directory = waiting.pop()
        if beneath.exists_beneath(layers.upper, directory):
            yield directory
        for name, entry in layers.list_upper(directory).items():
            found = join(directory, os.fsencode(name))
            if stat.S_ISDIR(entry.mode):
                waiting.append(found)
            elif stat.S_ISREG(entry.mode):
                yield found


def _pids(pids: frozenset[int]) -> str:
    return ", ".join(map(str, sorted(pids)))
