"""Directories of a metadata layer: everything that can be wrong with one is made by hand, found and put right."""

import errno
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from promoterd.fsck.findings import Kind
from promoterd.fsck.run import check
from promoterd.fsck.session import opened_session
from promoterd.overlay.lock import WriterLock
from promoterd.overlay.mounts import overlay_at
from promoterd.provenance import Provenance
from support import overlays
from support.checking import (
    assert_shows_the_server,
    checked,
    corrupt_digest,
    errors,
    information,
    kinds,
    left,
)
from support.handmade import COPY, MARK, METACOPY, OPAQUE, REDIRECT, Layer, dress, start_anew
from support.overlays import MountedOverlay
from support.soundness import xattr
from support.trees import OLD, Device, Fifo, File, Hardlink, Symlink, Tree, files

MakeOverlay = Callable[..., MountedOverlay]
Break = Callable[[MountedOverlay], object]
TREE: Tree = {
    "opt": {
        "lib": {
            **files(10),
            b"odd \xff\n": "odd",
            **{f"copied{number}": f"local data {number}" for number in (1, 2, 3)},
            "big": File(b"x" * 10_000, mode=0o640, uid=7, gid=8),
            "link": Symlink("f0001"),
            "gone": Symlink("f0002"),
            "moved": Symlink("f0003"),
            "fifo": Fifo(),
            "dev": Device(major=1, minor=5),
            "a1": "linked",
            "a2": Hardlink("opt/lib/a1"),
            "b1": "linked, too",
            "b2": Hardlink("opt/lib/b1"),
            "sub": {**files(3), "deep": files(2)},
            "stub": files(2),
        },
        "other": files(2),
    }
}
LIB = "opt/lib"


@pytest.fixture(scope="module")
def standing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MountedOverlay]:
    """One overlay for all, because its file systems take their time to start."""
    made = overlays.make_overlay(bytes(tmp_path_factory.mktemp("layer")), TREE, counting=True, layered=True)
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def mounted(standing: MountedOverlay) -> MountedOverlay:
    """As new: the server's tree, an empty upper layer, and the layer with three complete directories."""
    standing.umount()
    start_anew(standing, TREE)
    standing.mount()
    Layer(standing).complete(LIB, "opt/lib/sub", "opt/lib/sub/deep", copied=("copied1", "copied2", "copied3"))
    return standing


def keeping(path: bytes, change: Callable[[], object], *directories: bytes) -> None:
    """Change something, with the times of the directories as before: they alone would tell."""
    before = [(directory, os.stat(directory)) for directory in (os.path.dirname(path), *directories)]
    change()
    for directory, status in before:
        os.utime(directory, ns=(status.st_atime_ns, status.st_mtime_ns))


def unlink(path: bytes) -> None:
    keeping(path, lambda: os.unlink(path))


def make_file(path: bytes, data: bytes = b"stray") -> None:
    keeping(path, lambda: Path(os.fsdecode(path)).write_bytes(data))


def resize(path: bytes, size: int) -> None:
    status = os.stat(path)
    os.truncate(path, size)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def replace_link(path: bytes, target: str) -> None:
    def change() -> None:
        os.unlink(path)
        os.symlink(target, path)
        os.utime(path, ns=(OLD, OLD), follow_symlinks=False)

    keeping(path, change)


def become_link(path: bytes) -> None:
    os.unlink(path)
    os.symlink("x", path)


def replace_device(path: bytes) -> None:
    status = os.stat(path)

    def change() -> None:
        os.unlink(path)
        os.mknod(path, status.st_mode, os.makedev(1, 9))
        os.utime(path, ns=(OLD, OLD))

    keeping(path, change)


def break_link(mounted: MountedOverlay) -> None:
    second = mounted.in_files("opt/lib/b2")
    redirect = os.getxattr(second, REDIRECT)

    def change() -> None:
        os.unlink(second)
        Path(os.fsdecode(second)).touch()
        os.truncate(second, len(b"linked, too"))
        os.setxattr(second, METACOPY, b"")
        os.setxattr(second, REDIRECT, redirect)
        dress(mounted.on_server("opt/lib/b2"), second)

    keeping(second, change)


def link_wrongly(mounted: MountedOverlay) -> None:
    """All of these have one size: only the link and the data are wrong."""
    second = mounted.in_files("opt/lib/f0009")

    def change() -> None:
        os.unlink(second)
        os.link(mounted.in_files("opt/lib/f0008"), second)

    keeping(second, change)


