"""The roll of a complete directory: the names that it had when it was completed, and which of them we shadowed.

While a directory is opaque, deleting a name leaves nothing behind. A reopening has to tell such a name, which must stay
deleted, from one that the server has added since (I6); modification times of the server cannot tell it.

The roll is kept in the upper directory itself, as attributes of whiteouts with names of our own: overlayfs shows no
whiteout of a directory that has an origin (OVL_WHITEOUTS in ovl_get_inode, fs/overlayfs/inode.c), and removes them with
the directory. An attribute of the directory would have to fit into one block on ext4.
"""

import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from hashlib import blake2b
from itertools import count

from promoterd.overlay import xattrs

_HASH = 6
_SHADOW, _OTHER = b"promoterd shadow", b"promoterd other"
_BLOCK, _RESERVED = 4096, 256
"""An attribute's value, with its inode's others, has to fit into a block (ext4(5), without ea_inode)."""
_PREFIX = ".promoterd-roll-"


@dataclass(frozen=True, slots=True)
class Roll:
    """What a directory had at its completion; names are known by their hashes."""

    hashes: frozenset[bytes] = frozenset()

    def knows(self, name: str) -> bool:
        """Whether the lower directories had the name."""
        return self.is_shadow(name) or _hashed(name, _OTHER) in self.hashes

    def is_shadow(self, name: str) -> bool:
        """Whether what stood in upper under this name was no more than a copy of lower's."""
        return _hashed(name, _SHADOW) in self.hashes


def is_page(name: str | bytes) -> bool:
    """Whether a name in an upper directory is one of a roll's."""
    return os.fsencode(name).startswith(_PREFIX.encode())


def page_name(number: int) -> str:
    """The name of a page of the roll."""
    return f"{_PREFIX}{number}"


def write(directory: int, shadows: Iterable[str], others: Iterable[str] = ()) -> None:
    """Write the roll into an open upper directory, in place of any that is there. Raises OSError."""
    remove(directory)
    everything = b"".join([*(_hashed(name, _SHADOW) for name in shadows), *(_hashed(name, _OTHER) for name in others)])
    size = (min(os.fstatvfs(directory).f_bsize, _BLOCK) - _RESERVED) // _HASH * _HASH
    for number, at in enumerate(range(0, len(everything), size)):
        os.mknod(page_name(number), stat.S_IFCHR, 0, dir_fd=directory)
        xattrs.put(xattrs.entry(directory, page_name(number)), xattrs.ROLL, everything[at : at + size])


def read(directory: int, entries: int) -> Roll | None:
    """The roll of ``entries`` names; None where it is not whole."""
    everything = b"".join(_pages(directory))
    if len(everything) != entries * _HASH:
        return None
    return Roll(frozenset(everything[at : at + _HASH] for at in range(0, len(everything), _HASH)))


def remove(directory: int) -> None:
    """Remove the roll from an open upper directory. Raises OSError."""
    for number, _ in enumerate(_pages(directory)):
        with suppress(FileNotFoundError):
            os.unlink(page_name(number), dir_fd=directory)


def _hashed(name: str, kind: bytes) -> bytes:
    return blake2b(os.fsencode(name), digest_size=_HASH, person=kind).digest()


def _pages(directory: int) -> Iterator[bytes]:
    """What is on the pages that are there; a page whose value was not written any more counts as an empty one."""
    for number in count():
        name = page_name(number)
        try:
            status = os.stat(name, dir_fd=directory, follow_symlinks=False)
        except FileNotFoundError:
            return
        if not xattrs.stat_is_whiteout(status.st_mode, status.st_rdev):
            return
        yield xattrs.get(xattrs.entry(directory, name), xattrs.ROLL) or b""


@contextmanager
def times_kept(directory: int) -> Iterator[None]:
    """Names that are written or removed behind overlayfs' back must not show in the directory's times (I2)."""
    itself = xattrs.descriptor(directory)
    before = os.stat(itself)
    try:
        yield
    finally:
        os.utime(itself, ns=(before.st_atime_ns, before.st_mtime_ns))
