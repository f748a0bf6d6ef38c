"""Telling our shadows in upper from what a user made or changed."""

import stat

from promoterd.overlay import xattrs
from promoterd.overlay.listing import UpperEntry


def is_unmodified_shadow(above: int, name: str, entry: UpperEntry, completed_ns: int) -> bool:
    """Whether an upper entry holds nothing of a user's: copied up, without data of its own, unchanged since completion.

    Directories and whiteouts say no.
    """
    if entry.whiteout or stat.S_ISDIR(entry.mode) or entry.ctime_ns > completed_ns:
        return False
    needed = xattrs.METACOPY if stat.S_ISREG(entry.mode) else xattrs.ORIGIN
    return xattrs.get(xattrs.entry(above, name), needed) is not None
