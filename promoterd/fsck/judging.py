"""Whether a shadow is what the server has (pure: nothing is read here)."""

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field

from promoterd import records
from promoterd.fsck.findings import Kind
from promoterd.paths import display, join

Problem = tuple[Kind, str]
_TYPES = {
    stat.S_IFREG: "a file",
    stat.S_IFDIR: "a directory",
    stat.S_IFLNK: "a symlink",
    stat.S_IFCHR: "a character device",
    stat.S_IFBLK: "a block device",
    stat.S_IFIFO: "a fifo",
    stat.S_IFSOCK: "a socket",
}


@dataclass(frozen=True, slots=True)
class Facts:
    """What lstat(2) tells of an entry; times in nanoseconds."""

    mode: int
    uid: int
    gid: int
    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int
    nlink: int
    rdev: int

    @classmethod
    def of(cls, status: os.stat_result) -> "Facts":
        """From the result of os.stat()."""
        return cls(
            status.st_mode, status.st_uid, status.st_gid, status.st_size, status.st_mtime_ns,
            status.st_ctime_ns, status.st_ino, status.st_nlink, status.st_rdev,
        )  # fmt: skip

    @property
    def type_name(self) -> str:
        """The type, in words."""
        return _TYPES.get(stat.S_IFMT(self.mode), "something unknown")


@dataclass(frozen=True, slots=True)
class Shadow:
    """A local entry with what overlayfs, or we, wrote beside it."""

    facts: Facts
    metacopy: bool = False
    redirect: bytes | None = None
    copy: bytes | None = None


@dataclass(frozen=True, slots=True)
class Copy:
    """What stands beside data that was copied into the layer: of which state of the server's file, and its digest."""

    ctime_ns: int
    mtime_ns: int
    inode: int
    sha256: str


def decode_copy(value: bytes) -> Copy | None:
    """The record in an attribute's value; None where this version cannot read it."""
    return records.decode(
        value,
        lambda fields: Copy(int(fields["ctime"]), int(fields["mtime"]), int(fields["inode"]), str(fields["sha256"])),
    )


def attribute_problems(lower: Facts, shadow: Facts) -> Iterator[Problem]:
    """What differs between two entries of one type in owner, mode and modification time."""
    if (lower.uid, lower.gid) != (shadow.uid, shadow.gid):
        yield Kind.OWNER, f"owner {shadow.uid}:{shadow.gid}, the server has {lower.uid}:{lower.gid}"
    # a symlink's mode means nothing, and is always 0777 on a local file system (symlink(7))
    if stat.S_IMODE(lower.mode) != stat.S_IMODE(shadow.mode) and not stat.S_ISLNK(lower.mode):
        yield Kind.MODE, f"mode {stat.S_IMODE(shadow.mode):04o}, the server has {stat.S_IMODE(lower.mode):04o}"
    if lower.mtime_ns != shadow.mtime_ns:
        yield Kind.TIME, f"mtime {_seconds(shadow.mtime_ns)}, the server has {_seconds(lower.mtime_ns)}"


def content_problems(lower: Facts, shadow: Facts) -> Iterator[Problem]:
    """What differs between two entries that are no directories: the type, or else all that lstat tells."""
    if stat.S_IFMT(lower.mode) != stat.S_IFMT(shadow.mode):
        yield Kind.TYPE, f"{shadow.type_name}, the server has {lower.type_name}"
        return
    yield from attribute_problems(lower, shadow)
    if lower.size != shadow.size:
        yield Kind.SIZE, f"size {shadow.size}, the server has {lower.size}"
    if lower.rdev != shadow.rdev and (stat.S_ISCHR(lower.mode) or stat.S_ISBLK(lower.mode)):
        yield Kind.DEVICE, f"device {_device(shadow.rdev)}, the server has {_device(lower.rdev)}"


def target_problem(here: str, there: str | None) -> Problem:
    """A symlink that leads elsewhere than the server's, which may be none any more."""
    leads = "nowhere any more" if there is None else display(os.fsencode(there))
    return Kind.TARGET, f"leads to {display(os.fsencode(here))}, on the server to {leads}"


def stub_problems(lower: Facts, shadow: Shadow, path: bytes) -> Iterator[Problem]:
    """Whether overlayfs, or we, know where the data of a regular file in the layer is.

    ``path`` is its own inside the mount. The redirect of a hard link is another of its names: see :class:`HardLinks`.
    """
    if shadow.copy is not None:
        yield from _copy_problems(lower, shadow)
    elif not shadow.metacopy:
        yield Kind.NO_DATA, "neither a stub nor a copy: it would be read as it lies there"
    elif shadow.redirect is None:
        yield Kind.REDIRECT, "a stub without a redirect: it cannot be opened"
    elif lower.nlink == 1 and shadow.redirect != b"/" + path:
        yield Kind.REDIRECT, f"its data is taken from {display(shadow.redirect)}"


def _copy_problems(lower: Facts, shadow: Shadow) -> Iterator[Problem]:
    record = decode_copy(shadow.copy or b"")
    if shadow.metacopy or shadow.redirect is not None:
        yield Kind.COPY, "a copy and a stub at once"
    elif record is None:
        yield Kind.COPY, "a copy whose record cannot be read"
    elif (record.ctime_ns, record.mtime_ns, record.inode) != (lower.ctime_ns, lower.mtime_ns, lower.inode):
        yield Kind.COPY, "a copy of what the server had before"


@dataclass(slots=True)
class _Group:
    """The names of one hard-linked file of the server, in one directory."""

    shadow: int
    first: str
    names: set[bytes] = field(default_factory=set)
    redirects: dict[bytes, list[str]] = field(default_factory=dict)


@dataclass(slots=True)
class HardLinks:
    """Whether what is hard-linked inside one directory is so in the layer too; holds the hard-linked ones only."""

    directory: bytes
    groups: dict[tuple[int, int], _Group] = field(default_factory=dict)
    shadows: dict[int, tuple[tuple[int, int], str]] = field(default_factory=dict)

    def add(self, name: str, layer: int, lower: Facts, shadow: Shadow) -> Iterator[Problem]:
        """One more file, of the lower layer with this number."""
        key = (layer, lower.inode)
        if lower.nlink > 1:
            group = self.groups.setdefault(key, _Group(shadow.facts.inode, name))
            group.names.add(os.fsencode(name))
            if shadow.metacopy and shadow.redirect is not None:
                group.redirects.setdefault(shadow.redirect, []).append(name)
            if group.shadow != shadow.facts.inode:
                yield Kind.HARD_LINK, f"no hard link to {_shown(group.first)}, as it is on the server"
                return
        if shadow.facts.nlink > 1:
            other, first = self.shadows.setdefault(shadow.facts.inode, (key, name))
            if other != key:
                yield Kind.HARD_LINK, f"a hard link to {_shown(first)}, which is another file on the server"

    def redirect_problems(self) -> Iterator[tuple[str, Problem]]:
        """Names whose redirect leads to none of their file's names, once all were added."""
        for group in self.groups.values():
            good = {b"/" + join(self.directory, name) for name in group.names}
            for redirect, names in group.redirects.items():
                if redirect not in good:
                    said = f"its data is taken from {display(redirect)}"
                    yield from ((name, (Kind.REDIRECT, said)) for name in names)


def _shown(name: str) -> str:
    return display(os.fsencode(name))


def _seconds(time_ns: int) -> str:
    return f"{time_ns // 1_000_000_000}.{time_ns % 1_000_000_000:09}"


def _device(rdev: int) -> str:
    return f"{os.major(rdev)}:{os.minor(rdev)}"
