"""From the stage into the layer: every state in between serves every name (R4).

A directory that is not there yet comes by two renames, the files half first and the half with the mark last. One that
is there is brought in line entry by entry, each by a rename that replaces what was there at the same instant; so it
stays right also for who holds it, and what is complete below it stays complete.

A lookup through the overlay asks one half after the other (ovl_lookup(), fs/overlayfs/namei.c). One that has asked the
files half before a directory came there, and asks the other half when that has come as well, would know the directory
without its files half for as long as it is remembered, and whatever becomes complete below it without its files. So
between the two the lookups under way are waited for, and a directory is in both halves, also one that is a stub. Only
where the directory above does not ask lower any more the rest half has to be first: alone, the files half would be all
that is found of a directory that is new on the server. Below such a one nothing is placed until it is made anew.
"""

import errno
import os
import stat
from contextlib import suppress
from dataclasses import dataclass

from promoterd.backends.base import Busy
from promoterd.backends.layer import entries, graveyard
from promoterd.backends.layer.home import Home, fresh_name, layer_xattr, parents_times_kept
from promoterd.backends.layer.lower import lower_attributes
from promoterd.backends.layer.renewal import (
    Shown,
    note_late,
    note_shown,
    require_both_halves_known,
    shown,
)
from promoterd.backends.layer.staging import Staged
from promoterd.backends.layer.verifying import verify_shadows
from promoterd.overlay import beneath, syscalls, xattrs
from promoterd.overlay.attributes import Attributes
from promoterd.paths import ancestors, join, parent, show

_TOO_LONG = 2048


@dataclass(frozen=True, slots=True)
class Placing:
    """What placing needs: the home, the place in the stage, and what the graveyard notes."""

    home: Home
    place: int
    mounting: str

    def put_whole(self, staged: Staged) -> None:
        """Put a directory that the layer does not have into place. Raises OSError."""
        path = staged.directory.path
        self._require_parent_in_line(path)
        if beneath.exists_beneath(self.home.files, path):  # half of what a crash interrupted
            graveyard.take_out(self.home, path, mounting=self.mounting)
        with parents_times_kept(self.home, path):
            for half, root in ((staged.files, self.home.files), (staged.rest, self.home.rest)):
                _put_half(self.home, self.place, half, root, path)
                self.home.sync()

    def merge(
        self, staged: Staged, attributes: Attributes, extra: entries.Xattrs | None, *, may_be_in_effect: bool
    ) -> None:
        """Bring a directory that the layer has in line with what was staged and listed. Raises Busy, OSError.

        ``may_be_in_effect``: it was complete before, and some dentry may not ask lower any more.
        """
        path = staged.directory.path
        self.ensure_halves(path)
        with (
            beneath.opened(self.home.files, path, beneath.READ_DIRECTORY) as files,
            beneath.opened(self.home.rest, path, beneath.READ_DIRECTORY) as rest,
        ):
            self._put_all(path, staged.files, files, new_directories=not may_be_in_effect)
            wait_for_lookups(self.home.layers.root, path)
            self._put_all(path, staged.rest, rest, twins=files)
            if may_be_in_effect:
                self._put_late(path, staged.files, files)
            modes = staged.directory.listing.entries
            for name in os.listdir(files):
                mode = modes.get(name, 0)
                is_directory = stat.S_ISDIR(os.stat(name, dir_fd=files, follow_symlinks=False).st_mode)
                if not (stat.S_ISDIR(mode) if is_directory else stat.S_ISREG(mode)):
                    self._remove(files, path, name, is_directory=is_directory)
            for name in os.listdir(rest):
                mode = modes.get(name, 0)
                there = os.stat(name, dir_fd=rest, follow_symlinks=False).st_mode
                if stat.S_IFMT(mode) != stat.S_IFMT(there):
                    self._remove(rest, path, name, is_directory=stat.S_ISDIR(there))
            for half in (files, rest):
                entries.redress(half, attributes, extra)
            verify_shadows(files, rest, staged.directory)

    def ensure_ancestors(self, path: bytes) -> None:
        """Give every ancestor its directory in both halves, as lower has it. Raises Busy, OSError.

        Busy too where one may be known without its files half: what is complete below it would be without its files.
        """
        for ancestor in ancestors(path):
            self.ensure_halves(ancestor)
        require_both_halves_known(self.home, path, self.mounting)

    def ensure_halves(self, path: bytes) -> None:
        """Give one directory its place in both halves. Raises Busy, OSError."""
        missing = [
            (half, root)
            for half, root in ((graveyard.FILES, self.home.files), (graveyard.REST, self.home.rest))
            if not beneath.exists_beneath(root, path)
        ]
        if not missing:
            return
        is_late = beneath.exists_beneath(self.home.rest, path)
        if not is_late:
            self._require_parent_in_line(path)
        found, extra = lower_attributes(self.home.layers, path)
        for half, root in missing:
            name = fresh_name()
            entries.make_directory(self.place, name, found, b"/" + path if half == graveyard.REST else b"", extra)
            if is_late:
                with beneath.opened(self.place, name) as twin:
                    note_late(twin, Shown(self.mounting))
            with parents_times_kept(self.home, path):
                _put_half(self.home, self.place, name, root, path)
        if is_late:
            note_shown(self.home, path, self.mounting)

    def _require_parent_in_line(self, path: bytes) -> None:
        """Raise Busy where the directory above is looked after, and does not have this one: it is new on the server."""
        if layer_xattr(self.home.layers, parent(path), xattrs.PROVENANCE) is not None:
            raise Busy(path=show(path), reason=f"{show(parent(path))} is not in line with the server yet")

    def _put_late(self, path: bytes, half: str, there: int) -> None:
        """The files half of directories that are in the rest half by now."""
        with beneath.opened(self.place, half.encode(), beneath.READ_DIRECTORY) as staged:
            for name in os.listdir(staged):
                if not beneath.is_directory(staged, name) or beneath.is_directory(there, name):
                    continue
                with beneath.opened(staged, os.fsencode(name)) as twin:
                    note_late(twin, Shown(self.mounting))
                if beneath.status_of(there, name) is None:
                    os.rename(name, name, src_dir_fd=staged, dst_dir_fd=there)
                else:
                    syscalls.exchange(staged, name, there, name)
                note_shown(self.home, join(path, os.fsencode(name)), self.mounting)

    def _put_all(self, path: bytes, half: str, there: int, twins: int = -1, *, new_directories: bool = True) -> None:
        """Put what was staged over what is there; the twins of directories, in the files half, look as these do."""
        with beneath.opened(self.place, half.encode(), beneath.READ_DIRECTORY) as staged:
            for name in os.listdir(staged):
                is_directory, was_directory = beneath.is_directory(staged, name), beneath.is_directory(there, name)
                if is_directory and not was_directory and not new_directories:
                    continue
                if is_directory and was_directory:
                    _follow(staged, name, (there, twins))
                elif was_directory or (is_directory and beneath.status_of(there, name) is not None):
                    self._swap(join(path, os.fsencode(name)), staged, there, twins)
                else:
                    os.rename(name, name, src_dir_fd=staged, dst_dir_fd=there)

    def _swap(self, path: bytes, staged: int, there: int, twins: int) -> None:
        """A directory for something else, or the other way round; the directory may be held by somebody."""
        name = path.rpartition(b"/")[2]
        before = shown(self.home, path, self.mounting)
        syscalls.exchange(staged, name, there, name)
        if beneath.is_directory(staged, name):
            with graveyard.grave(self.home, path, before) as grave:
                half = graveyard.FILES if twins < 0 else graveyard.REST
                os.rename(name, half, src_dir_fd=staged, dst_dir_fd=grave)

    def _remove(self, half: int, path: bytes, name: str, *, is_directory: bool) -> None:
        if is_directory:
            graveyard.take_out(self.home, join(path, os.fsencode(name)), mounting=self.mounting)
        else:
            with suppress(FileNotFoundError):
                os.unlink(name, dir_fd=half)


