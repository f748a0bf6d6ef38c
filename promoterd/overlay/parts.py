"""Which directories of the layers one directory of an overlay is merged of, renamed ones included.

The layers are read, not the overlay, as ovl_lookup() does it (fs/overlayfs/namei.c): a whiteout, a file or an opaque
directory ends the merging; a redirect says under which name, or where, the layers below have the directory.
"""

import errno
import os
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TypeAlias

from promoterd.overlay import beneath, xattrs
from promoterd.paths import join, parent

Places: TypeAlias = tuple[bytes | None, ...]
"""Where each layer has its part, top first; None for a layer that has none."""

_ABSENT = frozenset({errno.ENOENT, errno.ENAMETOOLONG})
_OTHER = frozenset({errno.ENOTDIR, errno.ELOOP})


@dataclass(frozen=True, slots=True)
class Part:
    """A directory of a layer; ``layer`` is its number, and ``device`` and ``inode`` are as stat(2) tells them."""

    layer: int
    place: bytes
    device: tuple[int, int]
    inode: int


class Parts:
    """Answers for the directories of one overlay as long as a ``with`` block of :func:`opened` lasts.

    ``roots`` are descriptors of the layers' roots, upper first, data-only layers left out. The answers for ancestors
    are kept. Every question may wait for the server.
    """

    def __init__(self, roots: Sequence[int]) -> None:
        self._roots = roots
        self._places: dict[bytes, Places] = {}

    def of(self, path: bytes) -> list[Part]:
        """The parts of a directory, top first; none where there is no such directory.

        Raises OSError where a layer does not say, EXDEV where another file system is mounted there.
        """
        found = []
        for layer, place, directory in merged(self._roots, self._above(path), path.rpartition(b"/")[2]):
            status = os.fstat(directory)
            found.append(Part(layer, place, (os.major(status.st_dev), os.minor(status.st_dev)), status.st_ino))
        return found

    def _above(self, path: bytes) -> Places | None:
        if not path:
            return None
        above = parent(path)
        known = self._places.get(above)
        if known is None:
            known = self._places[above] = places(self._roots, self._above(above), above.rpartition(b"/")[2])
        return known


def places(roots: Sequence[int], above: Places | None, name: bytes, skipped: Collection[int] = ()) -> Places:
    """Where the parts of a directory are, as :func:`merged` finds them."""
    found: list[bytes | None] = [None] * len(roots)
    for layer, place, _ in merged(roots, above, name, skipped=skipped):
        found[layer] = place
    return tuple(found)


def merged(
    roots: Sequence[int],
    above: Places | None,
    name: bytes,
    flags: int = beneath.PATH_DIRECTORY,
    skipped: Collection[int] = (),
) -> Iterator[tuple[int, bytes, int]]:
    """The directories that are merged as ``name``, top first: the layer, where it is there, a descriptor for a moment.

    ``above`` are the places of the directory that holds it; None for the root. Layers that fail with one of the errors
    ``skipped`` are left out; raises OSError for others that do not say that there is no directory.
    """
    elsewhere: bytes | None = None  # from a redirect that begins at the roots of the layers
    for layer, root in enumerate(roots):
        place = b"" if above is None else elsewhere
        if place is None:
            base = None if above is None else above[layer]
            if base is None:
                continue
            place = join(base, name)
        try:
            directory = beneath.open_beneath(root, place, flags)
        except OSError as error:
            if error.errno in _OTHER:
                return
            if error.errno in _ABSENT or error.errno in skipped:
                continue
            raise
        try:
            yield layer, place, directory
            is_last, redirect = (True, b"") if layer == len(roots) - 1 else _ends(directory)
        finally:
            os.close(directory)
        if is_last:
            return
        if redirect:
            name, elsewhere = _follow(redirect, name, elsewhere)


def _follow(redirect: bytes, name: bytes, elsewhere: bytes | None) -> tuple[bytes, bytes | None]:
    """The name in the layers below, or the path from their roots."""
    if redirect.startswith(b"/"):
        return name, redirect.lstrip(b"/")
    return (redirect, None) if elsewhere is None else (name, join(parent(elsewhere), redirect))


def _ends(directory: int) -> tuple[bool, bytes]:
    """Whether the layers below a directory do not matter, and its redirect."""
    itself = xattrs.descriptor(directory)
    if xattrs.get(itself, xattrs.OPAQUE) == xattrs.OPAQUE_YES:
        return True, b""
    return False, xattrs.get(itself, xattrs.REDIRECT) or b""


@contextmanager
def opened(layers: Sequence[bytes]) -> Iterator[Parts]:
    """:class:`Parts` of the layers with these roots. Raises OSError where one cannot be opened."""
    with ExitStack() as stack:
        roots = []
        for layer in layers:
            roots.append(beneath.open_root(layer))
            stack.callback(os.close, roots[-1])
        yield Parts(roots)
