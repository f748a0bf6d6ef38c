import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from promoterd.errors import AlreadyLocked
from promoterd.overlay import syscalls
from promoterd.overlay.lock import WriterLock, describe_process, second_users, users_of, writer_of
from promoterd.overlay.mounts import overlay_at
from support.overlays import MountedOverlay, unmount

MakeOverlay = Callable[..., MountedOverlay]

HOLD = """
import sys
from promoterd.overlay.lock import WriterLock
with WriterLock(sys.argv[1].encode()):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def another_writer(upper: str) -> Iterator["subprocess.Popen[bytes]"]:
    """A process that holds the lock as long as the block lasts."""
    command = [sys.executable, "-P", "-c", HOLD, upper]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        try:
            yield process
        finally:
            process.kill()


def test_the_second_writer_is_refused_and_names_the_first(tmp_path: Path) -> None:
    with another_writer(str(tmp_path)) as first:
        lock = WriterLock(bytes(tmp_path))
        with pytest.raises(AlreadyLocked) as caught:
            lock.acquire()
        assert not lock.held
        assert f"pid {first.pid}" in str(caught.value)
        assert "promoterd.overlay.lock" in str(caught.value)
        assert str(tmp_path) in str(caught.value)
        assert "stop the other" in str(caught.value)
        assert writer_of(bytes(tmp_path)).startswith(f"pid {first.pid} ")
    assert writer_of(bytes(tmp_path)) == ""
    with lock:
        assert writer_of(bytes(tmp_path)).startswith(f"pid {os.getpid()} ")
    assert writer_of(bytes(tmp_path)) == ""


def test_the_lock_goes_with_its_process(tmp_path: Path) -> None:
    with another_writer(str(tmp_path)) as first:
        first.kill()
        first.wait()
        with WriterLock(bytes(tmp_path)):
            assert writer_of(bytes(tmp_path)).startswith(f"pid {os.getpid()} ")


def test_one_process_cannot_hold_it_twice(tmp_path: Path) -> None:
    with WriterLock(bytes(tmp_path)), pytest.raises(AlreadyLocked, match=f"pid {os.getpid()} "):
        WriterLock(bytes(tmp_path)).acquire()


def test_taking_and_giving_it_twice_is_harmless(tmp_path: Path) -> None:
    lock = WriterLock(bytes(tmp_path))
    lock.release()
    lock.acquire()
    lock.acquire()
    lock.release()
    lock.release()
    WriterLock(bytes(tmp_path)).acquire()


def test_a_child_process_does_not_inherit_it(tmp_path: Path) -> None:
    with WriterLock(bytes(tmp_path)):
        child = subprocess.Popen(["sleep", "30"])
    try:
        with WriterLock(bytes(tmp_path)):
            pass
    finally:
        child.kill()
        child.wait()


def test_no_descriptor_is_left(tmp_path: Path) -> None:
    before = os.listdir("/proc/self/fd")
    with WriterLock(bytes(tmp_path)), pytest.raises(AlreadyLocked):
        WriterLock(bytes(tmp_path)).acquire()
    writer_of(bytes(tmp_path))
    assert os.listdir("/proc/self/fd") == before


def test_an_upper_that_is_gone(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        WriterLock(bytes(tmp_path / "gone")).acquire()


@pytest.mark.parametrize("upper_fs", ["ext4", "xfs", "btrfs", "tmpfs"])
def test_the_holder_is_found_on_every_file_system(make_overlay: MakeOverlay, upper_fs: str) -> None:
    made = make_overlay({}, upper_fs=upper_fs)
    upper = made.upper
    if upper_fs == "btrfs":  # a subvolume has a device number of its own, which /proc/locks does not show
        made.umount()
        upper = made.base + b"/btrfs/volume"
        subprocess.run(["btrfs", "subvolume", "create", upper], check=True, capture_output=True)
    with another_writer(os.fsdecode(upper)) as first:
        assert writer_of(upper).startswith(f"pid {first.pid} ")


def test_it_does_not_keep_the_overlay_mounted(make_overlay: MakeOverlay) -> None:
    made = make_overlay({})
    with WriterLock(made.upper):
        started = time.monotonic()
        made.umount()
        assert time.monotonic() - started < 1
        made.mount()


def test_a_process_without_a_command_line() -> None:
    with subprocess.Popen(["true"]) as ended:
        os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT)
        assert describe_process(ended.pid) == f"pid {ended.pid}"
    assert describe_process(0) == "a process of another pid namespace"
    assert len(describe_process(os.getpid())) < 200


class TestSecondUsers:
    def test_alone(self, make_overlay: MakeOverlay) -> None:
        made = make_overlay({})
        make_overlay({})
        assert second_users(overlay_at(made.mountpoint)) == []

    @pytest.mark.parametrize("shared", ["upper", "work"])
    def test_another_overlay_here(self, make_overlay: MakeOverlay, tmp_path: Path, shared: str) -> None:
        made = make_overlay({})
        other = bytes(tmp_path)
        for name in (b"/u", b"/w", b"/m"):
            os.mkdir(other + name)
        # a work directory must lie on upper's file system, so only one of the two is shared at a time
        upper = made.upper if shared == "upper" else other + b"/u"
        work = made.work if shared == "work" else other + b"/w"
        data = b"lowerdir=%s,upperdir=%s,workdir=%s" % (made.layers[0], upper, work)
        syscalls.mount(b"second", other + b"/m", b"overlay", 0, data)
        try:
            (user,) = second_users(overlay_at(made.mountpoint))
        finally:
            unmount(other + b"/m")
        assert f"the overlay at {tmp_path}/m" in user
        assert getattr(made, shared).decode() in user
        assert second_users(overlay_at(made.mountpoint)) == []

    def test_through_another_path_to_the_same_directory(self, make_overlay: MakeOverlay, tmp_path: Path) -> None:
        made = make_overlay({})
        for name in ("m", "alias", "w"):
            (tmp_path / name).mkdir()
        os.symlink(made.upper, tmp_path / "link")
        data = b"lowerdir=%s,upperdir=%s/link,workdir=%s/w" % (made.layers[0], bytes(tmp_path), bytes(tmp_path))
        syscalls.mount(b"second", bytes(tmp_path / "m"), b"overlay", 0, data)
        try:
            assert len(second_users(overlay_at(made.mountpoint))) == 1
        finally:
            unmount(bytes(tmp_path / "m"))

    def test_another_overlay_in_another_mount_namespace(self, make_overlay: MakeOverlay, tmp_path: Path) -> None:
        made = make_overlay({})
        options = f"lowerdir={made.layers[0].decode()},upperdir={made.upper.decode()},workdir={made.work.decode()}"
        script = f"mount -t overlay second -o {options} {tmp_path} && echo mounted && exec cat"
        command = ["unshare", "--mount", "--propagation=private", "sh", "-c", script]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
            assert other.stdout is not None
            try:
                assert other.stdout.readline() == b"mounted\n"
                (user,) = second_users(overlay_at(made.mountpoint))
                assert f"the overlay at {tmp_path} in the mount namespace of pid {other.pid} (" in user
            finally:
                other.kill()
        assert second_users(overlay_at(made.mountpoint)) == []

    def test_the_same_overlay_in_another_mount_namespace(self, make_overlay: MakeOverlay) -> None:
        made = make_overlay({})
        with subprocess.Popen(
            ["unshare", "--mount", "--propagation=private", "sh", "-c", "echo there && exec cat"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        ) as other:
            assert other.stdout is not None
            try:
                assert other.stdout.readline() == b"there\n"
                assert second_users(overlay_at(made.mountpoint)) == []
            finally:
                other.kill()


def test_an_overlay_on_a_dead_server_is_not_asked(make_overlay: MakeOverlay) -> None:
    dead = make_overlay({"lib": {"a": b"1"}}, counting=True)
    ours = make_overlay({})
    dead.counted.hang(True)
    try:
        asked = dead.counted.total()
        assert users_of(ours.upper) == [f"the overlay at {ours.mountpoint.decode()}, on {ours.upper.decode()}"]
        assert second_users(overlay_at(ours.mountpoint)) == []
        assert dead.counted.total() == asked
    finally:
        dead.counted.hang(False)
