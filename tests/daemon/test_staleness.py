"""What a reader of a complete directory sees after a change on the server, and for how long: docs/staleness.md.

One overlay and one daemon for all rows. Each row's directories stand once below `any` (rules say `writers: any`: the
reopening is deferred) and once below `none` (reopened live).
"""

import errno
import os
import re
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from promoterd.paths import show
from support import overlays
from support.daemons import SLACK, RunningDaemon, mount_policy
from support.overlays import MountedOverlay
from support.trees import OLD, Directory, File, Symlink, Tree

DOCUMENT = (Path(__file__).parents[2] / "docs" / "staleness.md").read_text("utf-8")
RECHECK, VERIFY, QUIET = 0.5, 1.0, 0.1
NEW = b"n" * 777
DEFERRED = "reopening is deferred: somebody may write in"


def write(path: bytes, content: bytes = NEW) -> None:
    with open(path, "wb") as file:
        file.write(content)


def replace_by_rename(path: bytes) -> None:
    write(path + b".tmp")
    os.rename(path + b".tmp", path)


def retarget(path: bytes) -> None:
    os.symlink("elsewhere", path + b".tmp")
    os.rename(path + b".tmp", path)


def chmod_and_chown(path: bytes) -> None:
    os.chmod(path, 0o711)
    os.chown(path, 1001, 1002)


def rename_away(path: bytes) -> None:
    os.rename(path, path + b"-renamed")


@dataclass(frozen=True)
class Row:
    """A change of ``path`` on the server, and what is seen of ``look`` while the directory is complete."""

    change: str
    do: Callable[[bytes], None]
    path: bytes
    look: bytes
    complete: str
    until: str = "recheck"


ROWS = [
    Row("a name is added", write, b"D/new", b"D/new", "hidden"),
    Row("a file is removed", os.unlink, b"D/file", b"D/file", "listed, EIO"),
    Row("a file is replaced by another (rename)", replace_by_rename, b"D/file", b"D/file", "old attributes, new data"),
    Row("a file is rewritten in place", write, b"D/file", b"D/file", "old attributes, new data", "verify"),
    Row("a file's mode or owner changes", chmod_and_chown, b"D/file", b"D/file", "old attributes", "for good"),
    Row("a symlink is retargeted", retarget, b"D/link", b"D/link", "old target, or ESTALE"),
    Row("a directory in it is removed", shutil.rmtree, b"D/sub", b"D/sub", "listed", "ghost"),
    Row("a directory in it is renamed: its new name", rename_away, b"D/sub", b"D/sub-renamed", "hidden"),
    Row("a directory in it is renamed: its old name", rename_away, b"D/sub", b"D/sub", "listed", "ghost"),
    Row("its own mode or owner changes", chmod_and_chown, b"D", b"D", "old attributes"),
    Row("it is removed", shutil.rmtree, b"D", b"D", "listed", "ghost"),
    Row("it is renamed: its old name", rename_away, b"D", b"D", "listed", "ghost"),
    Row("it is renamed: its new name", rename_away, b"D", b"D-renamed", "as on the server", "at once"),
]


def home(row: Row, writers: str) -> bytes:
    return b"%s/%s" % (writers.encode(), re.sub(r"\W+", "_", row.change).encode())


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[MountedOverlay, RunningDaemon]]:
    directory = Directory(
        {
            "D": Directory(
                {
                    "file": File(b"o" * 4096),
                    "link": Symlink("target"),
                    "sub": {"file": File(b"o" * 4096)},
                    "rest": File(b"r"),
                }
            )
        }
    )
    tree: Tree = {w: {os.path.basename(home(row, w)): directory for row in ROWS} for w in ("any", "none")}
    rules: list[dict[str, Any]] = [
        {"path": "*/*", "growing": True},
        *(
            {"path": f"{writers}/**", "writers": writers, "recheck": f"{RECHECK}s", "verify": f"{VERIFY}s"}
            for writers in ("any", "none")
        ),
    ]
    with ExitStack() as stack:
        mounted = overlays.make_overlay(bytes(tmp_path_factory.mktemp("stale")), tree, counting=True)
        stack.callback(mounted.close)
        section = mount_policy(mounted, rules, quiet_period=f"{QUIET}s", heat={"threshold": 1e9})
        daemon = stack.enter_context(RunningDaemon(bytes(tmp_path_factory.mktemp("daemon")), section))
        daemon.start()
        for writers in ("any", "none"):
            daemon.ask("promote", mounted.at(writers), recursive=True)
        complete = 2 * 2 * len(ROWS)
        daemon.wait_for(lambda: daemon.status()["states"]["active"] == complete, patience=20)
        yield mounted, daemon


Seen: TypeAlias = tuple[object, ...]


