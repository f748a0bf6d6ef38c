"""A metadata layer written by hand, as its format is described; nothing here asks the code that builds or checks it."""

import hashlib
import json
import os
import shutil
import stat
import time

from promoterd.overlay import mounts
from promoterd.overlay.listing import Stamp
from promoterd.provenance import Provenance
from support.overlays import MountedOverlay
from support.trees import Tree, build

OPAQUE, REDIRECT, METACOPY = "trusted.overlay.opaque", "trusted.overlay.redirect", "trusted.overlay.metacopy"
MARK, COPY = "trusted.overlay.promoterd.mark", "trusted.overlay.promoterd.data"


class Layer:
    """Puts directories of the first lower layer into the metadata layer of an overlay."""

    def __init__(self, mounted: MountedOverlay) -> None:
        self.mounted = mounted
        self.server = mounted.layers[0]

    def complete(self, *paths: str, copied: tuple[str, ...] = (), active: bool = True) -> None:
        """Make these directories complete, parents first; files named ``copied`` carry their data."""
        for path in paths:
            self.shadow(path, copied=copied)
            os.setxattr(self.mounted.in_rest(path), OPAQUE, b"y")
        if active:
            self.mounted.cool()

    def shadow(self, path: str, *, copied: tuple[str, ...] = ()) -> None:
        """Everything but the mark: an open directory."""
        self.stub(path)
        links: dict[int, str] = {}
        for item in sorted(os.scandir(self.server + b"/" + os.fsencode(path)), key=lambda entry: entry.name):
            name = f"{path}/{os.fsdecode(item.name)}"
            if item.is_dir(follow_symlinks=False):
                self.stub(name)
            elif item.is_file(follow_symlinks=False):
                self.file(name, links, copy=os.fsdecode(item.name) in copied)
            else:
                self.other(name)
        os.setxattr(self.mounted.in_rest(path), MARK, self.provenance(path).encode())
        self.dress_ancestors(path)

    def stub(self, path: str) -> None:
        """A directory in both halves, with its ancestors, merged with the server's."""
        if not path:
            return
        self.stub(path.rpartition("/")[0])
        for half in (self.mounted.in_files(path), self.mounted.in_rest(path)):
            os.makedirs(half, exist_ok=True)
        os.setxattr(self.mounted.in_rest(path), REDIRECT, b"/" + os.fsencode(path))
        self.dress_ancestors(path)

    def file(self, path: str, links: dict[int, str], *, copy: bool = False) -> None:
        there, here = self.server + b"/" + os.fsencode(path), self.mounted.in_files(path)
        status = os.lstat(there)
        first = links.setdefault(status.st_ino, path)
        if first != path:
            os.link(self.mounted.in_files(first), here)
            return
        with open(here, "xb") as file:
            if copy:
                with open(there, "rb") as source:
                    data = source.read()
                file.write(data)
                record = {"v": 1, "ctime": status.st_ctime_ns, "mtime": status.st_mtime_ns, "inode": status.st_ino}
                record["sha256"] = hashlib.sha256(data).hexdigest()  # type: ignore[assignment]
                os.setxattr(here, COPY, json.dumps(record).encode())
            else:
                file.truncate(status.st_size)
                os.setxattr(here, METACOPY, b"")
                os.setxattr(here, REDIRECT, b"/" + os.fsencode(path))
        dress(there, here)

    def other(self, path: str) -> None:
        """A symlink, device, fifo or socket."""
        there, here = self.server + b"/" + os.fsencode(path), self.mounted.in_rest(path)
        status = os.lstat(there)
        if stat.S_ISLNK(status.st_mode):
            os.symlink(os.readlink(there), here)
        else:
            os.mknod(here, status.st_mode, status.st_rdev)
        dress(there, here)

    def dress_ancestors(self, path: str) -> None:
        """The directory and those above it look as the server's do, also after something was made in them."""
        while path:
            for half in (self.mounted.in_files(path), self.mounted.in_rest(path)):
                dress(self.server + b"/" + os.fsencode(path), half)
            path = path.rpartition("/")[0]

    def provenance(self, path: str) -> Provenance:
        status = os.stat(self.server + b"/" + os.fsencode(path))
        stamp = Stamp(status.st_mtime_ns, status.st_ctime_ns, status.st_ino, (0, 0))
        return Provenance.of(
            "layer",
            os.fsencode(path),
            [mounts.lower_identity(self.server)],
            [stamp],
            time.time_ns(),
            len(os.listdir(self.server + b"/" + os.fsencode(path))),
        )


def start_anew(mounted: MountedOverlay, tree: Tree) -> None:
    """Put the server's tree, the upper layer and the metadata layer of an overlay that is not mounted back."""
    for place in (mounted.lowers[0], mounted.upper, mounted.work, *mounted.metadata):
        for item in os.scandir(place):
            if item.is_dir(follow_symlinks=False):
                shutil.rmtree(item.path)
            else:
                os.unlink(item.path)
    build(mounted.lowers[0], tree)
    build(mounted.upper, {})


def dress(like: bytes, path: bytes) -> None:
    """Owner, mode and times as ``like`` has them."""
    status = os.lstat(like)
    os.chown(path, status.st_uid, status.st_gid, follow_symlinks=False)
    if not stat.S_ISLNK(status.st_mode):
        os.chmod(path, stat.S_IMODE(status.st_mode))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns), follow_symlinks=False)
