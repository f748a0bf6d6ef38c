"""Taking a directory out of the layer, intact, for as long as something can still refer to it (R3).

Emptied, it would be empty at its path for as long as a dentry is made of it. So what is taken out is renamed into the
graveyard, and removed only when the overlay was seen to have made the directory anew, or was mounted anew.
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from promoterd.backends.layer import entries
from promoterd.backends.layer.home import Home, fresh_name, longest_path, parents_times_kept, remove_tree
from promoterd.backends.layer.renewal import Shown, is_made_anew, note_late, note_shown, shown
from promoterd.overlay import beneath, syscalls, xattrs
from promoterd.paths import parent

FILES, REST = b"files", b"rest"


@dataclass(frozen=True, slots=True)
class Taken:
    """A grave: where what is in it came from, and as what the overlay showed that."""

    name: bytes
    path: bytes
    before: Shown


@contextmanager
def grave(home: Home, path: bytes, before: Shown) -> Iterator[int]:
    """A fresh grave for what is taken out at ``path``, which the overlay has shown as ``before`` until then.

    What is put into it is called :data:`FILES` or :data:`REST`. Raises OSError.
    """
    name = fresh_name()
    os.mkdir(name, 0o700, dir_fd=home.graveyard)
    with beneath.opened(home.graveyard, name) as opened:
        fits = 2 * len(path) <= longest_path(opened)  # in hexadecimal; otherwise it waits for an unmount
        _note(opened, path if fits else b"", before if fits else Shown(before.mounting))
        yield opened
        after = shown(home, path, before.mounting)
        if fits and before.inode and after.inode not in (0, before.inode):  # made anew when half of it was taken out
            _note(opened, path, after)


def _note(grave: int, path: bytes, before: Shown) -> None:
    note = {"path": path.hex(), "mounting": before.mounting, "shown": before.inode}
    xattrs.put(xattrs.descriptor(grave), xattrs.TAKEN, json.dumps(note).encode())


def take_out(home: Home, path: bytes, *, mounting: str, stub: entries.Dressed | None = None) -> None:
    """Take a directory with everything below it out of both halves; what is there no more is fine.

    The rest half goes first, with its mark, so that lower answers for what the other half lacks (R4). With ``stub`` a
    directory that is merged with lower's takes its place at the same instant, for a parent that is complete (R5).
    Raises OSError.
    """
    name = path.rpartition(b"/")[2]
    exchanged = set()
    with grave(home, path, shown(home, path, mounting)) as opened, parents_times_kept(home, path):
        for half, root in ((REST, home.rest), (FILES, home.files)):
            with suppress(FileNotFoundError), beneath.opened(root, parent(path)) as above:
                if not beneath.is_directory(above, name):
                    continue
                if stub is not None and (half == REST or REST in exchanged):
                    _make_stub(opened, half, path, stub, Shown(mounting))
                    syscalls.exchange(opened, half, above, name)
                    exchanged.add(half)
                else:
                    os.rename(name, half, src_dir_fd=above, dst_dir_fd=opened)
            home.sync()
        if FILES in exchanged:
            note_shown(home, path, mounting)


def _make_stub(grave: int, half: bytes, path: bytes, stub: entries.Dressed, before: Shown) -> None:
    """One half of a directory that is merged with lower's. What is there may still be known for what was there."""
    entries.make_directory(grave, half, stub[0], b"/" + path if half == REST else b"", stub[1])
    if half == FILES:
        with beneath.opened(grave, half) as twin:
            note_late(twin, before)


def graves(home: Home) -> Iterator[Taken]:
    """Everything in the graveyard."""
    for name in map(os.fsencode, os.listdir(home.graveyard)):
        with suppress(OSError, ValueError, KeyError), beneath.opened(home.graveyard, name) as opened:
            note = json.loads(xattrs.get(xattrs.descriptor(opened), xattrs.TAKEN) or b"{}")
            yield Taken(name, bytes.fromhex(note["path"]), Shown(str(note["mounting"]), int(note["shown"])))


def bury(home: Home, mounting: str) -> int:
    """Remove the graves that nothing can refer to any more; says how many that were."""
    known = set()
    removed = 0
    for taken in graves(home):
        known.add(taken.name)
        if is_made_anew(home, taken.path, taken.before, mounting):
            remove_tree(home.graveyard, taken.name)
            removed += 1
    for name in set(map(os.fsencode, os.listdir(home.graveyard))) - known:  # a crash came before the note
        remove_tree(home.graveyard, name)
    return removed
