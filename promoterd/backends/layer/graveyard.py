"""Taking a directory out of the layer, intact, for as long as something can still refer to it (R3).

A dentry of the overlay keeps the real directories that it was made of. One pinned descriptor keeps the dentry, for
everybody: emptied, its directory would be empty at its path. So what is taken out is renamed into the graveyard, and
removed only when the overlay was seen to have made the directory anew, or was mounted anew.
"""

import errno
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from promoterd.backends.layer import entries
from promoterd.backends.layer.home import Home, fresh_name, longest_path, parents_times_kept, remove_tree
from promoterd.overlay import activation, beneath, syscalls, xattrs
from promoterd.overlay.listing import Layers
from promoterd.overlay.mounts import Overlay
from promoterd.paths import ancestors, parent

FILES, REST = b"files", b"rest"


@dataclass(frozen=True, slots=True)
class Taken:
    """A grave: where it came from, out of which mounting of the overlay, and as which inode the overlay showed it."""

    name: bytes
    path: bytes
    mounting: str
    shown: int


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


@contextmanager
def grave(home: Home, path: bytes, *, shown: int, mounting: str) -> Iterator[int]:
    """A fresh grave for what is taken out at ``path``, which the overlay shows as the inode ``shown`` (0: not at all).

    What is put into it is called :data:`FILES` or :data:`REST`. Raises OSError.
    """
    name = fresh_name()
    os.mkdir(name, 0o700, dir_fd=home.graveyard)
    with beneath.opened(home.graveyard, name) as opened:
        if 2 * len(path) > longest_path(opened):  # in hexadecimal; it waits for an unmount
            path, shown = b"", 0
        note = {"path": path.hex(), "mounting": mounting, "shown": shown}
        xattrs.put(xattrs.descriptor(opened), xattrs.TAKEN, json.dumps(note).encode())
        yield opened


def take_out(home: Home, path: bytes, *, mounting: str, stub: entries.Dressed | None = None) -> None:
    """Take a directory with everything below it out of both halves; what is there no more is fine.

    The rest half goes first, with its mark, so that lower answers for what the other half lacks (R4). With ``stub`` a
    directory that is merged with lower's takes its place at the same instant, for a parent that is complete (R5).
    Raises OSError.
    """
    name = path.rpartition(b"/")[2]
    shown = shown_inode(home, path)
    with grave(home, path, shown=shown, mounting=mounting) as opened, parents_times_kept(home, path):
        for half, root in ((REST, home.rest), (FILES, home.files)):
            with suppress(FileNotFoundError), beneath.opened(root, parent(path)) as above:
                if not beneath.is_directory(above, name):
                    continue
                if half == REST and stub is not None:
                    entries.make_directory(opened, REST, stub[0], b"/" + path, stub[1])
                    syscalls.exchange(opened, REST, above, name)
                else:
                    os.rename(name, half, src_dir_fd=above, dst_dir_fd=opened)
            home.sync()


def graves(home: Home) -> Iterator[Taken]:
    """Everything in the graveyard."""
    for name in map(os.fsencode, os.listdir(home.graveyard)):
        with suppress(OSError, ValueError, KeyError), beneath.opened(home.graveyard, name) as opened:
            note = json.loads(xattrs.get(xattrs.descriptor(opened), xattrs.TAKEN) or b"{}")
            yield Taken(name, bytes.fromhex(note["path"]), str(note["mounting"]), int(note["shown"]))


def bury(home: Home, mounting: str) -> int:
    """Remove the graves that nothing can refer to any more; says how many that were.

    Nothing can from another mounting of the overlay, nor where the overlay shows another inode at the path now: the
    dentry that referred to the grave is gone, and with it everything below, which had kept it. But not where upper has
    hidden the path since: there the directory may have been renamed, and it waits for an unmount.
    """
    known = set()
    removed = 0
    for taken in graves(home):
        known.add(taken.name)
        if taken.mounting != mounting or _shows_another(home, taken):
            remove_tree(home.graveyard, taken.name)
            removed += 1
    for name in set(map(os.fsencode, os.listdir(home.graveyard))) - known:  # a crash came before the note
        remove_tree(home.graveyard, name)
    return removed


def shown_inode(home: Home, path: bytes) -> int:
    """The inode that the overlay shows for a directory; 0 where there is none."""
    return activation.inodes(home.layers, [path]).get(path, 0)


def _shows_another(home: Home, taken: Taken) -> bool:
    if taken.shown == 0 or shown_inode(home, taken.path) in (0, taken.shown):
        return False
    return not any(_is_hidden(home.layers, directory) for directory in [*ancestors(taken.path), taken.path])


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
