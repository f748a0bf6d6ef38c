"""Directories that are changed behind overlayfs' back keep their times, which are part of the view (I2)."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

from promoterd.overlay import xattrs

_LONGEST_NS = 5_000_000_000
"""How long a change of ours may take; a later one of the directory is somebody else's."""


@contextmanager
def times_kept(upper: int) -> Iterator[None]:
    """Set the times of an open upper directory back after the block, which writes or removes names in it.

    What they were stands in an attribute meanwhile, so that :func:`restore_times` can finish after a crash.
    """
    itself = xattrs.descriptor(upper)
    before = os.stat(itself)
    note = f"{before.st_atime_ns} {before.st_mtime_ns} {time.time_ns()}"
    xattrs.put(itself, xattrs.TIMES, note.encode())
    try:
        yield
    finally:
        os.utime(itself, ns=(before.st_atime_ns, before.st_mtime_ns))
        xattrs.remove(itself, xattrs.TIMES)


def restore_times(upper: int) -> None:
    """Finish what a crash interrupted, unless somebody else has changed the open upper directory since."""
    itself = xattrs.descriptor(upper)
    note = xattrs.get(itself, xattrs.TIMES)
    if note is None:
        return
    atime_ns, mtime_ns, began_ns = map(int, note.split())
    if began_ns - _LONGEST_NS <= os.stat(itself).st_mtime_ns <= began_ns + _LONGEST_NS:
        os.utime(itself, ns=(atime_ns, mtime_ns))
    xattrs.remove(itself, xattrs.TIMES)