def swap_halves(mounted: MountedOverlay) -> None:
    there, here = mounted.in_rest("opt/lib/moved"), mounted.in_files("opt/lib/moved")
    keeping(there, lambda: os.rename(there, here), mounted.in_files(LIB))


def at(kind: str, *names: str) -> set[tuple[str, str]]:
    return {(kind, f"/opt/lib/{name}") for name in names}


def redirect(mounted: MountedOverlay, path: str, where: bytes) -> None:
    os.setxattr(mounted.in_files(path), REDIRECT, where)


def lose_directory(mounted: MountedOverlay, path: str) -> None:
    for half in (mounted.in_files(path), mounted.in_rest(path)):
        keeping(half, partial(os.rmdir, half))


def lose_the_deep(mounted: MountedOverlay) -> None:
    for name in ("f0000", "f0001"):
        unlink(mounted.in_files(f"opt/lib/sub/deep/{name}"))


def new_link(path: bytes) -> None:
    keeping(path, lambda: os.symlink("nowhere", path))


Damage = tuple[Break, set[tuple[str, str]]]
ENTRIES: tuple[Damage, ...] = (
    (lambda m: unlink(m.in_files("opt/lib/f0000")), at("missing", "f0000")),
    (lambda m: unlink(m.in_rest("opt/lib/gone")), at("missing", "gone")),
    (lambda m: unlink(m.in_files(b"opt/lib/odd \xff\n")), at("missing", "odd \\xff\\n")),
    (lambda m: make_file(m.in_files("opt/lib/more")), at("extra", "more")),
    (lambda m: new_link(m.in_rest("opt/lib/more-link")), at("extra", "more-link")),
    (lambda m: resize(m.in_files("opt/lib/big"), 9_999), at("size", "big")),
    (lambda m: os.utime(m.in_files("opt/lib/f0001"), ns=(OLD, OLD + 1)), at("time", "f0001")),
    (lambda m: os.chown(m.in_files("opt/lib/f0002"), 1, 2), at("owner", "f0002")),
    (lambda m: os.chmod(m.in_files("opt/lib/f0003"), 0o4755), at("mode", "f0003")),
    (lambda m: replace_link(m.in_rest("opt/lib/link"), "f0002"), at("target", "link")),
    (lambda m: replace_device(m.in_rest("opt/lib/dev")), at("device", "dev")),
    (lambda m: os.chmod(m.in_rest("opt/lib/fifo"), 0o600), at("mode", "fifo")),
    (lambda m: redirect(m, "opt/lib/f0004", b"/opt/lib/f0005"), at("redirect", "f0004")),
    (lambda m: redirect(m, "opt/lib/f0005", b"f0005"), at("redirect", "f0005")),
    (lambda m: os.removexattr(m.in_files("opt/lib/f0006"), REDIRECT), at("redirect", "f0006")),
    (lambda m: redirect(m, "opt/lib/a1", b"/opt/lib/f0001"), at("redirect", "a1", "a2")),
    (lambda m: os.removexattr(m.in_files("opt/lib/f0007"), METACOPY), at("no-data", "f0007")),
    (swap_halves, at("type", "moved")),
    (lambda m: corrupt_digest(m.in_files("opt/lib/copied1")), at("copy", "copied1")),
    (lambda m: os.setxattr(m.in_files("opt/lib/copied2"), COPY, b"{}"), at("copy", "copied2")),
    (lambda m: os.setxattr(m.in_files("opt/lib/copied3"), METACOPY, b""), at("copy", "copied3")),
)
"""Each on an entry of its own."""
DIRECTORIES: tuple[Damage, ...] = (
    (lambda m: os.setxattr(m.in_rest(LIB), REDIRECT, b"/opt/other"), {("redirect", "/opt/lib")}),
    (lambda m: os.setxattr(m.in_rest("opt/lib/stub"), REDIRECT, b"/opt/other"), at("redirect", "stub")),
    (lambda m: os.removexattr(m.in_rest("opt"), REDIRECT), {("redirect", "/opt")}),
    (lambda m: os.utime(m.in_files("opt"), ns=(OLD, OLD + 5)), {("time", "/opt")}),
    (lambda m: os.chmod(m.in_rest(LIB), 0o700), {("mode", "/opt/lib")}),
    (lambda m: os.chown(m.in_files("opt/lib/stub"), 3, 4), at("owner", "stub")),
    (lambda m: os.setxattr(m.in_files("opt/lib/stub"), OPAQUE, b"y"), at("xattr", "stub")),
    (lambda m: make_file(m.in_files("opt/lib/stub/x")), at("stray", "stub/x")),
    (lambda m: make_file(m.in_rest("x")), {("stray", "/x")}),
)
MARKS: tuple[Damage, ...] = (
    (lambda m: os.removexattr(m.in_rest(LIB), MARK), {("no-provenance", "/opt/lib")}),
    (lambda m: lose_directory(m, "opt/lib/stub"), at("missing", "stub")),
    (
        lose_the_deep,
        at("missing", "sub/deep/f0000", "sub/deep/f0001"),
    ),
)
SERVER: tuple[Damage, ...] = (
    (lambda m: make_file(m.on_server("opt/lib/new")), at("missing", "new")),
    (lambda m: os.utime(m.on_server(LIB)), {("time", "/opt/lib")}),
    (lambda m: unlink(m.on_server("opt/lib/f0000")), at("extra", "f0000")),
    (lambda m: resize(m.on_server("opt/lib/f0001"), 3), at("size", "f0001")),
    (lambda m: keeping(m.on_server(LIB), lambda: become_link(m.on_server("opt/lib/f0002"))), at("type", "f0002")),
    (lambda m: os.chmod(m.on_server("opt/lib/copied1"), 0o644), at("copy", "copied1")),
    (lambda m: os.chmod(m.on_server("opt/lib/sub"), 0o711), at("mode", "sub")),
)
"""What the server did; modification times of directories it changed, too."""


