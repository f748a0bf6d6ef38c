"""Marks on upper directories: what each relies on is taken away, found, and the directory reopened."""

import os
import stat
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from promoterd.overlay import rolls, xattrs
from promoterd.overlay.ancestors import follow_lower
from promoterd.overlay.listing import Layers
from promoterd.overlay.mounts import overlay_at
from promoterd.provenance import Provenance, decode, digest
from support.checking import checked, errors, information, left
from support.overlays import MountedOverlay
from support.promotions import ORIGIN, Bench, assert_same_view, view_below
from support.soundness import METACOPY, OPAQUE, PROVENANCE, REDIRECT, xattr
from support.trees import Fifo, File, Symlink, Tree, files

MakeOverlay = Callable[..., MountedOverlay]
LIB, SUB = b"opt/lib", b"opt/lib/sub"
TREE: Tree = {
    "opt": {
        "lib": {**files(6), "link": Symlink("f0000"), "fifo": Fifo(), "set": File(b"x", mode=0o4755), "sub": files(3)},
        "other": files(2),
    }
}


@pytest.fixture
def bench(make_overlay: MakeOverlay) -> Bench:
    made = Bench(make_overlay(TREE))
    made.promote(LIB)
    return made


def write(path: bytes, data: bytes = b"new") -> None:
    Path(os.fsdecode(path)).write_bytes(data)


def roll_of(path: bytes) -> str:
    return f"/roll-{digest(path)}"


def lose_roll(mounted: MountedOverlay) -> None:
    os.unlink(mounted.upper + b"/" + os.fsencode(rolls.place(overlay_at(mounted.mountpoint), LIB)))


def unmark(mounted: MountedOverlay, path: bytes) -> None:
    for attribute in (OPAQUE, PROVENANCE):
        os.removexattr(mounted.in_upper(path), attribute)


def lean(mounted: MountedOverlay) -> None:
    os.setxattr(mounted.in_upper("opt/lib/f0001"), REDIRECT, b"f0001")


BROKEN: dict[str, tuple[Callable[[MountedOverlay], object], set[tuple[str, str]]]] = {
    "the server has more": (lambda m: write(m.on_server("opt/lib/new")), {("missing", "/opt/lib/new")}),
    "the server has one file less": (
        lambda m: os.unlink(m.on_server("opt/lib/f0001")),
        {("redirect", "/opt/lib/f0001")},
    ),
    "the server has one symlink less": (
        lambda m: os.unlink(m.on_server("opt/lib/link")),
        {("extra", "/opt/lib/link")},
    ),
    "the server rewrote a file": (
        lambda m: write(m.on_server("opt/lib/f0001"), b"longer than it was before"),
        {("size", "/opt/lib/f0001"), ("time", "/opt/lib/f0001")},
    ),
    "a metacopy that leans": (lean, {("leaning", "/opt/lib/f0001")}),
    "a child that is merged": (
        lambda m: unmark(m, SUB),
        {("merged-child", "/opt/lib/sub"), ("stray-roll", roll_of(SUB))},
    ),
    "no roll": (lose_roll, {("roll", "/opt/lib")}),
}


@pytest.mark.parametrize("what", BROKEN)
def test_it_is_found_and_reopened(bench: Bench, what: str) -> None:
    damage, expected = BROKEN[what]
    assert checked(bench.mounted).exit_code == 4, "the scratch directory that the bench has left"
    damage(bench.mounted)
    found = checked(bench.mounted, offline=True)
    told = errors(found) - {("scratch", "/.promoterd")}
    assert (told, found.exit_code) == (expected, 4)
    repaired = checked(bench.mounted, offline=True, repair=True)
    assert (repaired.exit_code, left(repaired)) == (1, set())
    assert xattr(bench.mounted.in_upper(LIB), OPAQUE) is None
    again = checked(bench.mounted)
    assert (again.exit_code, errors(again)) == (0, set())
    with Layers(overlay_at(bench.mounted.mountpoint)) as layers:
        follow_lower(layers, LIB)  # as the daemon does
    assert_same_view(view_below(bench.mounted.lowers[0]), view_below(bench.mounted.mountpoint))


