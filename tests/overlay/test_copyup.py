"""Triggers copy metadata up, and nothing that a reader sees changes."""

import errno
import os
import stat
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from promoterd.demo.view import Entry, snapshot
from promoterd.overlay.copyup import copy_up, copy_up_by_times, explain_failure
from support.overlays import MountedOverlay
from support.rich import add_socket, rich_tree
from support.soundness import METACOPY, REDIRECT, xattr
from support.trees import Hardlink, Symlink, files

MakeOverlay = Callable[..., MountedOverlay]
LIB = b"opt/lib"


@contextmanager
def at_work(mounted: MountedOverlay, path: bytes = LIB) -> Iterator[tuple[int, int]]:
    """Descriptors of a directory through the overlay, and of a scratch directory."""
    if not os.path.isdir(mounted.at(".scratch")):
        os.mkdir(mounted.at(".scratch"), 0o700)
    directory = os.open(mounted.at(path), os.O_PATH)
    scratch = os.open(mounted.at(".scratch"), os.O_PATH)
    try:
        yield directory, scratch
    finally:
        os.close(directory)
        os.close(scratch)


def trigger(mounted: MountedOverlay, name: str, path: bytes = LIB) -> bool:
    mode = os.lstat(mounted.on_server(path + b"/" + os.fsencode(name))).st_mode
    with at_work(mounted, path) as (directory, scratch):
        return copy_up(directory, name, mode, scratch)


class TestEverything:
    def test_it_is_in_upper_and_looks_as_before(self, make_overlay: MakeOverlay) -> None:
        mounted = make_overlay(rich_tree())
        add_socket(mounted.on_server("opt/lib"))
        skip = {b".scratch"}
        before = snapshot(mounted.mountpoint, skip)
        names = os.listdir(os.fsdecode(mounted.at(LIB)))
        times = {name: os.lstat(mounted.at(LIB + b"/" + os.fsencode(name))).st_atime_ns for name in names}
        for name in names:
            assert trigger(mounted, name)
        after = snapshot(mounted.mountpoint, skip)
        after[b""] = before[b""]  # the scratch directory was made in it
        assert differing(before, after) == {}
        assert sorted(os.listdir(os.fsdecode(mounted.in_upper(LIB)))) == sorted(names)
        for name in names:
            upper = os.lstat(mounted.in_upper(LIB + b"/" + os.fsencode(name)))
            if not stat.S_ISLNK(upper.st_mode) and not stat.S_ISDIR(upper.st_mode):  # looking changes those of these
                assert upper.st_atime_ns == times[name], name
        assert os.listdir(mounted.at(".scratch")) == []

    def test_a_file_brings_no_data_and_an_absolute_redirect_of_the_kernels(self, make_overlay: MakeOverlay) -> None:
        mounted = make_overlay(rich_tree())
        for name in ("f0001", "sparse", "empty file", "set-id", "locked"):
            trigger(mounted, name)
            upper = mounted.in_upper(LIB + b"/" + name.encode())
            assert xattr(upper, METACOPY) is not None, name
            assert xattr(upper, REDIRECT) == b"/opt/lib/" + name.encode()
            assert os.lstat(upper).st_blocks <= 8

    def test_the_redirect_holds_in_memory_too(self, make_overlay: MakeOverlay) -> None:
        """A rename in the same directory replaces a redirect that the cached inode does not know by a relative one."""
        mounted = make_overlay(rich_tree())
        trigger(mounted, "f0001")
        os.rename(mounted.at("opt/lib/f0001"), mounted.at("opt/lib/renamed"))
        assert xattr(mounted.in_upper("opt/lib/renamed"), REDIRECT) == b"/opt/lib/f0001"

    def test_a_relative_redirect_becomes_absolute(self, make_overlay: MakeOverlay) -> None:
        mounted = make_overlay({"opt": {"lib": files(2)}})
        os.rename(mounted.at("opt/lib/f0001"), mounted.at("opt/lib/renamed"))
        assert xattr(mounted.in_upper("opt/lib/renamed"), REDIRECT) == b"f0001"
        with at_work(mounted) as (directory, scratch):
            assert copy_up(directory, "renamed", stat.S_IFREG, scratch)
        assert xattr(mounted.in_upper("opt/lib/renamed"), REDIRECT) == b"/opt/lib/f0001"

    def test_times_of_the_directory_that_holds_it_stay(self, make_overlay: MakeOverlay) -> None:
        mounted = make_overlay(rich_tree())
        before = os.stat(mounted.at(LIB))
        for name in ("f0001", "link", "sub", "fifo"):
            trigger(mounted, name)
        after = os.stat(mounted.at(LIB))
        assert (after.st_mtime_ns, after.st_atime_ns) == (before.st_mtime_ns, before.st_atime_ns)

    def test_a_dangling_link_is_not_followed(self, make_overlay: MakeOverlay, tmp_path: os.PathLike[str]) -> None:
        outside = os.fsencode(tmp_path) + b"/outside"
        with open(outside, "wb"):
            os.utime(outside, ns=(5, 5))
        mounted = make_overlay({"opt": {"lib": {"l": Symlink(outside)}}})
        trigger(mounted, "l")
        assert os.stat(outside).st_atime_ns == 5
        assert os.readlink(mounted.in_upper("opt/lib/l")) == outside

    @pytest.mark.parametrize("mode", [stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK])
    def test_what_is_gone_says_no(self, make_overlay: MakeOverlay, mode: int) -> None:
        mounted = make_overlay({"opt": {"lib": {}}})
        with at_work(mounted) as (directory, scratch):
            assert not copy_up(directory, "gone", mode, scratch)

    def test_a_directory_where_a_file_was_says_no(self, make_overlay: MakeOverlay) -> None:
        """Somebody replaced it since it was listed: linking a directory gives EPERM, which is no immutable file."""
        mounted = make_overlay({"opt": {"lib": {"x": b"x"}}})
        os.unlink(mounted.at("opt/lib/x"))
        os.mkdir(mounted.at("opt/lib/x"))
        with at_work(mounted) as (directory, scratch):
            assert not copy_up(directory, "x", stat.S_IFREG, scratch)

    def test_a_file_that_is_open_and_running(self, make_overlay: MakeOverlay) -> None:
        with open("/bin/sleep", "rb") as file:
            program = file.read()
        mounted = make_overlay({"opt": {"lib": {"sleep": program}}})
        os.chmod(mounted.on_server("opt/lib/sleep"), 0o755)
        with subprocess.Popen([mounted.at("opt/lib/sleep"), "60"]) as process:
            try:
                assert trigger(mounted, "sleep")
                assert process.poll() is None
                assert xattr(mounted.in_upper("opt/lib/sleep"), METACOPY) is not None
            finally:
                process.kill()

    @pytest.mark.parametrize("index", ["off", "on"])
    def test_hard_links(self, make_overlay: MakeOverlay, index: str) -> None:
        mounted = make_overlay(
            {"opt": {"lib": {"a": b"a", "b": Hardlink("opt/lib/a")}}},
            options=f"metacopy=on,redirect_dir=on,xino=off,index={index}",
        )
        trigger(mounted, "a")
        trigger(mounted, "b")
        a, b = (os.stat(mounted.at(f"opt/lib/{name}")) for name in "ab")
        assert (a.st_ino == b.st_ino, a.st_nlink) == ((True, 2) if index == "on" else (False, 1))