@pytest.mark.parametrize("offline", [False, True], ids=["mounted", "offline"])
@pytest.mark.parametrize(
    "damages", [ENTRIES, DIRECTORIES, MARKS, SERVER], ids=["entries", "directories", "marks", "server"]
)
def test_it_is_found_and_put_right(mounted: MountedOverlay, damages: tuple[Damage, ...], offline: bool) -> None:
    for damage, _ in damages:
        damage(mounted)
    expected = set().union(*(told for _, told in damages))
    found = checked(mounted, offline=offline)
    assert (errors(found), found.exit_code) == (expected, 4)
    repaired = checked(mounted, offline=offline, repair=True)
    assert (errors(repaired), left(repaired), repaired.exit_code) == (expected, set(), 1)
    again = checked(mounted, offline=offline)
    assert (errors(again), again.exit_code) == (set(), 0)
    assert_shows_the_server(mounted)


@pytest.mark.parametrize(
    ("damage", "names"), [(break_link, ("b1", "b2")), (link_wrongly, ("f0008", "f0009"))], ids=["broken", "too many"]
)
def test_hard_links(mounted: MountedOverlay, damage: Break, names: tuple[str, str]) -> None:
    """Which of the names is told of depends on the order in which the server lists them."""
    damage(mounted)
    report = checked(mounted, repair=True)
    (told,) = [where for kind, where in errors(report) if kind == "hard-link"]
    assert told in {f"/opt/lib/{name}" for name in names}
    assert (report.exit_code, checked(mounted).exit_code) == (1, 0)
    assert_shows_the_server(mounted)


def test_a_layer_that_is_in_order(mounted: MountedOverlay) -> None:
    assert_shows_the_server(mounted)
    mounted.reset()
    found = checked(mounted)
    assert (found.exit_code, found.rows) == (0, [])
    assert found.directories == 6
    assert checked(mounted, offline=True).rows == []
    assert found.entries == len(os.listdir(mounted.on_server(LIB))) + 4 + 2


def test_looking_changes_nothing(mounted: MountedOverlay) -> None:
    resize(mounted.in_files("opt/lib/big"), 1)
    unlink(mounted.in_rest("opt/lib/dev"))
    first, again = checked(mounted), checked(mounted)
    assert errors(first) == errors(again) == {("size", "/opt/lib/big"), ("missing", "/opt/lib/dev")}


def test_it_costs_the_server_one_listing(make_overlay: MakeOverlay) -> None:
    """One pass with attributes; nothing is asked entry by entry, neither for what is right nor for what is wrong."""
    mounted = make_overlay({"d": files(500)}, counting=True, layered=True, timeouts=60)
    Layer(mounted).complete("d")
    for damaged in (False, True):
        if damaged:
            make_file(mounted.in_files("d/more"))
            unlink(mounted.in_files("d/f0007"))
        mounted.remount()
        mounted.counted.reset()
        report = checked(mounted)
        counts = mounted.counted.counts()
        assert report.uncorrected == 2 * damaged
        assert counts["GETXATTR"] + counts["LISTXATTR"] + counts["OPEN"] + counts["READ"] < 30, counts
        assert counts["LOOKUP"] + counts["LOOKUP_NEGATIVE"] + counts["GETATTR"] < 500 + 60, counts


