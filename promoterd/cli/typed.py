"""Paths as people type them, made into what the daemon and the kernel call them."""

import os

from promoterd.errors import UsageError
from promoterd.overlay import mountinfo
from promoterd.paths import display

_PATH_MAX = 4096  # linux/limits.h, the NUL included
_MOST_LINKS = 40  # as path_resolution(7)


def absolute(typed: str) -> bytes:
    """An absolute path. Symlinks before the mount point of an overlay are resolved, those behind it are not.

    Nothing inside an overlay is touched. Raises UsageError.
    """
    raw = os.fsencode(typed)
    if not raw:
        raise UsageError("an empty path names no directory")
    if not raw.startswith(b"/"):
        raw = _beneath_here(raw)
    parts = [part for part in raw.split(b"/") if part not in (b"", b".")]
    if b".." in parts:
        raise UsageError(f"{display(raw)}: a path inside a mount must not contain '..'", hint="give the direct path")
    path = _to_the_mount(b"/" + b"/".join(parts))
    if len(path) >= _PATH_MAX or b"\0" in path:
        raise UsageError(f"{display(path[:60])}…: a path has at most {_PATH_MAX - 1} bytes, and no NUL")
    return path


def _beneath_here(raw: bytes) -> bytes:
    """A relative path after the working directory, whose own path has no symlinks: leading ``..`` are exact there."""
    try:
        here = os.getcwdb()
    except FileNotFoundError as error:
        raise UsageError(
            f"{display(raw)} is relative, and the working directory is gone", hint="give an absolute path"
        ) from error
    parts = [part for part in raw.split(b"/") if part not in (b"", b".")]
    while parts[:1] == [b".."]:
        here = os.path.dirname(here)
        parts.pop(0)
    return here + b"/" + b"/".join(parts)


def _to_the_mount(path: bytes) -> bytes:
    overlays = {entry.mountpoint for entry in mountinfo.read() if entry.fstype == "overlay"} - {b"/"}
    for _ in range(_MOST_LINKS):
        link = _first_link(path, overlays)
        if link is None:
            break
        path = os.path.realpath(link) + path[len(link) :]
    return path


def _first_link(path: bytes, overlays: set[bytes]) -> bytes | None:
    """The first symlink on the way to an overlay; None where there is none."""
    walked = b""
    for part in path.split(b"/")[1:]:
        walked += b"/" + part
        if walked in overlays:
            return None
        if os.path.islink(walked):
            return walked
    return None
