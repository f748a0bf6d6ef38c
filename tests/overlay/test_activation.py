"""A no-op reconfigure makes a mark effective, unless a process holds the directory; both are seen from outside."""

import errno
import itertools
import mmap
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from promoterd.errors import MountGone
from promoterd.overlay import activation, mounts, syscalls
from promoterd.overlay.activation import mark_in_effect, reconfigure
from promoterd.overlay.pins import Holder, holders
from support.overlays import MountedOverlay
from support.promotions import Bench, assert_same_view
from support.trees import files

MakeOverlay = Callable[..., MountedOverlay]
D = b"d"

# Holds a directory, or a file in it, in one of the ways that there are, until it is told to end.
HOLD = """
import ctypes, os, sys
way, path = sys.argv[1], os.fsencode(sys.argv[2])
if way == "cwd":
    os.chdir(path)
elif way == "cwd in a child":
    os.chdir(path + b"/sub")
elif way == "directory":
    held = os.open(path, os.O_RDONLY)
elif way == "path":
    held = os.open(path, os.O_PATH)
elif way == "listing":
    held = os.scandir(path)
    next(held)
elif way == "file":
    held = open(path + b"/f0001", "rb")
elif way == "mapped":
    libc = ctypes.CDLL(None)
    libc.mmap.restype = ctypes.c_void_p
    descriptor = os.open(path + b"/f0001", os.O_RDONLY)
    assert libc.mmap(None, ctypes.c_size_t(4096), 1, 2, descriptor, ctypes.c_long(0)) != 2**64 - 1
    os.close(descriptor)
elif way == "root":
    os.chroot(path)
print("ready", flush=True)
sys.stdin.read()
"""
WAYS = {
    "cwd": "cwd",
    "cwd in a child": "cwd",
    "directory": "fd",
    "path": "fd",
    "listing": "fd",
    "file": "fd",
    "mapped": "map",
    "root": "root",
}


@contextmanager
def held(path: bytes, way: str) -> Iterator[int]:
    with subprocess.Popen([sys.executable, "-c", HOLD, way, path], stdin=-1, stdout=-1) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == b"ready\n"
            yield process.pid
        finally:
            process.communicate()


@pytest.fixture
def bench(make_overlay: MakeOverlay) -> Bench:
    return Bench(make_overlay({"d": {**files(3), "sub": files(2)}, "e": files(2)}))


_serial = itertools.count()


def asks_lower(mounted: MountedOverlay, path: bytes = D) -> bool:
    """The truth: does a name that the server gets now show up?"""
    name = path + b"/truth%d" % next(_serial)
    os.mkdir(mounted.on_server(name))
    try:
        return os.path.lexists(mounted.at(name))
    finally:
        os.rmdir(mounted.on_server(name))


def in_effect(bench: Bench, path: bytes = D) -> bool | None:
    with bench.layers() as layers:
        return mark_in_effect(layers.root, layers.upper, path)


