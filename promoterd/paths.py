"""Paths inside a mount: bytes, relative, no leading slash; ``b""`` is the mount's root."""

import os

from promoterd.errors import UsageError


def display(path: bytes) -> str:
    """A path as one printable line: undecodable bytes and control characters become backslash escapes."""
    text = path.decode("utf-8", "backslashreplace")
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text)


def show(path: bytes) -> str:
    """As :func:`display`, with a leading slash, so that the mount's root has a name too."""
    return "/" + display(path)


def join(directory: bytes, name: bytes) -> bytes:
    """The path of an entry of a directory."""
    return directory + b"/" + name if directory else name


def parent(path: bytes) -> bytes:
    """The directory that holds ``path``; the root is its own parent."""
    return path.rpartition(b"/")[0]


def ancestors(path: bytes) -> list[bytes]:
    """All proper ancestors below the root, top first: ``a/b/c`` gives ``[a, a/b]``."""
    parts = path.split(b"/")
    return [b"/".join(parts[:n]) for n in range(1, len(parts))]


def is_below(path: bytes, directory: bytes) -> bool:
    """Whether ``path`` is ``directory`` or lies in it."""
    return not directory or path == directory or path.startswith(directory + b"/")


def relative_to_mount(path: str | bytes, mountpoint: bytes) -> bytes:
    """The path inside the mount of what a user typed: absolute below the mount point, or relative to the mount.

    Raises UsageError for a path outside the mount or with ``..`` in it.
    """
    raw = os.fsencode(path)
    if b"\0" in raw or b".." in raw.split(b"/"):
        raise UsageError(f"{display(raw)}: a path inside the mount must not contain '..' or NUL")
    parts = b"/".join(part for part in raw.split(b"/") if part not in (b"", b"."))
    if not raw.startswith(b"/"):
        return parts
    base = mountpoint.strip(b"/")
    if not is_below(parts, base):
        raise UsageError(f"{display(raw)} is not below {display(mountpoint)}")
    return parts[len(base) :].lstrip(b"/")
