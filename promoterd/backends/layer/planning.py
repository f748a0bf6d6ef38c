"""Planning for the metadata layer: the directory, those below it that policy allows, and the chain above it.

A child directory need not be complete: it stands in its parent as a stub that is merged with lower's. So what keeps a
child or an ancestor from being complete leaves it out, and only what keeps the directory itself from it refuses.
"""

import os
import stat
from collections.abc import Iterator
from dataclasses import replace

from promoterd.backends.base import DirectoryTerms, PlannedDirectory, Terms
from promoterd.backends.denied import refused_where_denied
from promoterd.backends.layer.entries import reports_acls
from promoterd.backends.layer.home import layer_xattr, longest_path
from promoterd.backends.layer.plans import LayerPlan
from promoterd.backends.layer.watched import leave_out_watched
from promoterd.backends.obstacles import (
    TooYoung,
    refuse_many,
    refuse_opaque,
    refuse_other_mounts,
    refuse_redirected,
    refuse_renamed,
    refuse_root,
    refuse_unlisted,
    refuse_young,
    refused,
)
from promoterd.errors import Refused
from promoterd.overlay import beneath, xattrs
from promoterd.overlay.listing import Layers, LowerListing, UpperEntry
from promoterd.paths import ancestors, join, show
from promoterd.provenance import decode

_ANY_AGE = 1 << 63


def plan_layer(layers: Layers, path: bytes, terms: Terms) -> LayerPlan:
    """Plan ``path``, or nothing where it is complete. Raises Refused naming what stands in the way, and OSError."""
    plan = LayerPlan(path)
    refuse_root(path)
    with refused_where_denied(path):
        contributing = _check_place(layers, path)
        if not is_complete(layers, path):
            _plan_below(layers, path, contributing, terms, plan)
            _plan_chain(layers, path, terms, plan)
            leave_out_watched(layers, plan, terms.of(path))
    return plan


def plan_resync(layers: Layers, path: bytes, terms: Terms) -> LayerPlan:
    """Plan to bring ``path`` in line with the server; without mark where that has changed it too lately (R7).

    Raises Refused, OSError.
    """
    refuse_root(path)
    with refused_where_denied(path):
        contributing = _check_place(layers, path)
        demands = terms.of(path)
        listing = _listing(layers, path, path, contributing, replace(demands, oldest_allowed_ns=_ANY_AGE))
        plan = LayerPlan(path, [PlannedDirectory(path, contributing, listing)], demands={path: demands})
        try:
            refuse_young(path, path, listing, demands)
        except TooYoung:
            plan.mark = False
    return plan


def is_complete(layers: Layers, path: bytes) -> bool:
    """Whether the rest half's directory carries a mark of ours that was made for this path."""
    provenance = decode(layer_xattr(layers, path, xattrs.PROVENANCE))
    return provenance is not None and provenance.is_at(path) and layer_xattr(layers, path, xattrs.OPAQUE) is not None


def _is_ours(layers: Layers, path: bytes) -> bool | None:
    """Whether what the layer has there is looked after already, complete or open, and comes into line by itself.

    False where somebody else made it, or it was made for another path; None for a stub, and for nothing.
    """
    value = layer_xattr(layers, path, xattrs.PROVENANCE)
    provenance = decode(value)
    if provenance is not None:
        return provenance.is_at(path)
    return False if value is not None or layer_xattr(layers, path, xattrs.OPAQUE) is not None else None


def _refuse_not_ours(layers: Layers, directory: bytes, path: bytes) -> None:
    """Refuse ``path`` where the layer's directory carries a mark that we did not write there (R9)."""
    if _is_ours(layers, directory) is False:
        raise refused(
            path,
            directory,
            "the metadata layer has a directory there that promoterd did not complete, or completed for another path",
            "unmount the overlay, and remove that directory from both halves of the layer",
        )


def _check_place(layers: Layers, path: bytes) -> tuple[int, ...]:
    """The lower layers that have the directory, where nothing on the mount speaks against completing it."""
    refuse_other_mounts(layers, path)
    for directory in [*ancestors(path), path]:
        refuse_renamed(layers, directory, path)
        refuse_opaque(layers, directory, path)
        _refuse_not_ours(layers, directory, path)
    with beneath.opened(layers.root, path):
        pass
    contributing = layers.contributing(path)
    if not contributing:
        raise Refused(path=show(path), reason="no lower layer has it: there is nothing to ask the server for")
    return contributing


