"""The files of a directory in the files half, each with all its names there."""

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field

from promoterd.backends.data import Wants
from promoterd.backends.layer import copying
from promoterd.backends.layer.copying import Copy
from promoterd.overlay import xattrs
from promoterd.paths import join


@dataclass(slots=True)
class Group:
    """One file: its status and names, and the record of its data where it carries it."""

    status: os.stat_result
    copy: Copy | None
    names: list[str] = field(default_factory=list)

    def first(self, directory: int, path: bytes) -> str | None:
        """The name under which a stub finds its data on the server; None for one that is not of this directory."""
        if len(self.names) == 1:
            return self.names[0]
        redirect = xattrs.get(xattrs.entry(directory, self.names[0]), xattrs.REDIRECT) or b""
        above, _, name = redirect.rpartition(b"/")
        return os.fsdecode(name) if above == b"/" + path and name else None

    def is_wanted(self, directory: int, path: bytes, wants: Wants | None) -> bool:
        """Whether it is to carry its data: of a stub's names the first decides, as when it was made."""
        if wants is None:
            return False
        first = self.first(directory, path) if self.copy is None else None
        names = self.names if first is None else [first]
        return any(wants(join(path, os.fsencode(name)), self.status.st_size) for name in names)

    def is_as_before(self, directory: int) -> bool:
        """Whether all its names still are its own."""
        try:
            now = [os.stat(name, dir_fd=directory, follow_symlinks=False) for name in self.names]
        except FileNotFoundError:
            return False
        return all((found.st_ino, found.st_dev) == (self.status.st_ino, self.status.st_dev) for found in now)


def groups(directory: int) -> Iterator[Group]:
    """Every file of an open directory; those with several names last. Raises OSError."""
    linked: dict[int, Group] = {}
    with os.scandir(directory) as found:
        for item in found:
            status = item.stat(follow_symlinks=False)
            if not stat.S_ISREG(status.st_mode):
                continue
            group = linked.get(status.st_ino) if status.st_nlink > 1 else None
            if group is None:
                group = Group(status, copying.copy_at(directory, item.name))
            group.names.append(item.name)
            if status.st_nlink > 1:
                linked[status.st_ino] = group
            else:
                yield group
    yield from linked.values()
