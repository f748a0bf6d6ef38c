"""Telling our shadows in upper from what a user made or changed, and what stands alone under a mark."""

import os
import stat
from collections.abc import Iterator
from contextlib import ExitStack

from promoterd.overlay import beneath, xattrs
from promoterd.overlay.listing import Layers, LowerListing, UpperEntry


def is_unmodified_shadow(above: int, name: str, entry: UpperEntry, completed_ns: int) -> bool:
    """Whether an upper entry holds nothing of a user's: copied up, without data of its own, unchanged since completion.

    Directories and whiteouts say no.
    """
    if entry.whiteout or stat.S_ISDIR(entry.mode) or entry.ctime_ns > completed_ns:
        return False
    needed = xattrs.METACOPY if stat.S_ISREG(entry.mode) else xattrs.ORIGIN
    return xattrs.get(xattrs.entry(above, name), needed) is not None


def file_stands_alone(above: int, name: str) -> bool:
    """Whether an upper regular file has its data, or a redirect to it that does not start beside itself.

    A metacopy without a redirect, or with a relative one, finds no data below an opaque directory (EIO).
    """
    itself = xattrs.entry(above, name)
    redirect = xattrs.get(itself, xattrs.REDIRECT)
    if redirect is not None and redirect.startswith(b"/"):
        return True
    return xattrs.get(itself, xattrs.METACOPY) is None


def directory_stands_alone(above: int, name: str) -> bool:
    """Whether an upper directory needs no lower one beside it: opaque, led elsewhere, or made by a user.

    Below an opaque directory any other shows up without what is in lower.
    """
    itself = xattrs.entry(above, name)
    if xattrs.get(itself, xattrs.OPAQUE) is not None:
        return True
    redirect = xattrs.get(itself, xattrs.REDIRECT)
    if redirect is not None:
        return redirect.startswith(b"/")
    return xattrs.get(itself, xattrs.ORIGIN) is None


def stale_shadows(
    layers: Layers, path: bytes, listing: LowerListing, upper: dict[str, UpperEntry], completed_ns: int
) -> Iterator[tuple[str, int]]:
    """Our shadows, with their change times, that lower has removed or replaced since, and that no user changed."""
    with ExitStack() as stack:
        above = stack.enter_context(beneath.opened(layers.upper, path))
        lowers = [
            stack.enter_context(beneath.opened(layers.lowers[index], path)) for index in layers.contributing(path)
        ]
        for name, entry in upper.items():
            if is_unmodified_shadow(above, name, entry, completed_ns) and (
                name not in listing.entries or _was_replaced(lowers, above, name)
            ):
                yield name, entry.ctime_ns


def _was_replaced(lowers: list[int], above: int, name: str) -> bool:
    """Whether lower's entry differs in what only the server changes; a changed owner or mode may be the user's."""
    shadow = os.stat(name, dir_fd=above, follow_symlinks=False)
    for lower in lowers:
        try:
            now = os.stat(name, dir_fd=lower, follow_symlinks=False)
        except FileNotFoundError:
            continue
        if stat.S_IFMT(now.st_mode) != stat.S_IFMT(shadow.st_mode):
            return True
        if stat.S_ISLNK(now.st_mode):
            return os.readlink(name, dir_fd=lower) != os.readlink(name, dir_fd=above)
        if (now.st_mode, now.st_uid, now.st_gid) != (shadow.st_mode, shadow.st_uid, shadow.st_gid):
            return False
        same = (now.st_size, now.st_mtime_ns, now.st_rdev)
        return same != (shadow.st_size, shadow.st_mtime_ns, shadow.st_rdev)
    return True