class TestEffect:
    @pytest.mark.parametrize("upper_fs", ["dir", "ext4", "xfs", "tmpfs", "btrfs"])
    @pytest.mark.parametrize("xino", ["off", "on"])
    def test_the_detector_tells_the_truth(self, make_overlay: MakeOverlay, upper_fs: str, xino: str) -> None:
        """btrfs counts no links of directories: nothing is known there, and nothing is claimed."""
        options = f"metacopy=on,redirect_dir=on,xino={xino}"
        made = Bench(make_overlay({"d": {**files(3), "sub": {}}}, upper_fs=upper_fs, options=options))
        os.stat(made.mounted.at(D))
        made.mark(D)
        assert asks_lower(made.mounted)
        assert in_effect(made) is (None if upper_fs == "btrfs" else False)
        made.activate()
        assert not asks_lower(made.mounted)
        assert in_effect(made) is (None if upper_fs == "btrfs" else True)
        made.remount()
        assert not asks_lower(made.mounted)
        assert in_effect(made) is (None if upper_fs == "btrfs" else True)

    def test_without_a_mark_a_reconfigure_changes_nothing(self, bench: Bench) -> None:
        bench.shadow(bench.plan(D))
        before = bench.view()
        bench.activate()
        assert in_effect(bench) is False
        assert asks_lower(bench.mounted)
        assert_same_view(before, bench.view())

    @pytest.mark.parametrize("way", WAYS)
    def test_a_held_directory_is_merged_until_it_is_released(self, bench: Bench, way: str) -> None:
        before = bench.view()
        with held(bench.mounted.at(D), way) as pid:
            bench.mark(D)
            for _ in range(3):
                bench.activate()
                assert in_effect(bench) is False
            assert asks_lower(bench.mounted)
            assert_same_view(before, bench.view())
            found = [holder for holder in holders(bench.mounted.at(D)) if holder.pid == pid]
            assert [holder.by for holder in found] == [WAYS[way]]
            assert found[0].command.startswith("python")
        assert in_effect(bench) is False, "released, but still cached"
        bench.activate()
        assert in_effect(bench) is True
        assert not asks_lower(bench.mounted)
        assert_same_view(before, bench.view())
        assert holders(bench.mounted.at(D)) == []

    def test_what_is_held_goes_on_working(self, bench: Bench) -> None:
        with open(bench.mounted.at("d/f0001"), "rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
            bench.mark(D)
            bench.activate()
            assert file.read() == mapped[:] == b"content of 0001\n"
            assert sorted(os.listdir(bench.mounted.at(D))) == [b"f0000", b"f0001", b"f0002", b"sub"]
            mapped.close()

    def test_one_reconfigure_is_for_all(self, bench: Bench) -> None:
        for path in (b"d", b"e"):
            bench.mark(path)
        bench.activate()
        assert [in_effect(bench, path) for path in (b"d", b"d/sub", b"e")] == [True, True, True]

    def test_a_held_child_does_not_keep_its_brother(self, bench: Bench) -> None:
        with held(bench.mounted.at("e"), "cwd"):
            bench.mark(b"d")
            bench.mark(b"e")
            bench.activate()
            assert (in_effect(bench, b"d"), in_effect(bench, b"e")) == (True, False)

    def test_our_own_work_does_not_hold_it(self, bench: Bench) -> None:
        before = os.listdir("/proc/self/fd")
        bench.mark(D)
        assert os.listdir("/proc/self/fd") == before
        assert holders(bench.mounted.mountpoint, own_pid=-1) == []
        bench.activate()
        assert in_effect(bench) is True


class TestReconfigure:
    def flags(self, mounted: MountedOverlay) -> str:
        """The mount's own flags, and its file system's with all options."""
        with open("/proc/self/mountinfo") as lines:
            return next(line for line in lines if line.split()[4] == os.fsdecode(mounted.mountpoint))

    @pytest.mark.parametrize("kernel", ["new", "without fspick"])
    @pytest.mark.parametrize(
        "flags", ["nosuid,nodev,noexec,noatime", "relatime,nodiratime", "strictatime", "nosymfollow"]
    )
    def test_no_flag_and_no_option_changes(
        self, bench: Bench, monkeypatch: pytest.MonkeyPatch, kernel: str, flags: str
    ) -> None:
        subprocess.run(["mount", "-o", f"remount,bind,{flags}", bench.mounted.mountpoint], check=True)
        before = self.flags(bench.mounted)
        if kernel != "new":
            forget_fspick(monkeypatch)
        reconfigure(bench.overlay)
        assert self.flags(bench.mounted) == before

    def test_it_takes_effect_without_fspick_too(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        forget_fspick(monkeypatch)
        bench.promote(D)
        assert not asks_lower(bench.mounted)

    def test_other_failures_are_told(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        def denied(_: int) -> None:
            raise PermissionError(errno.EPERM, "fspick")

        monkeypatch.setattr(syscalls, "reconfigure_superblock", denied)
        with pytest.raises(PermissionError):
            reconfigure(bench.overlay)

    def test_a_mount_that_is_gone(self, bench: Bench) -> None:
        bench.mounted.umount()
        with pytest.raises(MountGone):
            reconfigure(bench.overlay)
        bench.mounted.mount()

    @pytest.mark.needs("fuse")
    def test_it_asks_no_lower_layer_and_keeps_their_caches(self, make_overlay: MakeOverlay) -> None:
        mounted = make_overlay({"d": files(5)}, counting=True, timeouts=3600.0)
        overlay = mounts.overlay_at(mounted.mountpoint)
        for name in os.listdir(mounted.at(D)):
            os.stat(mounted.at(D + b"/" + name))
        mounted.counted.reset()
        reconfigure(overlay)
        for name in os.listdir(mounted.layers[0] + b"/d"):
            os.stat(mounted.layers[0] + b"/d/" + name)
        counts = mounted.counted.counts()
        assert (counts["LOOKUP"], counts["GETATTR"]) == (0, 0)


def forget_fspick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel before 5.2."""

    def missing(_: int) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(activation.syscalls, "reconfigure_superblock", missing)  # type: ignore[attr-defined]


class TestHolders:
    def test_nobody(self, bench: Bench) -> None:
        assert holders(bench.mounted.at(D)) == []

    def test_all_ways_of_one_process_at_once(self, bench: Bench) -> None:
        code = f"import os, sys; f = open({os.fsdecode(bench.mounted.at('d/f0001'))!r}); print(1, flush=True); input()"
        with subprocess.Popen([sys.executable, "-c", code], cwd=bench.mounted.at(D), stdin=-1, stdout=-1) as process:
            assert process.stdout is not None
            process.stdout.readline()
            assert holders(bench.mounted.at(D)) == [Holder(process.pid, "python", "cwd+fd")]
            process.communicate(b"\n")

    def test_a_directory_whose_name_begins_alike_is_another(self, bench: Bench) -> None:
        os.mkdir(bench.mounted.at("dd"))
        with held(bench.mounted.at("dd"), "cwd"):
            assert holders(bench.mounted.at(D)) == []
            assert len(holders(bench.mounted.mountpoint)) == 1

    @pytest.mark.parametrize("name", [b"new\nline", b"with space", b"\xff\xfe", b"x (deleted)", b"back\\012slash"])
    @pytest.mark.parametrize("way", ["cwd", "mapped"])
    def test_odd_names(self, make_overlay: MakeOverlay, name: bytes, way: str) -> None:
        mounted = make_overlay({name: files(2)})
        with held(mounted.at(name), way) as pid:
            assert [(holder.pid, holder.by) for holder in holders(mounted.at(name))] == [
                (pid, {"cwd": "cwd", "mapped": "map"}[way])
            ]

    def test_what_was_deleted_while_it_was_held(self, bench: Bench) -> None:
        with held(bench.mounted.at("e"), "mapped") as pid:
            os.unlink(bench.mounted.at("e/f0001"))
            assert [holder.pid for holder in holders(bench.mounted.at("e"))] == [pid]

    def test_the_asking_process_is_left_out(self, bench: Bench) -> None:
        descriptor = os.open(bench.mounted.at(D), os.O_PATH)
        try:
            assert holders(bench.mounted.at(D)) == []
            assert [holder.pid for holder in holders(bench.mounted.at(D), own_pid=-1)] == [os.getpid()]
        finally:
            os.close(descriptor)

    def test_processes_that_end_meanwhile(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        listdir = os.listdir
        monkeypatch.setattr(
            os, "listdir", lambda path: [*listdir(path), "9999999"] if path == "/proc" else listdir(path)
        )
        with held(bench.mounted.at(D), "cwd") as pid:
            assert [holder.pid for holder in holders(bench.mounted.at(D))] == [pid]
