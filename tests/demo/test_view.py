"""Views: what counts as seen, and that no difference of that kind is missed."""

import errno
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from promoterd.demo.lower import CountingLower
from promoterd.demo.view import Entry, differences, snapshot
from support.overlays import MountedOverlay
from support.trees import ODD_NAMES, OLD, Device, Fifo, File, Symlink, Tree, build, odd_files

pytestmark = pytest.mark.needs("root")

TREE: Tree = {
    "f": File(b"content", xattrs={"user.k": b"v"}),
    "d": {"sub": {"deep": b"x"}, "l": Symlink("../f")},
    "fifo": Fifo(),
    "null": Device(),
    "odd": odd_files(),
}


@pytest.fixture
def place(tmp_path: Path) -> bytes:
    build(str(tmp_path / "t"), TREE)
    return bytes(tmp_path / "t")


def test_every_entry_is_in_it(place: bytes) -> None:
    view = snapshot(place)
    odd = {b"odd/" + name for name in ODD_NAMES}
    assert view.keys() == {b"", b"f", b"d", b"d/sub", b"d/sub/deep", b"d/l", b"fifo", b"null", b"odd"} | odd
    assert view[b"f"].xattrs == (("user.k", b"v"),)
    assert view[b"d/l"].target == b"../f"
    assert view[b"null"].rdev == os.makedev(1, 3)
    assert {entry.mtime_ns for entry in view.values()} == {OLD}


def test_what_is_skipped_is_not(place: bytes) -> None:
    assert snapshot(place).keys() - snapshot(place, skip={b"d", b"odd/-dash"}).keys() == {
        b"d",
        b"d/sub",
        b"d/sub/deep",
        b"d/l",
        b"odd/-dash",
    }


def keep_times(path: bytes, change: Callable[[], object]) -> None:
    change()
    os.utime(path, ns=(OLD, OLD), follow_symlinks=False)


def rewrite(path: bytes) -> None:
    with open(path, "wb") as file:
        file.write(b"CONTENT")


CHANGES: dict[str, tuple[Callable[[bytes], object], list[str]]] = {
    "mode": (lambda at: os.chmod(at + b"/f", 0o600), ["/f: mode 0o100644 -> 0o100600"]),
    "owner": (lambda at: os.chown(at + b"/d/l", 7, 8, follow_symlinks=False), ["/d/l: uid 0 -> 7", "/d/l: gid 0 -> 8"]),
    "time": (lambda at: os.utime(at + b"/d/sub", ns=(OLD, OLD + 1)), [f"/d/sub: mtime_ns {OLD} -> {OLD + 1}"]),
    "size": (lambda at: keep_times(at + b"/f", lambda: os.truncate(at + b"/f", 3)), ["/f: size 7 -> 3", "/f: digest"]),
    "bytes": (lambda at: keep_times(at + b"/f", lambda: rewrite(at + b"/f")), ["/f: digest"]),
    "xattr value": (lambda at: os.setxattr(at + b"/f", "user.k", b"\0"), ["/f: xattrs user.k=v -> user.k=\\x00"]),
    "xattr of a symlink": (
        lambda at: os.setxattr(at + b"/d/l", "trusted.k", b"w", follow_symlinks=False),
        ["/d/l: xattrs none -> trusted.k=w"],
    ),
    "xattr of a directory": (lambda at: os.setxattr(at + b"/d", "user.k", b"w"), ["/d: xattrs none -> user.k=w"]),
    "acl": (
        lambda at: subprocess.run(["setfacl", "-m", "u:1234:r", at + b"/f"], check=True),
        ["/f: xattrs user.k=v -> system.posix_acl_access="],
    ),
}


@pytest.mark.parametrize("what", CHANGES)
def test_each_kind_of_change_is_told(place: bytes, what: str) -> None:
    change, expected = CHANGES[what]
    before = snapshot(place)
    change(place)
    found = differences(before, snapshot(place))
    assert len(found) == len(expected)
    for line, beginning in zip(found, expected, strict=True):
        assert line.startswith(beginning)


def test_other_names_targets_types_and_devices_are_told(place: bytes) -> None:
    before = snapshot(place)
    os.rename(place + b"/odd/-dash", place + b"/odd/new\xff")
    others: dict[bytes, Callable[[bytes], object]] = {
        b"d/l": lambda path: os.symlink(b"elsewhere", path),
        b"fifo": lambda path: os.mkdir(path, 0o755),
        b"null": lambda path: os.mknod(path, 0o20600, os.makedev(1, 5)),
    }
    for name, make in others.items():
        os.unlink(place + b"/" + name)
        make(place + b"/" + name)
    for name in (b"d/l", b"fifo", b"null", b"d", b"odd", b""):
        os.utime(place + b"/" + name, ns=(OLD, OLD), follow_symlinks=False)
    assert differences(before, snapshot(place)) == [
        "/odd/-dash: gone",
        "/odd/new\\xff: new",
        "/d/l: size 4 -> 9",
        "/d/l: target ../f -> elsewhere",
        "/fifo: mode 0o10644 -> 0o40755",
        f"/null: rdev {os.makedev(1, 3)} -> {os.makedev(1, 5)}",
    ]


def test_the_same_tree_elsewhere_is_the_same(place: bytes, tmp_path: Path) -> None:
    build(str(tmp_path / "again"), TREE)
    assert differences(snapshot(place), snapshot(bytes(tmp_path / "again"))) == []


def test_a_copy_up_is_no_difference_but_what_cannot_be_read_is(make_overlay: Callable[..., MountedOverlay]) -> None:
    overlay = make_overlay(TREE)
    before = snapshot(overlay.mountpoint)
    for path in before:
        os.utime(overlay.at(path), ns=(OLD, OLD), follow_symlinks=False)
    os.utime(overlay.mountpoint, ns=(OLD, OLD))
    assert os.listdir(overlay.in_upper("d")) != []
    assert differences(before, snapshot(overlay.mountpoint)) == []
    # A metacopy whose data is gone from the server cannot be looked at any more, whatever the listing says.
    os.unlink(overlay.on_server("f"))
    overlay.cool()
    assert any(line.startswith("/f: ") for line in differences(before, snapshot(overlay.mountpoint)))


@pytest.mark.needs("fuse")
def test_what_fails_is_in_it_with_its_error(place: bytes, tmp_path: Path) -> None:
    (tmp_path / "mnt").mkdir()
    with CountingLower(place, str(tmp_path / "mnt"), xattrs=True) as lower:
        before = snapshot(os.fsencode(lower.mountpoint))
        assert differences(snapshot(place), before) == []
        lower.fail(errno.ESTALE)
        with pytest.raises(OSError, match="Stale"):
            snapshot(os.fsencode(lower.mountpoint))
    broken = before | {b"f": Entry(error=errno.EIO)}
    assert "/f: error none -> EIO" in differences(before, broken)
