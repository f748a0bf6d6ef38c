"""Further names of a file with several: built, or in place, under its first name already."""

import os
from contextlib import suppress

from promoterd.overlay import beneath


def are_linked(files: int, there: int, first: str, name: str) -> bool:
    """Whether two names in place (``there``, -1: nowhere yet) are one file, and stay it: ``files`` has no new first."""
    if there < 0 or beneath.status_of(files, first) is not None:
        return False
    one, other = beneath.status_of(there, first), beneath.status_of(there, name)
    return one is not None and other is not None and one.st_ino == other.st_ino


def link(files: int, there: int, first: str, name: str) -> bool:
    """One more name in ``files`` for a file that was built there, or else is in place; False for neither."""
    for directory in (files, there):
        if directory >= 0:
            with suppress(FileNotFoundError):
                os.link(first, name, src_dir_fd=directory, dst_dir_fd=files, follow_symlinks=False)
                return True
    return False
