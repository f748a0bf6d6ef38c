"""Planning: a directory with its whole closure of child directories, or the reason why it can never be complete.

Everything that would make a closure unfinishable is found here, before anything is copied (I7). Why the whole closure:
under an opaque parent a merged child directory would need a redirect, which only a rename makes the kernel write,
and which a later rename replaces by a relative one (the child then shows up empty); an opaque child needs none.
"""

import os
import stat
from collections.abc import Iterable, Iterator

from promoterd.backends.base import DirectoryTerms, Plan, PlannedDirectory, Terms
from promoterd.backends.denied import refused_where_denied
from promoterd.backends.obstacles import (
    contributing_below,
    few,
    refuse_many,
    refuse_opaque,
    refuse_other_mounts,
    refuse_redirected,
    refuse_renamed,
    refuse_root,
    refuse_unlisted,
    refuse_watched,
    refuse_young,
    refused,
)
from promoterd.errors import Refused
from promoterd.overlay import beneath, mounts, syscalls, xattrs
from promoterd.overlay.listing import UNCHANGEABLE, Layers, LowerListing, UpperEntry
from promoterd.overlay.shadows import file_stands_alone
from promoterd.paths import ancestors, display, join, show
from promoterd.provenance import decode


def plan_closure(layers: Layers, path: bytes, terms: Terms, *, needs_redirects: bool, alone: bool = False) -> Plan:
    """Plan ``path`` and every child directory that is not complete yet, children first; nothing where it is complete.

    ``needs_redirects``: regular files get an absolute redirect, whose length the kernel limits. ``alone`` plans the
    directory without its children. Raises Refused naming the directory that stands in the way, and OSError.
    """
    refuse_root(path)
    with refused_where_denied(path):
        return _plan(layers, path, terms, needs_redirects=needs_redirects, alone=alone)


def _plan(layers: Layers, path: bytes, terms: Terms, *, needs_redirects: bool, alone: bool) -> Plan:
    plan = Plan(path)
    waiting = _root_of_closure(layers, path)
    entries = 0
    while waiting:
        layers.breathe()
        directory, contributing = waiting.pop()
        demands = terms.of(directory)
        if demands.forbidden is not None:
            raise refused(path, directory, demands.forbidden)
        refuse_renamed(layers, directory, path)
        listing = layers.list_lower(directory, contributing)
        entries += len(listing.entries)
        refuse_many(path, entries, terms.max_entries)
        upper = layers.list_upper(directory)
        _check_listing(layers, path, directory, listing, upper, demands)
        if needs_redirects:
            _refuse_long(layers, path, directory, listing, upper)
        if not demands.hide_unlisted:
            refuse_unlisted(layers, path, PlannedDirectory(directory, contributing, listing))
        if demands.break_hardlinks and not layers.overlay.index:
            plan.broken_hardlinks.extend(
                join(directory, os.fsencode(name)) for name in listing.hard_linked if name not in upper
            )
        children = [] if alone else _merged_children(layers, path, directory, listing, upper)
        if children and not terms.recursive:
            raise refused(
                path, children[0], "it is not complete itself, and the rule says `recursive: false`", "promote it first"
            )
        waiting.extend(_with_layers(layers, path, contributing, children))
        plan.directories.append(PlannedDirectory(directory, contributing, listing))
    plan.directories.reverse()
    refuse_watched(layers, path, (d.path for d in plan.directories if not terms.of(d.path).ignore_watchers))
    return plan


def _root_of_closure(layers: Layers, path: bytes) -> list[tuple[bytes, tuple[int, ...]]]:
    """The directory itself, with the lower layers that have it, where its mount and its ancestors allow it."""
    refuse_other_mounts(layers, path)
    for ancestor in ancestors(path):
        refuse_renamed(layers, ancestor, path)
        refuse_opaque(layers, ancestor, path)
    with beneath.opened(layers.root, path):
        pass
    if is_complete(layers, path):
        return []
    refuse_renamed(layers, path, path)
    contributing: tuple[int, ...] = tuple(range(len(layers.lowers)))
    for directory in [*ancestors(path), path]:
        contributing = contributing_below(layers, path, contributing, directory)
        if not contributing:
            raise Refused(path=show(path), reason="no lower layer has it: there is nothing to ask the server for")
        _refuse_unchangeable(layers, path, directory, contributing[0])
    refuse_opaque(layers, path, path)
    return [(path, contributing)]


