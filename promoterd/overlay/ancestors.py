"""Ancestors that promotion copied up keep following the lower layers (R2).

Copy-up freezes a directory's owner, mode, times and ACL in upper; an importer that lists by mtime would never see a new
release. Beside each such directory stands a record of the attributes that it was last made to follow: what upper still
has as recorded follows lower; what it has otherwise was changed by a user and stays, but for the modification time,
which has to tell of lower's changes as well as of the user's.
"""

import os
import stat
from dataclasses import dataclass, replace

from promoterd.overlay import beneath, copyup, syscalls, xattrs
from promoterd.overlay.listing import Layers
from promoterd.paths import ancestors, parent
from promoterd.provenance import AncestorRecord, decode_ancestor

_VISIBLE_NS = 1000
"""The least difference that a program shows which keeps times as floating-point seconds (Python's importer)."""
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

    Only a copy that still looks as its lower directory does gets a record; returns those that have one now.
    """
    return [ancestor for ancestor in ancestors(path) if adopt(layers, ancestor, layers.contributing(ancestor))]


def adopt(layers: Layers, path: bytes, contributing: tuple[int, ...]) -> bool:
    """Copy one directory up that these lower layers have, with a record of what it follows; whether it has one now."""
    if not contributing:
        return False
    if not beneath.exists_beneath(layers.upper, path):
        with beneath.opened(layers.root, parent(path)) as above:
            copyup.copy_up_by_times(above, os.fsdecode(path.rpartition(b"/")[2]))
    if layers.upper_xattr(path, xattrs.ORIGIN) is None:
        return False
    if layers.upper_xattr(path, xattrs.ANCESTOR) is None:
        with (
            beneath.opened(layers.upper, path) as upper,
            beneath.opened(layers.lowers[contributing[0]], path) as lower,
        ):
            seen = attributes(upper)
            if seen != attributes(lower, force_sync=True):
                return False
            xattrs.put(xattrs.descriptor(upper), xattrs.ANCESTOR, seen.record().encode())
    return True


def follow_lower(layers: Layers, path: bytes) -> bool:
    """Make a copied-up ancestor follow its lower directory again, through the overlay; True where it changed.

    False also where it has no record, or where lower has no such directory. Raises OSError.
    """
    record = decode_ancestor(layers.upper_xattr(path, xattrs.ANCESTOR))
    contributing = layers.contributing(path)
    if record is None or not contributing:
        return False
    with beneath.opened(layers.lowers[contributing[0]], path) as lower:
        wanted = attributes(lower, force_sync=True)
    if wanted.record() == record:
        return False
    with beneath.opened(layers.root, path) as merged:
        seen = attributes(merged)
        following = merge(record, seen, wanted)
        if following != seen:
            _apply(merged, seen, following)
    with beneath.opened(layers.upper, path) as upper:
        xattrs.put(xattrs.descriptor(upper), xattrs.ANCESTOR, wanted.record().encode())
    return following != seen


def merge(record: AncestorRecord, seen: Attributes, wanted: Attributes) -> Attributes:
    """What an ancestor has to become: lower's attributes, but for those that a user changed (pure).

    ``record`` is not what lower has any more. A mode and its ACL belong together, and so do user and group.
    """
    before = seen.record()
    following = replace(wanted)
    if (before.mode, before.acl) != (record.mode, record.acl):
        following = replace(following, mode=seen.mode, acls=seen.acls)
    if (before.uid, before.gid) != (record.uid, record.gid):
        following = replace(following, uid=seen.uid, gid=seen.gid)
    if wanted.mtime_ns in (record.mtime_ns, seen.mtime_ns):
        return replace(following, mtime_ns=seen.mtime_ns)
    if seen.mtime_ns != record.mtime_ns:
        return replace(following, mtime_ns=max(wanted.mtime_ns, seen.mtime_ns + _VISIBLE_NS))
    return following


def _apply(directory: int, seen: Attributes, wanted: Attributes) -> None:
    """Owner, mode, ACL and last the times; by way of /proc, because an open would count as heat."""
    itself = xattrs.descriptor(directory)
    if (seen.uid, seen.gid) != (wanted.uid, wanted.gid):
        os.chown(itself, wanted.uid, wanted.gid)
    if seen.acls != wanted.acls:
        for name, acl in zip(_ACLS, wanted.acls, strict=True):
            if acl is not None:
                xattrs.put(itself, name, acl)
            else:
                xattrs.remove(itself, name)
    os.chmod(itself, wanted.mode)
    os.utime(itself, ns=(os.stat(itself).st_atime_ns, wanted.mtime_ns))