def test_a_mode_stays_what_it_was(bench: Bench) -> None:
    """A user may have set it: nobody can tell, and a reopening leaves it alone."""
    os.chmod(bench.mounted.on_server("opt/lib/set"), 0o755)
    report = checked(bench.mounted, offline=True, repair=True)
    assert left(report) == {("mode", "/opt/lib/set")}
    assert xattr(bench.mounted.in_upper(LIB), OPAQUE) == b"y"


def test_what_users_did_before_is_no_error(make_overlay: MakeOverlay) -> None:
    bench = Bench(make_overlay(TREE))
    os.chmod(bench.mounted.at("opt/lib/f0003"), 0o600)
    os.utime(bench.mounted.at("opt/lib/f0004"))
    os.chown(bench.mounted.at("opt/lib/fifo"), 3, 4)
    bench.promote(LIB)
    assert errors(checked(bench.mounted, offline=True)) == {("scratch", "/.promoterd")}


def test_what_users_did_is_no_error(bench: Bench) -> None:
    at = bench.mounted.at
    os.unlink(at("opt/lib/f0000"))
    write(at("opt/lib/f0001"), b"the user's")
    os.rename(at("opt/lib/f0002"), at("opt/lib/renamed"))
    os.chmod(at("opt/lib/f0003"), 0o600)
    os.unlink(at("opt/lib/link"))
    os.symlink("elsewhere", at("opt/lib/link"))
    os.mkdir(at("opt/lib/made"))
    write(at("opt/lib/made/by-user"))
    os.mkdir(at("opt/other/again"))
    os.rmdir(at("opt/other/again"))
    before = bench.view()
    assert errors(checked(bench.mounted, offline=True)) == {("scratch", "/.promoterd")}
    assert left(checked(bench.mounted, offline=True, repair=True)) == set()
    assert_same_view(before, bench.view())
    assert xattr(bench.mounted.in_upper(LIB), OPAQUE) == b"y"


def test_what_a_user_renamed_leads_to_a_file_that_is_gone(bench: Bench) -> None:
    os.rename(bench.mounted.at("opt/lib/f0002"), bench.mounted.at("opt/lib/sub/renamed"))
    os.unlink(bench.mounted.on_server("opt/lib/f0002"))
    assert ("redirect", "/opt/lib/sub/renamed") in errors(checked(bench.mounted, offline=True))


def test_the_users_marks_are_told_and_left(bench: Bench) -> None:
    for name in os.listdir(bench.mounted.at("opt/other")):
        os.unlink(bench.mounted.at(b"opt/other/" + name))
    os.rmdir(bench.mounted.at("opt/other"))
    os.mkdir(bench.mounted.at("opt/other"))
    assert xattr(bench.mounted.in_upper("opt/other"), OPAQUE) == b"y"
    report = checked(bench.mounted, offline=True, repair=True)
    assert information(report) == {("foreign", "/opt/other")}
    assert xattr(bench.mounted.in_upper("opt/other"), OPAQUE) == b"y"


def test_a_directory_that_a_user_renamed(bench: Bench) -> None:
    os.rename(bench.mounted.at(SUB), bench.mounted.at("opt/lib/renamed"))
    report = checked(bench.mounted, offline=True)
    assert ("moved", "/opt/lib/renamed") in information(report)
    assert errors(report) == {("scratch", "/.promoterd"), ("stray-roll", roll_of(SUB))}