def look(mounted: MountedOverlay, path: bytes, root: bytes | None = None) -> Seen:
    """What can be seen of a name: is it listed, its attributes, and its content; an errno where there is none."""
    where = (root or mounted.mountpoint) + b"/" + path
    listed = os.path.basename(path) in os.listdir(os.path.dirname(where))
    try:
        status = os.lstat(where)
        attributes = (stat.S_IFMT(status.st_mode), stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid)
        if stat.S_ISLNK(status.st_mode):
            return listed, attributes, os.readlink(where)
        if stat.S_ISDIR(status.st_mode):
            return listed, attributes, None
        with open(where, "rb") as file:
            return listed, (*attributes, status.st_size), file.read(16)
    except OSError as error:
        return listed, errno.errorcode[error.errno or 0]


def word(seen: Seen, before: Seen, server: Seen) -> str:
    """What the table calls it."""
    words = [
        (seen == (False, "ENOENT"), "hidden"),
        (seen == (True, "EIO"), "listed, EIO"),
        (seen == (True, "ESTALE"), "ESTALE"),
        (seen == server, "as on the server"),
        (seen == before and server[1] == "ENOENT", "listed"),
        (seen == before and before[-1] == b"target", "old target"),
        (seen == before, "old attributes"),
        (seen[1] == before[1] and seen[-1] == server[-1], "old attributes, new data"),
    ]
    return next((text for holds, text in words if holds), f"something else: {seen}")


@dataclass
class Case:
    """One row below one of the two."""

    row: Row
    writers: str
    mounted: MountedOverlay
    daemon: RunningDaemon

    def __post_init__(self) -> None:
        self.home = home(self.row, self.writers)
        self.directory = self.home + b"/D"
        self.before = self.look()

    def look(self) -> Seen:
        return look(self.mounted, self.home + b"/" + self.row.look)

    def change(self) -> None:
        self.row.do(self.mounted.on_server(self.home + b"/" + self.row.path))
        self.changed = time.monotonic()
        self.server = look(self.mounted, self.home + b"/" + self.row.look, self.mounted.lowers[0])

    def assert_as_told(self) -> None:
        assert word(self.look(), self.before, self.server) in self.row.complete.split(", or ")

    def wait_for(self, seen: Seen) -> None:
        """See it in time."""
        interval = VERIFY if self.row.until == "verify" else 0.0
        self.daemon.wait_for(lambda: self.look() == seen)
        assert time.monotonic() - self.changed < 1.1 * (RECHECK + interval) + QUIET + SLACK

    def assert_reopened(self) -> None:
        """Where nobody writes it is as on the server soon; otherwise it stays as it is, and `status` says why."""
        if self.writers == "none":
            self.wait_for(self.server)
        else:
            self.daemon.wait_for(lambda: (self.daemon.reason(self.directory) or "").startswith(DEFERRED))
            assert self.daemon.states()[show(self.directory)] == "stale"
            assert show(self.directory) in {one["path"] for one in self.daemon.status()["deferred_reopens"]}
            self.assert_as_told()
        expected = "the server rewrote file in place" if self.row.until == "verify" else "the server changed it"
        assert [event["reason"] for event in self.daemon.find("stale", path=show(self.directory))] == [expected]

    def assert_gone(self) -> None:
        """What the server has deleted is removed in any case."""
        self.wait_for((False, "ENOENT"))
        self.daemon.wait_event("ghost_removed", path=show(self.home + b"/" + self.row.look))

    def assert_for_good(self) -> None:
        """Just as if a user had changed ours: it stays, also when the directory is reopened."""
        checked = self.daemon.metric("promoterd_rechecks_total")
        time.sleep(1.1 * VERIFY + RECHECK)
        self.daemon.wait_for(lambda: self.daemon.metric("promoterd_rechecks_total") > checked + 2 * len(ROWS))
        assert not self.daemon.find("stale", path=show(self.directory))
        if self.writers == "none":
            self.daemon.ask("reopen", self.mounted.at(self.directory))
        self.assert_as_told()

    def assert_found(self) -> None:
        """It is in a directory that grows."""
        self.daemon.wait_event("growing_changed", path=show(self.home))
        assert self.look() == self.server


@pytest.mark.needs("root", "fuse", "overlay")
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.change)
def test_row(scene: tuple[MountedOverlay, RunningDaemon], row: Row) -> None:
    assert f"| {row.change} | {row.complete} |" in DOCUMENT, "the document has the row"
    cases = [Case(row, writers, *scene) for writers in ("none", "any")]
    for case in cases:  # the first has a bound of time, and waits for no other
        case.change()
        case.mounted.cool()  # the worst case: nothing is remembered from before
        case.assert_as_told()
    for case in cases:
        match row.until:
            case "recheck" | "verify":
                case.assert_reopened()
            case "ghost":
                case.assert_gone()
            case "for good":
                case.assert_for_good()
            case _:
                case.assert_found()


def test_the_document_has_no_other_rows() -> None:
    rows = re.findall(r"^\| ([^|]+) \| [^|]+ \| [^|]+ \| [^|]+ \|$", DOCUMENT, re.MULTILINE)
    assert set(rows) - {"on the server, in a directory that is complete"} == {row.change for row in ROWS}


def test_old_times_mean_nothing_here() -> None:
    assert time.time_ns() - 10**9 * 86_400 > OLD, "min_age must not be what keeps a row from being seen"