def _refuse_unchangeable(layers: Layers, path: bytes, directory: bytes, index: int) -> None:
    """Refuse where the directory would have to be copied up and cannot be."""
    if beneath.exists_beneath(layers.upper, directory):
        return
    with beneath.opened(layers.lowers[index], directory) as lower:
        if syscalls.statx(lower).attributes & UNCHANGEABLE:
            raise refused(path, directory, "it is immutable or append-only", "chattr -ia it on the server")


def _with_layers(
    layers: Layers, path: bytes, contributing: tuple[int, ...], children: Iterable[bytes]
) -> Iterator[tuple[bytes, tuple[int, ...]]]:
    for child in children:
        found = contributing_below(layers, path, contributing, child)
        if found:
            yield child, found


def is_complete(layers: Layers, path: bytes) -> bool:
    """Whether the upper directory carries a mark of ours that was made for this path."""
    provenance = decode(layers.upper_xattr(path, xattrs.PROVENANCE))
    return provenance is not None and provenance.is_at(path) and layers.upper_xattr(path, xattrs.OPAQUE) is not None


def _merged_children(
    layers: Layers, path: bytes, directory: bytes, listing: LowerListing, upper: dict[str, UpperEntry]
) -> list[bytes]:
    """Child directories that ask a lower layer, complete ones left out."""
    children = []
    for name in listing.directories():
        above = upper.get(name)
        child = join(directory, os.fsencode(name))
        if above is None or (stat.S_ISDIR(above.mode) and layers.upper_xattr(child, xattrs.OPAQUE) is None):
            children.append(child)
    for name, above in upper.items():
        if stat.S_ISDIR(above.mode) and not stat.S_ISDIR(listing.entries.get(name, 0)):
            refuse_renamed(layers, join(directory, os.fsencode(name)), path)
    return children


def _check_listing(
    layers: Layers,
    path: bytes,
    directory: bytes,
    listing: LowerListing,
    upper: dict[str, UpperEntry],
    demands: DirectoryTerms,
) -> None:
    refuse_redirected(path, directory, listing)
    linked = [name for name in listing.hard_linked if name not in upper]
    if linked and not layers.overlay.index and not demands.break_hardlinks:
        raise refused(
            path,
            directory,
            f"it holds hard-linked files ({few(linked)}), and copy-up without index=on breaks hard links",
            "mount with index=on, or say `hardlinks: break` in its rule",
        )
    fixed = [name for name in listing.unchangeable if name not in upper]
    if fixed:
        raise refused(
            path,
            directory,
            f"it holds immutable or append-only entries ({few(fixed)})",
            "chattr -ia them on the server",
        )
    refuse_young(path, directory, listing, demands)


def _refuse_long(
    layers: Layers, path: bytes, directory: bytes, listing: LowerListing, upper: dict[str, UpperEntry]
) -> None:
    most = mounts.redirect_max()
    for name, mode in listing.entries.items():
        length = len(b"/") + len(join(directory, os.fsencode(name)))
        if not stat.S_ISREG(mode) or length <= most or (name in upper and _needs_no_redirect(layers, directory, name)):
            continue
        raise refused(
            path,
            directory,
            f"the path of {display(os.fsencode(name))} has {length} bytes inside the mount, more than the overlay "
            f"module's redirect_max = {most}",
            "raise it: echo 4096 > /sys/module/overlay/parameters/redirect_max",
        )


def _needs_no_redirect(layers: Layers, directory: bytes, name: str) -> bool:
    with beneath.opened(layers.upper, directory) as above:
        return file_stands_alone(above, name)