@pytest.mark.parametrize("offline", [False, True])
class TestWhatWasCutOff:
    def test_before_the_mark(self, bench: Bench, offline: bool) -> None:
        os.removexattr(bench.mounted.in_upper(LIB), OPAQUE)
        bench.activate()
        report = checked(bench.mounted, offline=offline)
        assert errors(report) - {("scratch", "/.promoterd")} == {("unfinished", "/opt/lib")}
        assert checked(bench.mounted, offline=offline, repair=True).exit_code == 1
        assert xattr(bench.mounted.in_upper(LIB), PROVENANCE) is None
        assert xattr(bench.mounted.in_upper(SUB), OPAQUE) == b"y"
        assert checked(bench.mounted).exit_code == 0
        assert_same_view(view_below(bench.mounted.lowers[0]), view_below(bench.mounted.mountpoint))

    def test_in_a_reopening(self, bench: Bench, offline: bool) -> None:
        """The whiteouts were written, the mark was removed, and then the power failed: what was deleted stays so."""
        os.unlink(bench.mounted.at("opt/lib/f0001"))
        os.mknod(bench.mounted.in_upper("opt/lib/f0001"), stat.S_IFCHR, 0)
        os.removexattr(bench.mounted.in_upper(LIB), OPAQUE)
        bench.activate()
        assert ("unfinished", "/opt/lib") in errors(checked(bench.mounted, offline=offline))
        assert checked(bench.mounted, offline=offline, repair=True).exit_code == 1
        assert not os.path.lexists(bench.mounted.at("opt/lib/f0001"))
        assert os.path.exists(bench.mounted.at("opt/lib/f0002"))
        assert checked(bench.mounted).exit_code == 0

    def test_in_the_middle_of_a_change(self, bench: Bench, offline: bool) -> None:
        directory = bench.mounted.in_upper(LIB)
        status = os.stat(directory)
        note = f"{status.st_atime_ns} {status.st_mtime_ns} {time.time_ns()}"
        os.setxattr(directory, xattrs.TIMES, note.encode())
        os.utime(directory)
        assert ("times", "/opt/lib") in errors(checked(bench.mounted, offline=offline))
        assert checked(bench.mounted, offline=offline, repair=True).exit_code == 1
        assert os.stat(directory).st_mtime_ns == status.st_mtime_ns
        assert xattr(directory, xattrs.TIMES) is None


class TestNotForUs:
    def test_another_server(self, bench: Bench) -> None:
        record = decode(xattr(bench.mounted.in_upper(LIB), PROVENANCE))
        assert record is not None
        other = Provenance.of("opaque", LIB, ["elsewhere"], [], record.completed_ns, record.entries, record.roll)
        os.setxattr(bench.mounted.in_upper(LIB), PROVENANCE, other.encode())
        assert ("other-lower", "/opt/lib") in left(checked(bench.mounted, offline=True, repair=True))
        assert xattr(bench.mounted.in_upper(LIB), OPAQUE) == b"y"

    def test_a_record_that_cannot_be_read(self, bench: Bench) -> None:
        os.setxattr(bench.mounted.in_upper(LIB), PROVENANCE, b'{"v":99}')
        assert ("bad-provenance", "/opt/lib") in left(checked(bench.mounted, offline=True, repair=True))
        assert xattr(bench.mounted.in_upper(LIB), OPAQUE) == b"y"

    def test_what_the_server_has_no_more(self, bench: Bench) -> None:
        os.rename(bench.mounted.on_server(LIB), bench.mounted.on_server("opt/gone"))
        report = checked(bench.mounted, offline=True, repair=True)
        assert left(report) == {("ghost", "/opt/lib")}
        assert os.path.exists(bench.mounted.in_upper("opt/lib/f0000"))


def test_a_finalized_directory_needs_no_redirects(make_overlay: MakeOverlay) -> None:
    """Its entries are looked up below as well; what it hides are names that do not exist."""
    mounted = make_overlay({"d": {**files(3), "sub": files(1)}})
    bench = Bench(mounted)
    plan = bench.plan(b"d")
    bench.shadow(plan)
    bench.backend.complete(plan)
    os.setxattr(mounted.in_upper("d"), OPAQUE, b"z")
    os.removexattr(mounted.in_upper("d/sub"), OPAQUE)
    os.removexattr(mounted.in_upper("d/sub"), PROVENANCE)
    os.removexattr(mounted.in_upper("d/f0001"), REDIRECT)
    assert xattr(mounted.in_upper("d/f0001"), METACOPY) is not None
    assert xattr(mounted.in_upper("d/sub"), ORIGIN) is not None
    assert {kind for kind, _ in errors(checked(mounted, offline=True))} == {"scratch", "stray-roll"}
