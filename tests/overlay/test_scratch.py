import os
import stat
import subprocess
from collections.abc import Callable

import pytest

from promoterd.errors import Refused
from promoterd.overlay import xattrs
from promoterd.overlay.scratch import DEFAULT_NAME, empty_in_upper, open_scratch
from support.needs import need
from support.overlays import MountedOverlay
from support.scratching import empty, ensure, layers_of, remove, times

MakeOverlay = Callable[..., MountedOverlay]
OLD = 1_500_000_000_123_456_789


@pytest.fixture
def made(make_overlay: MakeOverlay) -> MountedOverlay:
    made = make_overlay({"lib": {"a": b"1", "b": b"2"}, "top": b"3"}, counting=True)
    os.utime(made.mountpoint, ns=(OLD + 1, OLD))
    return made


def test_it_is_made_hidden_and_roots_times_stay(made: MountedOverlay) -> None:
    before = times(made)
    ensure(made)
    status = os.stat(made.at(DEFAULT_NAME))
    assert stat.S_IMODE(status.st_mode) == 0o700
    assert (status.st_uid, status.st_gid) == (0, 0)
    assert os.path.isdir(made.in_upper(DEFAULT_NAME))
    assert not os.path.lexists(made.on_server(DEFAULT_NAME))
    assert times(made) == before == (OLD + 1, OLD)


def test_making_it_twice_keeps_it(made: MountedOverlay) -> None:
    ensure(made)
    inode = os.stat(made.in_upper(DEFAULT_NAME)).st_ino
    ensure(made)
    assert os.stat(made.in_upper(DEFAULT_NAME)).st_ino == inode


def test_removing_it_leaves_no_trace(made: MountedOverlay) -> None:
    names = sorted(os.listdir(made.mountpoint)), sorted(os.listdir(made.upper))
    before = times(made)
    ensure(made)
    assert remove(made)
    assert times(made) == before
    assert (sorted(os.listdir(made.mountpoint)), sorted(os.listdir(made.upper))) == names
    assert remove(made), "there is nothing left to remove"


def test_a_root_directory_that_hands_down_its_group_and_acl(made: MountedOverlay) -> None:
    need("setfacl")
    os.chown(made.mountpoint, 0, 1234)
    os.chmod(made.mountpoint, 0o2750)
    subprocess.run(["setfacl", "-d", "-m", "u:1234:rwx,g:1234:rwx", made.mountpoint], check=True)
    ensure(made)
    status = os.stat(made.at(DEFAULT_NAME))
    assert stat.S_IMODE(status.st_mode) == 0o700
    assert (status.st_uid, status.st_gid) == (0, 0)
    assert not [name for name in os.listxattr(made.in_upper(DEFAULT_NAME)) if "posix_acl" in name]


def test_another_name(made: MountedOverlay) -> None:
    ensure(made, b".cache of promoterd")
    assert os.path.isdir(made.at(b".cache of promoterd"))
    assert not os.path.lexists(made.at(DEFAULT_NAME))


def test_a_leftover_whiteout_is_no_obstacle(made: MountedOverlay) -> None:
    os.mknod(made.in_upper(DEFAULT_NAME), stat.S_IFCHR, 0)
    assert remove(made)
    ensure(made)
    assert os.path.isdir(made.at(DEFAULT_NAME))


class TestOpen:
    def test_it_is_opened_through_the_overlay(self, made: MountedOverlay) -> None:
        ensure(made)
        with layers_of(made) as layers:
            descriptor = open_scratch(layers.root, DEFAULT_NAME)
            try:
                os.link(made.at("lib/a"), b"link-1-1", dst_dir_fd=descriptor)
            finally:
                os.close(descriptor)
        assert xattrs.get(made.in_upper("lib/a"), xattrs.REDIRECT) == b"/lib/a"

    def test_it_is_not_there(self, made: MountedOverlay) -> None:
        with layers_of(made) as layers, pytest.raises(Refused, match="No such file"):
            open_scratch(layers.root, DEFAULT_NAME)

    def test_it_was_exchanged_for_a_symlink(self, made: MountedOverlay) -> None:
        ensure(made)
        os.rmdir(made.at(DEFAULT_NAME))
        os.symlink("lib", made.at(DEFAULT_NAME))
        with layers_of(made) as layers, pytest.raises(Refused):
            open_scratch(layers.root, DEFAULT_NAME)

    def test_it_was_opened_up(self, made: MountedOverlay) -> None:
        ensure(made)
        os.chmod(made.at(DEFAULT_NAME), 0o777)
        with layers_of(made) as layers:
            before = len(os.listdir("/proc/self/fd"))
            with pytest.raises(Refused, match="mode 0777"):
                open_scratch(layers.root, DEFAULT_NAME)
            assert len(os.listdir("/proc/self/fd")) == before


