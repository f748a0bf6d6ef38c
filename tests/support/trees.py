"""Trees of files, written down as nested mappings.

``{"lib": {"a.so": b"…", "b.so": Symlink("a.so"), "old": {}}}``: bytes or str are a regular file's content, a mapping is
a directory, and the classes below are the rest. Everything is stamped :data:`OLD` unless it says otherwise.
"""

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

OLD = 1_600_000_000_000_000_000
"""A modification and access time (ns) that is older than any `min_age`."""

ODD_NAMES = (
    b"with space",
    b"new\nline",
    b"not-utf8-\xff\xfe",
    b"-dash",
    b"back\\slash",
    b"colon:comma,equals=",
    b"\xc3\xbcml\xc3\xa4ut",
    b"*glob[?]",
    b"n" * 255,
)


@dataclass(frozen=True)
class Attributes:
    """What any entry can have besides its type."""

    mode: int | None = field(default=None, kw_only=True)
    uid: int = field(default=0, kw_only=True)
    gid: int = field(default=0, kw_only=True)
    mtime_ns: int = field(default=OLD, kw_only=True)
    xattrs: Mapping[str, bytes] = field(default_factory=dict, kw_only=True)


@dataclass(frozen=True)
class File(Attributes):
    content: bytes = b""


@dataclass(frozen=True)
class Directory(Attributes):
    entries: "Mapping[str | bytes, Node]" = field(default_factory=dict)


@dataclass(frozen=True)
class Symlink(Attributes):
    target: str | bytes = b""


@dataclass(frozen=True)
class Fifo(Attributes):
    pass


@dataclass(frozen=True)
class Device(Attributes):
    """A character device; 0, 0 is a whiteout to an overlay."""

    major: int = 1
    minor: int = 3


@dataclass(frozen=True)
class Hardlink:
    """Another name of an entry that was made before; the path is relative to the tree's root."""

    to: str | bytes


Node: TypeAlias = "bytes | str | Mapping[str | bytes, Node] | Attributes | Hardlink"
Tree: TypeAlias = Mapping[str | bytes, Node]


def files(count: int, prefix: str = "f", content: bytes = b"content of %04d\n") -> dict[str | bytes, Node]:
    """So many small files, each with a content of its own."""
    return {f"{prefix}{number:04}": content % number if b"%" in content else content for number in range(count)}


def odd_files() -> dict[str | bytes, Node]:
    """One small file for each of :data:`ODD_NAMES`."""
    return {name: b"content of " + name for name in ODD_NAMES}


def build(root: str | bytes, tree: Tree) -> None:
    """Make the tree in ``root``, which is made if need be; root's own stamps become old too."""
    raw = os.fsencode(root)
    os.makedirs(raw, exist_ok=True)
    _fill(raw, tree, raw)
    os.utime(raw, ns=(OLD, OLD))


def _fill(directory: bytes, tree: Tree, root: bytes) -> None:
    for name, node in tree.items():
        _make(directory + b"/" + os.fsencode(name), node, root)


def _make(path: bytes, node: Node, root: bytes) -> None:
    if isinstance(node, Hardlink):
        os.link(root + b"/" + os.fsencode(node.to), path, follow_symlinks=False)
        return
    if isinstance(node, bytes | str):
        node = File(os.fsencode(node))
    elif isinstance(node, Mapping):
        node = Directory(node)
    default = _create(path, node, root)
    mode = default if node.mode is None else node.mode
    if os.geteuid() == 0 or (node.uid, node.gid) != (0, 0):  # a plain user's trees are that user's
        os.chown(path, node.uid, node.gid, follow_symlinks=False)
    if mode is not None:
        os.chmod(path, mode)
    for name, value in node.xattrs.items():
        os.setxattr(path, name, value, follow_symlinks=False)
    os.utime(path, ns=(node.mtime_ns, node.mtime_ns), follow_symlinks=False)


def _create(path: bytes, node: Attributes, root: bytes) -> int | None:
    """Make the bare entry; the mode that it gets unless it says otherwise."""
    match node:
        case File(content):
            with open(path, "wb") as file:
                file.write(content)
            return 0o644
        case Directory(entries):
            os.makedirs(path, exist_ok=True)
            _fill(path, entries, root)
            return 0o755
        case Symlink(target):
            os.symlink(os.fsencode(target), path)
            return None
        case Fifo():
            os.mkfifo(path)
            return 0o644
        case Device(major, minor):
            os.mknod(path, stat.S_IFCHR, os.makedev(major, minor))
            return 0o600
        case _:
            raise TypeError(f"{node!r} is no entry of a tree")
