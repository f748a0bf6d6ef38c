"""Whether the overlay has made a directory anew since something was changed beneath it.

A dentry of the overlay keeps the real directories that it was made of, for everybody and for as long as one descriptor
pins it. So what is taken out of the layer may still be referred to, and a directory that got its files half after it
had been found in the rest half may still be known without it: what becomes complete below it would be found without
files.
"""

import errno
import os
from dataclasses import dataclass

from promoterd import records
from promoterd.backends.base import Busy
from promoterd.backends.layer.home import Home
from promoterd.overlay import activation, beneath, syscalls, xattrs
from promoterd.overlay.listing import Layers
from promoterd.overlay.mounts import Overlay
from promoterd.paths import ancestors, show


@dataclass(frozen=True, slots=True)
class Shown:
    """As which inode the overlay showed a directory (0: not at all, or not known), and in which mounting."""

    mounting: str
    inode: int = 0


def mounting_of(overlay: Overlay) -> str:
    """What differs between two mountings of an overlay: its work directory's own, which each makes anew.

    ovl_workdir_create() removes what an earlier mounting left (fs/overlayfs/super.c). Raises OSError.
    """
    directory = os.open((overlay.work or b"") + b"/work", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        found = syscalls.statx(directory)
    finally:
        os.close(directory)
    return f"{found.dev[0]}:{found.dev[1]}:{found.ino}:{found.btime_ns}"


def shown(home: Home, path: bytes, mounting: str) -> Shown:
    """As what the overlay shows a directory now."""
    return Shown(mounting, activation.inodes(home.layers, [path]).get(path, 0))


def is_made_anew(home: Home, path: bytes, before: Shown, mounting: str) -> bool:
    """Whether no dentry is left of a directory that was shown so.

    None is of another mounting of the overlay, nor where the overlay shows another inode at the path: with the dentry
    everything below it is gone, which had kept it. But where upper has hidden the path since, the directory may have
    been renamed, and its dentry with it.
    """
    if before.mounting != mounting:
        return True
    if before.inode == 0 or shown(home, path, mounting).inode in (0, before.inode):
        return False
    return not any(_is_hidden(home.layers, directory) for directory in [*ancestors(path), path])


def note_late(directory: int, before: Shown) -> None:
    """Write beside a directory of the files half, open or not in place yet, that the rest half had it first."""
    xattrs.put(xattrs.descriptor(directory), xattrs.LATE, records.encode(mounting=before.mounting, shown=before.inode))


def note_shown(home: Home, path: bytes, mounting: str) -> None:
    """After one that is late came into place: as what the overlay shows the directory, made of it or not."""
    with beneath.opened(home.files, path) as directory:
        note_late(directory, shown(home, path, mounting))


def require_both_halves_known(home: Home, path: bytes, mounting: str) -> None:
    """Raise Busy where the overlay may know an ancestor of ``path`` without its files half, and cannot forget that."""
    for ancestor in ancestors(path):
        if not _is_known_whole(home, ancestor, mounting):
            raise Busy(
                path=show(path),
                reason=f"a process holds {show(ancestor)}, which the kernel knows as it was without files here",
            )


def _is_known_whole(home: Home, path: bytes, mounting: str) -> bool:
    with beneath.opened(home.files, path) as directory:
        value = xattrs.get(xattrs.descriptor(directory), xattrs.LATE)
        if value is None:
            return True
        before = _decode(value) or Shown(mounting)
        if before == Shown(mounting):  # whoever placed it was killed before it could look
            before = shown(home, path, mounting)
            note_late(directory, before)
        if not is_made_anew(home, path, before, mounting):
            activation.reconfigure(home.layers.overlay)
            if not is_made_anew(home, path, before, mounting):
                return False
        xattrs.remove(xattrs.descriptor(directory), xattrs.LATE)
    return True


def _decode(value: bytes) -> Shown | None:
    return records.decode(value, lambda fields: Shown(str(fields["mounting"]), int(fields["shown"])))


def _is_hidden(layers: Layers, path: bytes) -> bool:
    """Whether upper has something else at a path than what is merged with lower's directory of that path."""
    if layers.overlay.upper is None:
        return False
    try:
        with beneath.opened(layers.upper, path) as directory:
            itself = xattrs.descriptor(directory)
            return (
                xattrs.get(itself, xattrs.OPAQUE) == xattrs.OPAQUE_YES
                or xattrs.get(itself, xattrs.REDIRECT) is not None
            )
    except FileNotFoundError:
        return False
    except OSError as error:
        if error.errno not in (errno.ENOTDIR, errno.ELOOP):
            raise
        return True