def _plan_below(layers: Layers, path: bytes, contributing: tuple[int, ...], terms: Terms, plan: LayerPlan) -> None:
    waiting = [(path, contributing)]
    entries = 0
    while waiting:
        layers.breathe()
        directory, found = waiting.pop()
        demands = terms.of(directory)
        try:
            listing = _listing(layers, path, directory, found, demands)
        except Refused:
            if directory == path:
                raise
            continue
        entries += len(listing.entries)
        refuse_many(path, entries, terms.max_entries)
        plan.directories.append(PlannedDirectory(directory, found, listing))
        plan.demands[directory] = demands
        if terms.recursive:
            waiting.extend(_children(layers, directory, found, listing))
    plan.directories.reverse()


def _plan_chain(layers: Layers, path: bytes, terms: Terms, plan: LayerPlan) -> None:
    """The ancestors of ``path`` that may be complete: then a walk to it asks for none of them."""
    for ancestor in reversed(ancestors(path)):
        demands = terms.of(ancestor)
        if demands.forbidden is not None or not demands.chain or _is_ours(layers, ancestor):
            continue
        found = layers.contributing(ancestor)
        try:
            listing = _listing(layers, path, ancestor, found, demands)
        except Refused:
            continue
        if len(listing.entries) <= terms.max_entries:
            plan.directories.append(PlannedDirectory(ancestor, found, listing))
            plan.demands[ancestor] = demands


def _listing(
    layers: Layers, path: bytes, directory: bytes, contributing: tuple[int, ...], demands: DirectoryTerms
) -> LowerListing:
    """What lower has there. Raises Refused where it must not be complete (now)."""
    if demands.forbidden is not None:
        raise refused(path, directory, demands.forbidden)
    if len(directory) > (longest := longest_path(layers.metadata[1])):
        raise refused(
            path,
            directory,
            f"its path has more than {longest} bytes, and does not fit into an attribute on the layer's file system",
            "promote directories above it",
        )
    if not demands.copy_xattrs:
        _refuse_lost_rights(layers, path, directory, contributing)
    listing = layers.list_lower(directory, contributing, with_attributes=True)
    refuse_redirected(path, directory, listing)
    refuse_young(path, directory, listing, demands)
    if not demands.hide_unlisted:
        refuse_unlisted(layers, path, PlannedDirectory(directory, contributing, listing))
    return listing


def _refuse_lost_rights(layers: Layers, path: bytes, directory: bytes, contributing: tuple[int, ...]) -> None:
    """Without their ACLs and capabilities, files would let other people do other things than on the server."""
    for index in contributing:
        with beneath.opened(layers.lowers[index], directory) as lower:
            kept = list(reports_acls(xattrs.descriptor(lower)))
        if kept:
            raise refused(
                path,
                directory,
                f"its rule says `xattrs: skip`, and the lower layer may have {' and '.join(kept)} on files",
                "say `xattrs: copy`, or mount the server with noacl",
            )


def _children(
    layers: Layers, directory: bytes, contributing: tuple[int, ...], listing: LowerListing
) -> Iterator[tuple[bytes, tuple[int, ...]]]:
    """Child directories that are not complete, and that upper does not hide or lead elsewhere."""
    upper = layers.list_upper(directory)
    for name in listing.directories():
        child = join(directory, os.fsencode(name))
        if _is_hidden(layers, child, upper.get(name)) or _is_ours(layers, child) is not None:
            continue
        try:
            found = layers.contributing_below(contributing, child)
        except Refused:
            continue
        if found:
            yield child, found


def _is_hidden(layers: Layers, child: bytes, above: UpperEntry | None) -> bool:
    if above is None:
        return False
    return (
        not stat.S_ISDIR(above.mode)
        or layers.upper_xattr(child, xattrs.OPAQUE) == xattrs.OPAQUE_YES
        or layers.upper_xattr(child, xattrs.REDIRECT) is not None
    )
