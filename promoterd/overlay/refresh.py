"""Reading a lower directory so that the NFS client knows its entries anew, in bulk and before it has forgotten them.

A repeated readdir is answered from the pages of the directory, and a stat from attributes that have not expired:
neither renews anything. Without those pages the client reads the directory again, and by READDIRPLUS as long as its
entries are looked at while it is read (nfs_use_readdirplus(), fs/nfs/dir.c): each reply renews the attributes of all
the entries that it lists, expired or not (nfs_prime_dcache(), nfs_refresh_inode()).
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import suppress

from promoterd.overlay import beneath, syscalls
from promoterd.overlay.listing import forget_pages, open_to_read
from promoterd.pacing import listed, owe


def read_anew(lower: bytes, path: bytes, batch: int, above: Iterable[bytes] = ()) -> Iterator[int]:
    """Read the directory at ``path`` of a lower layer from its server, and ask for the attributes of those ``above``.

    Yields how many entries were looked at, after every ``batch`` of them and at the end. Raises OSError.
    """
    directory = _opened(lower, path, above)
    try:
        forget_pages(directory)
        seen = 0
        with os.scandir(directory) as found:
            for item in listed(found):
                with suppress(FileNotFoundError):
                    item.stat(follow_symlinks=False)
                seen += 1
                if seen == batch:
                    yield seen
                    seen = 0
        if seen:
            yield seen
    finally:
        os.close(directory)


def _opened(lower: bytes, path: bytes, above: Iterable[bytes]) -> int:
    """The directory, opened to be read; its own attributes and those of the directories above it are asked for."""
    root = beneath.open_root(lower)
    try:
        for other in above:
            with beneath.opened(root, other) as directory:
                owe(1)
                syscalls.statx(directory, force_sync=True)
        owe(1)
        opened = open_to_read(root, path)
    finally:
        os.close(root)
    try:
        syscalls.statx(opened, force_sync=True)
    except OSError:
        os.close(opened)
        raise
    return opened