def differing(before: dict[bytes, Entry], after: dict[bytes, Entry]) -> dict[bytes, tuple[Entry | None, Entry | None]]:
    return {
        path: (before.get(path), after.get(path))
        for path in before.keys() | after.keys()
        if before.get(path) != after.get(path)
    }


class TestFailures:
    @pytest.mark.needs("chattr")
    @pytest.mark.parametrize("name", ["f", "l", "d"])
    def test_what_cannot_be_changed(self, make_overlay: MakeOverlay, name: str) -> None:
        mounted = make_overlay({"opt": {"lib": {"f": b"", "d": {}, "l": b""}}})
        path = mounted.on_server(f"opt/lib/{name}")
        subprocess.run(["chattr", "+i", path], check=True)
        try:
            with pytest.raises(PermissionError) as failure:
                trigger(mounted, name)
        finally:
            subprocess.run(["chattr", "-i", path], check=True)
        refused = explain_failure(failure.value, LIB, name)
        assert refused is not None
        assert "/opt/lib is refused" in refused.message
        assert "immutable" in refused.message
        assert refused.hint is not None
        assert "chattr" in refused.hint

    def test_a_path_longer_than_redirect_max(self, make_overlay: MakeOverlay) -> None:
        name = "n" * (256 - len("/opt/lib/") + 1)
        mounted = make_overlay({"opt": {"lib": {name: b""}}})
        with pytest.raises(OSError, match="Invalid cross-device link") as failure:
            trigger(mounted, name)
        refused = explain_failure(failure.value, LIB, name)
        assert refused is not None
        assert "redirect_max" in refused.message
        assert os.listdir(mounted.at(".scratch")) == []

    def test_what_says_nothing_of_the_entry_is_not_explained(self) -> None:
        for code in (errno.EIO, errno.ENOSPC, errno.ESTALE, errno.EROFS):
            assert explain_failure(OSError(code, ""), LIB, "f") is None

    def test_odd_names_are_printable(self) -> None:
        refused = explain_failure(OSError(errno.EPERM, ""), b"opt/\n", "a\udcff\x1b")
        assert refused is not None
        assert refused.message.isprintable()

    def test_setting_times_keeps_the_modification_time_of_every_kind(self, make_overlay: MakeOverlay) -> None:
        mounted = make_overlay(rich_tree())
        before = os.lstat(mounted.at("opt/lib/acl dir"))
        with at_work(mounted) as (directory, _):
            copy_up_by_times(directory, "acl dir")
        after = os.lstat(mounted.in_upper("opt/lib/acl dir"))
        assert (after.st_mtime_ns, after.st_atime_ns) == (before.st_mtime_ns, before.st_atime_ns)
