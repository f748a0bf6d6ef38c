"""What a reader sees after a change on the server: each row of the table in docs/how-it-works.md, on a real overlay."""

import errno
import os
import shutil
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from promoterd.backends.base import MarkState, Terms
from promoterd.overlay import ghosts
from promoterd.overlay.ancestors import follow_lower
from support.overlays import MountedOverlay
from support.promotions import SCRATCH, Bench, allow
from support.trees import Directory, File, Symlink

DOCUMENT = (Path(__file__).parents[1] / "docs" / "how-it-works.md").read_text("utf-8")
LIB = b"apps/lib"
TREE = {
    "apps": {
        "lib": Directory({
            "file": File(b"o" * 4096),
            "link": Symlink("file"),
            "sub": Directory({"file": File(b"o" * 4096)}),
        })
    }
}  # fmt: skip
MakeOverlay = Callable[..., MountedOverlay]
Attributes = tuple[int, int, int, int, int]


def write(path: bytes, content: bytes) -> None:
    with open(path, "wb") as file:
        file.write(content)


def replace_by_rename(path: bytes) -> None:
    write(path + b".new", b"n" * 777)
    os.rename(path + b".new", path)


def replace_by(make: Callable[[bytes], None]) -> Callable[[bytes], None]:
    def replace(path: bytes) -> None:
        os.unlink(path)
        make(path)

    return replace


def rename(path: bytes) -> None:
    os.rename(path, path + b"-renamed")


CHANGES: dict[str, tuple[Callable[[bytes], None], bytes, bytes]] = {
    # what is done, to which path, and where a reader then looks
    "a file is added": (lambda path: write(path, b"n"), b"lib/new", b"lib/new"),
    "a directory is added": (os.mkdir, b"lib/new", b"lib/new"),
    "a file is removed": (os.unlink, b"lib/file", b"lib/file"),
    "a file is renamed: its old name": (rename, b"lib/file", b"lib/file"),
    "a file is renamed: its new name": (rename, b"lib/file", b"lib/file-renamed"),
    "a file is replaced by another (rename)": (replace_by_rename, b"lib/file", b"lib/file"),
    "a file becomes a symlink": (replace_by(lambda path: os.symlink("sub", path)), b"lib/file", b"lib/file"),
    "a file becomes a directory": (replace_by(os.mkdir), b"lib/file", b"lib/file"),
    "a file is rewritten in place": (lambda path: write(path, b"n" * 99), b"lib/file", b"lib/file"),
    "a file's mode, owner or times change": (lambda path: os.chmod(path, 0o600), b"lib/file", b"lib/file"),
    "a symlink is replaced": (replace_by(lambda path: os.symlink("else", path)), b"lib/link", b"lib/link"),
    "a symlink is removed": (os.unlink, b"lib/link", b"lib/link"),
    "a directory in it is removed: its name": (shutil.rmtree, b"lib/sub", b"lib/sub"),
    "a directory in it is removed: files in that": (shutil.rmtree, b"lib/sub", b"lib/sub/file"),
    "its own mode, owner or times change": (lambda path: os.chmod(path, 0o700), b"lib", b"lib"),
    "it is removed: its name": (shutil.rmtree, b"lib", b"lib"),
    "it is removed: files in it": (shutil.rmtree, b"lib", b"lib/file"),
    "it is renamed: its new name": (rename, b"lib", b"lib-renamed"),
    "something is added beside it": (os.mkdir, b"next", b"next"),
}


@dataclass(frozen=True)
class Seen:
    """An entry as somebody sees it below some root; an errno stands for what could not be found out."""

    listed: bool
    attributes: Attributes | int
    content: object


def look(path: bytes) -> Seen:
    above, _, name = path.rpartition(b"/")
    try:
        listed = name in os.listdir(above)
    except OSError:
        listed = False
    try:
        status = os.lstat(path)
    except OSError as error:
        return Seen(listed, error.errno or 0, None)
    attributes = (
        status.st_mode,
        status.st_uid,
        status.st_gid,
        0 if stat.S_ISDIR(status.st_mode) else status.st_size,
        status.st_mtime_ns,
    )
    try:
        return Seen(listed, attributes, content(path, status.st_mode))
    except OSError as error:
        return Seen(listed, attributes, error.errno)


def content(path: bytes, mode: int) -> object:
    if stat.S_ISLNK(mode):
        return os.readlink(path)
    if stat.S_ISDIR(mode):
        return sorted(os.listdir(path))
    with open(path, "rb") as file:
        return file.read()