def test_an_open_directory_lacks_nothing(mounted: MountedOverlay) -> None:
    os.removexattr(mounted.in_rest(LIB), OPAQUE)
    os.unlink(mounted.in_files("opt/lib/f0003"))
    Layer(mounted).dress_ancestors(LIB)
    found = checked(mounted)
    assert (found.exit_code, information(found)) == (0, {("open", "/opt/lib")})
    resize(mounted.in_files("opt/lib/f0001"), 1)
    assert errors(checked(mounted)) == {("size", "/opt/lib/f0001")}, "what it has is shown all the same"
    assert checked(mounted, repair=True).exit_code == 1
    assert_shows_the_server(mounted)


def test_the_record_stays_for_the_daemon_to_go_by(mounted: MountedOverlay) -> None:
    before = xattr(mounted.in_rest(LIB), MARK)
    os.unlink(mounted.in_files("opt/lib/f0003"))
    assert checked(mounted, repair=True).exit_code == 1
    assert xattr(mounted.in_rest(LIB), OPAQUE) is None
    assert xattr(mounted.in_rest(LIB), MARK) == before
    assert xattr(mounted.in_rest("opt/lib/sub"), OPAQUE) == b"y", "what is right stays complete"


def test_a_child_that_is_opened_below_a_complete_parent(mounted: MountedOverlay) -> None:
    unlink(mounted.in_files("opt/lib/sub/f0001"))
    assert checked(mounted, repair=True).exit_code == 1
    assert xattr(mounted.in_rest("opt/lib/sub"), OPAQUE) is None
    assert xattr(mounted.in_rest(LIB), OPAQUE) == b"y"
    assert_shows_the_server(mounted)


def test_a_reader_keeps_what_it_has_open(mounted: MountedOverlay) -> None:
    resize(mounted.in_files("opt/lib/big"), 5)
    with open(mounted.at("opt/lib/big"), "rb") as file:
        report = checked(mounted, repair=True)
        assert report.exit_code == 4
        assert any("a process holds the directory" in row.note for row in report.rows)
        assert os.path.exists(mounted.in_files("opt/lib/big")), "nothing is taken from under a reader"
        assert file.read(5) == b"xxxxx"
    again = checked(mounted, repair=True)
    assert (again.exit_code, left(again)) == (1, set())
    assert_shows_the_server(mounted)


class TestNotForUs:
    def test_what_the_server_has_no_more(self, mounted: MountedOverlay) -> None:
        shutil.rmtree(mounted.on_server(LIB))
        for offline, code in ((False, 4 | 1), (True, 4)):
            report = checked(mounted, offline=offline, repair=True)
            assert report.exit_code == code, "the first has put the ancestor's time right"
            assert left(report) == {("ghost", "/opt/lib")}, "and nothing below it is told of"
        assert xattr(mounted.in_rest(LIB), OPAQUE) == b"y"

    def test_another_server(self, mounted: MountedOverlay) -> None:
        record = Provenance.of("layer", LIB.encode(), ["nfs:elsewhere"], [], 1, 1)
        os.setxattr(mounted.in_rest(LIB), MARK, record.encode())
        unlink(mounted.in_files("opt/lib/f0000"))
        report = checked(mounted, repair=True)
        assert (report.exit_code, left(report)) == (4, {("other-lower", "/opt/lib")})

    @pytest.mark.parametrize("record", [b'{"v":2}', b"\xff\0", b""])
    def test_a_record_that_cannot_be_read(self, mounted: MountedOverlay, record: bytes) -> None:
        os.setxattr(mounted.in_rest(LIB), MARK, record)
        report = checked(mounted, repair=True)
        assert (report.exit_code, left(report)) == (4, {("bad-provenance", "/opt/lib")})
        assert xattr(mounted.in_rest(LIB), MARK) == record

    def test_a_directory_that_was_moved(self, mounted: MountedOverlay) -> None:
        os.setxattr(mounted.in_rest(LIB), MARK, Layer(mounted).provenance("opt/other").encode())
        assert left(checked(mounted, repair=True)) == {("bad-provenance", "/opt/lib")}

    @pytest.mark.parametrize("offline", [False, True])
    def test_half_of_a_directory(self, mounted: MountedOverlay, offline: bool) -> None:
        """As a crash leaves it between the two renames; it waits for the end of the mount."""
        home = mounted.in_rest("opt/lib")
        keeping(home, lambda: shutil.rmtree(home))
        report = checked(mounted, offline=offline)
        assert (report.exit_code, errors(report)) == (4, {("twin", "/opt/lib")})
        report = checked(mounted, offline=offline, repair=True)
        assert report.exit_code == (1 if offline else 4)
        assert os.path.exists(mounted.in_files(LIB)) != offline
        if offline:
            assert checked(mounted).exit_code == 0
            assert_shows_the_server(mounted)