def _put_half(home: Home, place: int, name: str | bytes, root: int, path: bytes) -> None:
    """Rename what was made into one half of the layer; into the rest half, when no lookup can see that half alone."""
    if root == home.rest:
        wait_for_lookups(home.layers.root, parent(path))
    with beneath.opened(root, parent(path)) as above:
        os.rename(name, path.rpartition(b"/")[2], src_dir_fd=place, dst_dir_fd=above)


def wait_for_lookups(root: int, path: bytes) -> None:
    """Until no lookup in a directory of the overlay is under way that began before. Raises OSError.

    A lookup holds the directory's lock (Documentation/filesystems/locking.rst), and rmdir(2) takes it for itself alone.
    A name longer than any may be is refused under that lock, before any layer is asked (ovl_lookup()).
    """
    try:
        with beneath.opened(root, path) as directory:
            os.rmdir("x" * _TOO_LONG, dir_fd=directory)
    except OSError as error:
        if error.errno == errno.EROFS:
            _wait_by_reading(root, path)
        elif error.errno not in (errno.ENAMETOOLONG, errno.ENOENT):
            raise


def _wait_by_reading(root: int, path: bytes) -> None:
    """On a mount that is read-only: who reads an overlay's directory takes its lock too (wrap_directory_iterator())."""
    with beneath.opened(root, path, beneath.READ_DIRECTORY) as directory, os.scandir(directory) as found:
        next(found, None)


def _follow(staged: int, name: str, directories: tuple[int, int]) -> None:
    """Make the directory of this name look as the staged one does."""
    with beneath.opened(staged, os.fsencode(name)) as new:
        found = Attributes.of(os.fstat(new))
        extra = entries.read_xattrs(xattrs.descriptor(new))
        for directory in directories:
            if directory >= 0 and beneath.is_directory(directory, name):
                with beneath.opened(directory, os.fsencode(name)) as opened:
                    entries.redress(opened, found, extra)