def in_words(seen: Seen, server: Seen, before: Seen) -> str:
    """What the columns of the table say."""
    if seen == server:
        return "as on the server"
    if seen == Seen(listed=False, attributes=errno.ENOENT, content=None):
        return "hidden"
    if seen == before:
        return "as before"
    if isinstance(seen.attributes, int):
        return ("listed, " if seen.listed else "") + errno.errorcode[seen.attributes]
    if isinstance(seen.content, int):
        assert seen.attributes == before.attributes
        return f"as before, open {errno.errorcode[seen.content]}"
    assert (seen.attributes, seen.content) == (before.attributes, server.content)
    return "old attributes, new data"


class Case:
    """One change, seen by somebody on a new overlay."""

    def __init__(self, make_overlay: MakeOverlay, change: str, backend: str = "opaque") -> None:
        self.bench = Bench(make_overlay(TREE, counting=True, layered=backend == "layer"), backend)
        self.do, self.changed, self.looked_at = CHANGES[change]

    def look(self) -> Seen:
        """Twice: what the overlay finds anew is not asked for again before the second time."""
        look(self.bench.mounted.at(b"apps/" + self.looked_at))
        return look(self.bench.mounted.at(b"apps/" + self.looked_at))

    def change(self) -> None:
        self.before = self.look()
        look(self.bench.mounted.at(LIB + b"/file"))
        self.do(self.bench.mounted.on_server(b"apps/" + self.changed))

    def says(self) -> str:
        return in_words(self.look(), look(self.bench.mounted.on_server(b"apps/" + self.looked_at)), self.before)

    def ghost(self) -> bytes | None:
        with self.bench.layers() as layers:
            below = (b"apps", LIB, LIB + b"/sub")
            return next((path for path in below if not layers.contributing(path)), None)

    def noticed(self) -> bool:
        if self.ghost() is not None:
            return True
        with self.bench.layers() as layers:
            provenance = self.bench.on_disk(LIB).provenance
            assert provenance is not None
            return not provenance.matches_stamps(layers.stamps(LIB, layers.contributing(LIB)))

    def undo(self) -> None:
        """What the daemon does about it, or somebody by hand."""
        ghost = self.ghost()
        if ghost is not None:
            with self.bench.layers() as layers:
                ghosts.remove_ghost(layers, ghost, SCRATCH)
        if ghost != LIB:
            self.bench.reopen(LIB)
            assert self.bench.on_disk(LIB).mark is MarkState.NONE
            with self.bench.layers() as layers:
                follow_lower(layers, LIB)


class LayerCase(Case):
    """With the metadata layer, the directory complete and nothing above it."""

    def __init__(self, make_overlay: MakeOverlay, change: str) -> None:
        super().__init__(make_overlay, change, "layer")
        self.bench.mark(LIB, of=allow(chain=False))
        self.bench.activate()

    def undo(self) -> None:
        """What the daemon does about it, once the recheck has noticed, or the verification."""
        backend, ghost = self.bench.backend, self.ghost()
        with self.bench.layers() as layers:
            if ghost is not None:
                backend.remove_ghost(layers, ghost)
            if ghost in {LIB, b"apps"}:
                return
            plan = backend.resync(layers, LIB, Terms(1000, recursive=False, of=allow(chain=False)))
        list(backend.shadow(plan))
        assert backend.complete(plan) == [LIB]


def table(name: str = "server changes") -> dict[str, tuple[str, ...]]:
    section = DOCUMENT.partition(f"<!-- {name} -->")[2].partition("<!-- end -->")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if line[:1] == "|"]
    return {row[0]: tuple(row[1:]) for row in rows[2:]}


@pytest.mark.parametrize("name", ["server changes", "server changes, layer"])
def test_every_row_is_tested(name: str) -> None:
    assert list(table(name)) == list(CHANGES)


@pytest.mark.parametrize("change", CHANGES)
def test_a_row_of_the_table(make_overlay: MakeOverlay, change: str) -> None:
    merged = Case(make_overlay, change)
    merged.change()
    merged_used_before = merged.says()
    merged.bench.activate()
    assert merged.says() == "as on the server"

    complete = Case(make_overlay, change)
    complete.bench.promote(LIB)
    complete.change()
    used_before = complete.says()
    complete.bench.activate()
    forgotten = complete.says()
    noticed = complete.noticed()
    complete.undo()
    complete.bench.activate()
    found = (merged_used_before, used_before, forgotten, "yes" if noticed else "no", complete.says())
    assert found == table()[change]


@pytest.mark.parametrize("change", CHANGES)
def test_a_row_of_the_layers_table(make_overlay: MakeOverlay, change: str) -> None:
    complete = LayerCase(make_overlay, change)
    complete.change()
    used_before = complete.says()
    complete.bench.activate()
    forgotten = complete.says()
    noticed = complete.noticed()
    complete.undo()
    complete.bench.activate()
    found = (used_before, forgotten, "yes" if noticed else "no", complete.says())
    assert found == table("server changes, layer")[change]