class TestEmpty:
    def test_what_an_interrupted_run_left(self, made: MountedOverlay) -> None:
        ensure(made)
        inside = made.at(DEFAULT_NAME)
        os.link(made.at("lib/a"), inside + b"/link-12-3")
        os.mkdir(inside + b"/ghost-12-4")
        os.mkdir(inside + b"/ghost-12-4/sub")
        with open(inside + b"/ghost-12-4/sub/file \xff\n", "w"):
            pass
        assert empty(made) == 2
        assert os.listdir(made.in_upper(DEFAULT_NAME)) == []
        with open(made.at("lib/a"), "rb") as file:
            assert file.read() == b"1"

    def test_the_next_start_empties_it(self, made: MountedOverlay) -> None:
        ensure(made)
        os.link(made.at("lib/a"), made.at(DEFAULT_NAME) + b"/link-12-3")
        ensure(made)
        assert os.listdir(made.at(DEFAULT_NAME)) == []

    def test_symlinks_are_removed_and_not_followed(self, made: MountedOverlay) -> None:
        ensure(made)
        inside = made.at(DEFAULT_NAME)
        os.mkdir(inside + b"/ghost-1-1")
        os.symlink(made.at("lib"), inside + b"/ghost-1-1/out")
        os.symlink(made.at("lib"), inside + b"/link-1-2")
        assert empty(made) == 2
        assert sorted(os.listdir(made.at("lib"))) == [b"a", b"b"]

    def test_what_is_not_ours_stays_and_is_reported(self, made: MountedOverlay) -> None:
        ensure(made)
        inside = made.at(DEFAULT_NAME)
        os.mkdir(inside + b"/link-1-2")
        with open(inside + b"/mine", "w"):
            pass
        for act in (empty, remove, ensure):
            with pytest.raises(Refused, match="mine, which is not ours"):
                act(made)
        assert sorted(os.listdir(inside)) == [b"link-1-2", b"mine"]

    def test_a_metacopy_whose_lower_file_is_gone(self, made: MountedOverlay) -> None:
        ensure(made)
        os.link(made.at("lib/a"), made.at(DEFAULT_NAME) + b"/link-1-1")
        os.unlink(made.on_server("lib/a"))
        made.remount()
        with pytest.raises(OSError, match="Input/output error"):
            os.lstat(made.at(DEFAULT_NAME) + b"/link-1-1")
        assert empty(made) == 1
        assert os.listdir(made.in_upper(DEFAULT_NAME)) == []

    def ghost(self, made: MountedOverlay) -> bytes:
        """A release that was shadowed, then deleted on the server, then moved here."""
        ensure(made)
        for name in ("a", "b"):
            os.link(made.at("lib/" + name), made.at(DEFAULT_NAME) + b"/link-1-1")
            os.unlink(made.at(DEFAULT_NAME) + b"/link-1-1")
        os.rename(made.on_server("lib"), made.on_server("lib.away"))
        made.remount()
        os.rename(made.at("lib"), made.at(DEFAULT_NAME) + b"/ghost-1-1")
        return made.in_upper(DEFAULT_NAME) + b"/ghost-1-1"

    def test_a_ghost_of_broken_metacopies(self, made: MountedOverlay) -> None:
        assert sorted(os.listdir(self.ghost(made))) == [b"a", b"b"]
        assert empty(made) == 1
        assert os.listdir(made.in_upper(DEFAULT_NAME)) == []
        assert remove(made)

    def test_a_ghost_behind_the_overlays_back(self, made: MountedOverlay) -> None:
        self.ghost(made)
        with layers_of(made) as layers:
            assert empty_in_upper(layers.upper, DEFAULT_NAME) == 1
        made.cool()
        assert os.listdir(made.at(DEFAULT_NAME)) == []

    def test_a_ghost_that_came_back_on_the_server(self, made: MountedOverlay) -> None:
        self.ghost(made)
        os.rename(made.on_server("lib.away"), made.on_server("lib"))
        with open(made.on_server("lib/more"), "w"):
            pass
        made.remount()
        assert empty(made) == 1
        assert os.listdir(made.in_upper(DEFAULT_NAME)) == []
        assert sorted(os.listdir(made.on_server("lib"))) == [b"a", b"b", b"more"]

    def test_what_is_not_a_scratch_directory_is_not_emptied_in_upper(self, made: MountedOverlay) -> None:
        os.mkdir(made.in_upper(DEFAULT_NAME), 0o755)
        os.mkdir(made.in_upper(DEFAULT_NAME) + b"/link-1-1")
        with layers_of(made) as layers, pytest.raises(Refused):
            empty_in_upper(layers.upper, DEFAULT_NAME)
        assert os.listdir(made.in_upper(DEFAULT_NAME)) == [b"link-1-1"]

    def test_there_is_nothing_to_empty(self, made: MountedOverlay) -> None:
        assert empty(made) == 0


@pytest.mark.parametrize("upper_fs", ["ext4", "xfs", "btrfs", "tmpfs"])
def test_on_every_upper_file_system(make_overlay: MakeOverlay, upper_fs: str) -> None:
    made = make_overlay({"lib": {"a": b"1"}}, upper_fs=upper_fs)
    os.utime(made.mountpoint, ns=(OLD + 1, OLD))
    ensure(made)
    os.link(made.at("lib/a"), made.at(DEFAULT_NAME) + b"/link-1-1")
    assert empty(made) == 1
    assert remove(made)
    assert os.stat(made.mountpoint).st_mtime_ns == OLD