def test_many_of_a_kind_are_counted(make_overlay: MakeOverlay) -> None:
    mounted = make_overlay({"d": files(200)}, counting=True, layered=True)
    Layer(mounted).complete("d")
    for number in range(150):
        os.chmod(mounted.in_files(f"d/f{number:04}"), 0o600)
    report = checked(mounted)
    assert len(report.rows) == 50
    assert report.uncorrected == 150
    assert report.to_dict()["uncorrected"] == 150
    repaired = checked(mounted, repair=True)
    assert (repaired.corrected, repaired.uncorrected) == (150, 0)
    assert_shows_the_server(mounted)


def test_what_is_being_brought_in_line_is_no_finding(mounted: MountedOverlay) -> None:
    """The server changes a file again and again, and each time its stub follows, a moment later."""
    over = threading.Event()
    changes: list[int] = []
    layer = Layer(mounted)
    stage = mounted.layer_home + b"/promoterd.stage"
    os.mkdir(stage)

    def follow() -> None:
        while not over.is_set():
            size = 10 + len(changes) % 50
            resize(mounted.on_server("opt/lib/f0003"), size)
            new = stage + b"/new"
            with open(new, "xb") as file:
                file.truncate(size)
            os.setxattr(new, METACOPY, b"")
            os.setxattr(new, REDIRECT, b"/opt/lib/f0003")
            dress(mounted.on_server("opt/lib/f0003"), new)
            os.rename(new, mounted.in_files("opt/lib/f0003"))
            layer.dress_ancestors(LIB)
            changes.append(size)

    with WriterLock(mounted.upper):
        worker = threading.Thread(target=follow)
        worker.start()
        try:
            reports = [checked(mounted) for _ in range(10)]
        finally:
            over.set()
            worker.join()
    assert len(changes) > 20
    assert [errors(report) for report in reports if errors(report)] == []
    assert checked(mounted, repair=True).rows == []


def test_several_lower_layers(make_overlay: MakeOverlay) -> None:
    """What an upper one of them hides is not missed, and what it covers is compared with it."""
    top: Tree = {"d": {"both": "top", "gone": Device(major=0, minor=0), "only-top": "1"}}
    mounted = make_overlay([top, {"d": {"both": "below", "gone": "x", "only-below": "2"}}], counting=True, layered=True)
    os.makedirs(mounted.in_files("d"))
    os.makedirs(mounted.in_rest("d"))
    os.setxattr(mounted.in_rest("d"), REDIRECT, b"/d")
    layer = Layer(mounted)
    for number, name in ((0, "both"), (0, "only-top"), (1, "only-below")):
        layer.server = mounted.layers[number]
        layer.file(f"d/{name}", {})
    layer.server = mounted.layers[0]
    os.setxattr(mounted.in_rest("d"), MARK, layer.provenance("d").encode())
    os.setxattr(mounted.in_rest("d"), OPAQUE, b"y")
    layer.dress_ancestors("d")
    assert errors(checked(mounted)) == set()
    unlink(mounted.in_files("d/only-below"))
    assert errors(checked(mounted)) == {("missing", "/d/only-below")}
    assert kinds(checked(mounted, offline=True)) == {"missing"}


def test_a_server_that_does_not_answer_right_changes_nothing(mounted: MountedOverlay) -> None:
    unlink(mounted.in_files("opt/lib/f0001"))
    with opened_session(
        overlay_at(mounted.mountpoint), mounted=True, repairing=True, state_directory="/nonexistent"
    ) as session:
        mounted.counted.fail(errno.EIO)
        try:
            report = check(session).report
        finally:
            mounted.counted.fail(0)
    assert kinds(report) == {Kind.UNREADABLE}
    assert report.exit_code == 4 | 8
    assert xattr(mounted.in_rest(LIB), OPAQUE) == b"y"
