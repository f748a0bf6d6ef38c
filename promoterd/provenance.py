"""What we write beside a mark, so that a mark can be told from a user's own and from one of another lower (R9).

The kernel writes ``opaque=y`` itself when a user removes and re-creates a directory; a mark without our provenance is
therefore the user's, and is never touched. Provenance is durable before the mark.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from promoterd import records
from promoterd.overlay.listing import Stamp


def digest(text: bytes | str) -> str:
    """A short name for a path or an identity that may be longer than an extended attribute should be."""
    return hashlib.sha256(text if isinstance(text, bytes) else text.encode("utf-8", "surrogateescape")).hexdigest()[:24]


@dataclass(frozen=True, slots=True)
class Provenance:
    """Who completed a directory, from what, and when.

    ``lower`` names the identities of the contributing lower layers, ``stamps`` their directories' stamps at the time
    of the listing (mtime, ctime, inode; nanoseconds); ``completed_ns`` is this node's clock; ``roll`` says where the
    names that were listed are written down.
    """

    backend: str
    path: str
    lower: tuple[str, ...]
    stamps: tuple[tuple[int, int, int], ...]
    completed_ns: int
    entries: int
    roll: str = ""

    @classmethod
    def of(  # noqa: PLR0913, PLR0917 - the fields of the record
        cls,
        backend: str,
        path: bytes,
        lower: Sequence[str],
        stamps: Sequence[Stamp],
        completed_ns: int,
        entries: int,
        roll: str = "",
    ) -> "Provenance":
        """The record for a directory at ``path`` whose lower layers have the identities ``lower``."""
        return cls(
            backend,
            digest(path),
            tuple(digest(identity) for identity in lower),
            tuple((stamp.mtime_ns, stamp.ctime_ns, stamp.inode) for stamp in stamps),
            completed_ns,
            entries,
            roll,
        )

    def encode(self) -> bytes:
        """The attribute's value."""
        return records.encode(
            backend=self.backend,
            path=self.path,
            lower=self.lower,
            stamps=self.stamps,
            completed=self.completed_ns,
            entries=self.entries,
            roll=self.roll,
        )

    def matches_stamps(self, stamps: Sequence[Stamp]) -> bool:
        """Whether the lower directories' names are still those that were listed."""
        return self.stamps == tuple((stamp.mtime_ns, stamp.ctime_ns, stamp.inode) for stamp in stamps)

    def is_at(self, path: bytes) -> bool:
        """Whether it was written for this path; a directory that was renamed or copied since says no."""
        return self.path == digest(path)

    def is_from(self, present: Sequence[str]) -> bool:
        """Whether every lower layer that it was written over is among those that are there now."""
        return {digest(identity) for identity in present}.issuperset(self.lower)

    def is_over(self, lower: Sequence[str]) -> bool:
        """Whether it was written over these lower layers."""
        return self.lower == tuple(digest(identity) for identity in lower)


def decode(value: bytes | None) -> Provenance | None:
    """The record in an attribute's value; None where there is none that this version can read."""
    return records.decode(
        value,
        lambda fields: Provenance(
            str(fields["backend"]),
            str(fields["path"]),
            tuple(str(identity) for identity in fields["lower"]),
            tuple((int(mtime), int(ctime), int(inode)) for mtime, ctime, inode in fields["stamps"]),
            int(fields["completed"]),
            int(fields["entries"]),
            str(fields["roll"]),
        ),
    )


@dataclass(frozen=True, slots=True)
class AncestorRecord:
    """The attributes of a lower directory that an ancestor in upper was last made to follow (R2)."""

    mode: int
    uid: int
    gid: int
    mtime_ns: int
    acl: str

    def encode(self) -> bytes:
        """The attribute's value."""
        return records.encode(mode=self.mode, uid=self.uid, gid=self.gid, mtime=self.mtime_ns, acl=self.acl)


def decode_ancestor(value: bytes | None) -> AncestorRecord | None:
    """The record in an ancestor's attribute; None where there is none that this version can read."""
    return records.decode(
        value,
        lambda fields: AncestorRecord(
            int(fields["mode"]), int(fields["uid"]), int(fields["gid"]), int(fields["mtime"]), str(fields["acl"])
        ),
    )
