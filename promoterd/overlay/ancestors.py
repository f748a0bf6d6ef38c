"""Ancestors that promotion copied up keep following the lower layers (R2).

Copy-up freezes a directory's owner, mode, times and ACL in upper; an importer that lists by mtime would never see a new
release. Beside each such directory stands a record of the attributes that it was last made to follow: where the upper
directory still has them and lower differs, lower wins; where it has others, a user changed it and is left alone.
"""

import os
import stat
from dataclasses import dataclass

from promoterd.overlay import beneath, copyup, syscalls, xattrs
from promoterd.overlay.listing import Layers
from promoterd.paths import ancestors, parent
from promoterd.provenance import AncestorRecord, decode_ancestor

_ACLS = ("system.posix_acl_access", "system.posix_acl_default")


@dataclass(frozen=True, slots=True)
class Attributes:
    """What of a directory an ancestor has to follow."""

    mode: int
    uid: int
    gid: int
    mtime_ns: int
    acls: tuple[bytes | None, ...]

    def record(self) -> AncestorRecord:
        """As it is kept beside the directory."""
        text = ";".join("" if acl is None else acl.hex() for acl in self.acls)
        return AncestorRecord(self.mode, self.uid, self.gid, self.mtime_ns, text)


def attributes(directory: int, *, force_sync: bool = False) -> Attributes:
    """The attributes of an open directory, asked of the server where ``force_sync``. Raises OSError."""
    found = syscalls.statx(directory, force_sync=force_sync)
    itself = xattrs.descriptor(directory)
    acls = tuple(xattrs.get(itself, name) for name in _ACLS)
    return Attributes(stat.S_IMODE(found.mode), found.uid, found.gid, found.mtime_ns, acls)


def adopt_ancestors(layers: Layers, path: bytes) -> list[bytes]:
    """Copy the ancestors of ``path`` up, top first, each with a record of what it follows.

    Only an ancestor that still looks as its lower directory does gets a record; returns those that have one now.
    """
    adopted = []
    for ancestor in ancestors(path):
        contributing = layers.contributing(ancestor)
        if not contributing:
            continue
        if not beneath.exists_beneath(layers.upper, ancestor):
            with beneath.opened(layers.root, parent(ancestor)) as above:
                copyup.copy_up_by_times(above, os.fsdecode(ancestor.rpartition(b"/")[2]))
        if layers.upper_xattr(ancestor, xattrs.ANCESTOR) is None:
            with (
                beneath.opened(layers.upper, ancestor) as upper,
                beneath.opened(layers.lowers[contributing[0]], ancestor) as lower,
            ):
                seen = attributes(upper)
                if seen != attributes(lower, force_sync=True):
                    continue
                xattrs.put(xattrs.descriptor(upper), xattrs.ANCESTOR, seen.record().encode())
        adopted.append(ancestor)
    return adopted


def follow_lower(layers: Layers, path: bytes) -> bool:
    """Make a copied-up ancestor follow its lower directory again, through the overlay; True where it changed.

    False also where the user has changed it since, where it has no record, or where lower has no such directory.
    Raises OSError.
    """
    record = decode_ancestor(layers.upper_xattr(path, xattrs.ANCESTOR))
    contributing = layers.contributing(path)
    if record is None or not contributing:
        return False
    with beneath.opened(layers.lowers[contributing[0]], path) as lower:
        wanted = attributes(lower, force_sync=True)
    with beneath.opened(layers.root, path) as merged:
        seen = attributes(merged)
        if seen == wanted or seen.record() != record:
            return False
        _apply(merged, seen, wanted)
    with beneath.opened(layers.upper, path) as upper:
        xattrs.put(xattrs.descriptor(upper), xattrs.ANCESTOR, wanted.record().encode())
    return True


def _apply(directory: int, seen: Attributes, wanted: Attributes) -> None:
    """Owner, mode, ACL and last the times; by way of /proc, because an open would count as heat."""
    itself = xattrs.descriptor(directory)
    if (seen.uid, seen.gid) != (wanted.uid, wanted.gid):
        os.chown(itself, wanted.uid, wanted.gid)
    os.chmod(itself, wanted.mode)
    for name, before, after in zip(_ACLS, seen.acls, wanted.acls, strict=True):
        if before != after and after is not None:
            xattrs.put(itself, name, after)
        elif before != after:
            xattrs.remove(itself, name)
    os.utime(itself, ns=(os.stat(itself).st_atime_ns, wanted.mtime_ns))
