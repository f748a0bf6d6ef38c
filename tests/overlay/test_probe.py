import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from promoterd.overlay import probe, syscalls
from promoterd.overlay.facts import Project, Trial
from promoterd.overlay.mountinfo import read
from promoterd.overlay.mounts import overlay_at
from promoterd.overlay.trial import try_overlay
from promoterd.overlay.whereabouts import find_misplaced
from support.needs import need
from support.overlays import MountedOverlay, unmount

MakeOverlay = Callable[..., MountedOverlay]


class TestTrial:
    @pytest.mark.needs("root", "overlay")
    def test_it_sees_what_this_kernel_does_and_leaves_nothing(self) -> None:
        trial = try_overlay()
        assert trial.error == ""
        assert trial.metacopy
        assert trial.absolute_redirect
        assert trial.opaque_takes_effect
        assert trial.reconfigure in ("fspick", "remount")
        assert not trial.finalizes, "a stock kernel does not mark by itself"
        assert not [entry for entry in read() if entry.source == b"promoterd-probe"]

    @pytest.mark.needs("root", "overlay")
    def test_without_privileges_it_says_so(self) -> None:
        command = ["setpriv", "--reuid=65534", "--clear-groups", sys.executable, "-P", "-m", "promoterd.overlay.trial"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert "EPERM" in done.stdout
        assert done.stderr == ""

    @pytest.mark.needs("root", "overlay")
    def test_a_kernel_without_fspick_remounts(self) -> None:
        trial = self.run_with(
            "def missing(root): raise OSError(errno.ENOSYS, 'Function not implemented')\n"
            "syscalls.reconfigure_superblock = missing\n"
        )
        assert trial.reconfigure == "remount"
        assert trial.opaque_takes_effect

    @pytest.mark.needs("root", "overlay")
    def test_a_reconfigure_that_has_no_effect_is_seen(self) -> None:
        trial = self.run_with("syscalls.reconfigure_superblock = lambda root: None\n")
        assert not trial.opaque_takes_effect

    @pytest.mark.needs("root", "overlay")
    def test_a_kernel_that_marks_by_itself_is_seen(self) -> None:
        trial = self.run_with(
            "def listdir(path, real=os.listdir):\n"
            "    names = real(path)\n"
            "    os.setxattr('upper/d', 'trusted.overlay.opaque', b'z')\n"
            "    return names\n"
            "os.listdir = listdir\n"
        )
        assert trial.finalizes

    @pytest.mark.needs("root", "overlay")
    def test_a_metadata_layer_is_tried_out(self) -> None:
        trial = try_overlay()
        assert trial.data_only_layers, "the kernels that tests run on have them"
        assert trial.lazy_data
        assert trial.layer_answers_misses

    @pytest.mark.needs("root", "overlay")
    def test_a_kernel_without_data_only_layers_is_seen(self) -> None:
        trial = self.run_with(
            "def mount(source, target, fstype, flags=0, data=b'', real=syscalls.mount):\n"
            "    if b'::' in data: raise OSError(errno.EINVAL, 'Invalid argument')\n"
            "    real(source, target, fstype, flags, data)\n"
            "syscalls.mount = mount\n"
        )
        assert trial.opaque_takes_effect
        assert not trial.data_only_layers
        assert not trial.lazy_data

    @pytest.mark.needs("root", "overlay")
    def test_a_kernel_that_takes_data_from_elsewhere_is_seen(self) -> None:
        trial = self.run_with(self.EAGER)
        assert not trial.lazy_data

    @pytest.mark.needs("root", "overlay")
    def test_a_kernel_that_asks_the_layers_below_is_seen(self) -> None:
        trial = self.run_with(
            "def setxattr(path, name, value, real=os.setxattr):\n"
            "    if path != trial.REST + b'/d' or value != b'y': real(path, name, value)\n"
            "os.setxattr = setxattr\n"
        )
        assert trial.data_only_layers
        assert not trial.layer_answers_misses

    EAGER = (
        "def mount(source, target, fstype, flags=0, data=b'', real=syscalls.mount):\n"
        "    if b'::' in data: data = data.replace(b'metacopy=on', b'metacopy=off')\n"
        "    real(source, target, fstype, flags, data)\n"
        "syscalls.mount = mount\n"
    )
    """Metacopies are not followed."""

    def run_with(self, preparation: str) -> Trial:
        """The child process, with another kernel's behaviour put in."""
        code = f"import errno, os\nfrom promoterd.overlay import syscalls, trial\n{preparation}\ntrial.main()"
        return Trial(**json.loads(subprocess.check_output([sys.executable, "-P", "-c", code])))

    def test_a_process_that_fails_is_reported(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sys, "executable", "/bin/false")
        assert try_overlay().error == "the test process failed: exit status 1"
        monkeypatch.setattr(sys, "executable", "/no/such/python")
        assert "No such file" in try_overlay().error


class TestHost:
    def test_it_is_gathered_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        first = probe.host()
        monkeypatch.setattr(probe, "try_overlay", lambda: Trial(error="a second time"))
        assert probe.host() is first

    def test_what_it_says_of_this_process(self) -> None:
        host = probe.host()
        assert host.kernel == os.uname().release
        assert ("CAP_SYS_ADMIN" in host.capabilities) == (os.geteuid() == 0)
        assert host.openat2
        assert host.inotify_watches > 0
        assert host.inotify_instances > 0

    @pytest.mark.needs("root")
    def test_a_user_namespace_is_seen(self) -> None:
        code = "from promoterd.overlay import probe; print(probe.host().initial_user_namespace)"
        run = [sys.executable, "-P", "-c", code]
        assert subprocess.check_output(run) == b"True\n"
        assert subprocess.check_output(["unshare", "--user", "--map-root-user", *run]) == b"False\n"


class TestGather:
    @pytest.mark.parametrize("upper_fs", ["ext4", "xfs", "btrfs", "tmpfs"])
    def test_the_upper_file_system(self, make_overlay: MakeOverlay, upper_fs: str) -> None:
        made = make_overlay({"lib": {"a": b"1"}}, upper_fs=upper_fs)
        facts = probe.gather(overlay_at(made.mountpoint))
        assert facts.upper_fstype == upper_fs
        assert facts.upper_trusted_xattrs is True
        assert facts.one_file_system is False
        assert facts.upper_space is not None
        assert 0 < facts.upper_space.free_bytes <= facts.upper_space.total_bytes
        assert (facts.upper_space.free_inodes is None) == (upper_fs == "btrfs")
        assert not facts.misplaced
        assert not facts.unanswered
        assert not facts.second_users

    def test_one_file_system_for_all_layers(self, make_overlay: MakeOverlay) -> None:
        assert probe.gather(overlay_at(make_overlay({}).mountpoint)).one_file_system is True

    def test_it_changes_nothing(self, make_overlay: MakeOverlay) -> None:
        made = make_overlay({"lib": {"a": b"1"}})

        def state() -> list[tuple[int, int, int]]:
            found = [os.stat(path) for path in (made.upper, made.work, made.mountpoint, made.at("lib"))]
            return [(status.st_mtime_ns, status.st_ctime_ns, status.st_nlink) for status in found]

        before = state(), os.listdir(made.upper)
        probe.gather(overlay_at(made.mountpoint))
        assert (state(), os.listdir(made.upper)) == before

    def test_a_writer_is_named(self, make_overlay: MakeOverlay) -> None:
        made = make_overlay({})
        command = ["flock", "--exclusive", "--no-fork", os.fsdecode(made.upper), "sleep", "60"]
        with subprocess.Popen(command) as holder:
            try:
                # the lock is there a moment before the command that holds it
                _until(lambda: "sleep" in probe.gather(overlay_at(made.mountpoint)).writer.partition("(")[2][:6])
                writer = probe.gather(overlay_at(made.mountpoint)).writer
            finally:
                holder.kill()
        assert writer == f"pid {holder.pid} (sleep 60)"

    def test_a_dead_server_costs_its_patience_and_no_more(self, make_overlay: MakeOverlay) -> None:
        made = make_overlay([{"a": b"1"}, {"b": b"2"}], counting=True)
        overlay = overlay_at(made.mountpoint)
        probe.host()
        server = made.countings[1].pid
        assert server is not None
        os.kill(server, signal.SIGSTOP)
        try:
            started = time.monotonic()
            facts = probe.gather(overlay, patience=0.3)
            assert time.monotonic() - started < 2
        finally:
            os.kill(server, signal.SIGCONT)
        assert facts.unanswered == (made.layers[1],)

    @pytest.mark.needs("root")
    def test_a_layer_that_is_gone(self, make_overlay: MakeOverlay) -> None:
        made = make_overlay({"a": b"1"})
        overlay = overlay_at(made.mountpoint)
        os.rename(made.lowers[0], made.lowers[0] + b".away")
        facts = probe.gather(overlay)
        assert [misplaced.layer for misplaced in facts.misplaced] == [made.layers[0]]
        assert "No such file" in facts.misplaced[0].seen


class TestProject:
    def test_a_directory_with_a_project(self, make_overlay: MakeOverlay) -> None:
        need("chattr")
        made = make_overlay({}, upper_fs="xfs", mount=False)
        assert probe.project_at(made.upper) == Project(0, inherited=False)
        subprocess.run(["chattr", "-p", "7", "+P", made.upper], check=True)
        assert probe.project_at(made.upper) == Project(7, inherited=True)

    def test_file_systems_without_projects(self) -> None:
        assert probe.project_at(b"/proc/sys") == Project()
        assert probe.project_at(b"/no/such/place") == Project()


TREE = {"bin": {"tool": b"1"}, "lib": {"a.so": b"22", "b.so": b"333"}, "README": b"4444"}


class TestMisplaced:
    """Layers whose path shows something else than what the overlay was mounted on."""

    @pytest.fixture
    def made(self, make_overlay: MakeOverlay) -> MountedOverlay:
        return make_overlay([TREE, {"lib": {"c.so": b"5"}, "etc": {"conf": b"6"}}])

    def misplaced(self, made: MountedOverlay) -> list[bytes]:
        return [found.layer for found in find_misplaced(overlay_at(made.mountpoint))]

    def test_all_in_place(self, made: MountedOverlay) -> None:
        assert self.misplaced(made) == []

    def test_in_place_after_all_kinds_of_changes(self, made: MountedOverlay) -> None:
        os.unlink(made.at("README"))
        os.rename(made.at("lib/a.so"), made.at("lib/renamed.so"))
        subprocess.run(["rm", "-r", made.at("etc")], check=True)
        os.mkdir(made.at("etc"))
        os.mkdir(made.at("new"))
        os.mkfifo(made.at("fifo"))
        os.symlink("nowhere", made.at("bin/dangling"))
        assert self.misplaced(made) == []

    def test_in_place_below_opaque_and_whited_out_lowers(self, make_overlay: MakeOverlay) -> None:
        first = make_overlay({"lib": {"a": b"1"}, "etc": {"x": b"2"}, "gone": b"3"})
        subprocess.run(["rm", "-r", first.at("lib"), first.at("gone")], check=True)
        os.mkdir(first.at("lib"))
        os.mkdir(first.at("lib/sub"))
        first.umount()
        second = make_overlay({})
        second.umount()
        second.layers = [first.upper, first.layers[0]]
        second.mount()
        os.utime(second.at("lib/sub"))
        os.utime(second.at("etc"))
        assert self.misplaced(second) == []

    @pytest.mark.parametrize("lower", [0, 1])
    def test_another_file_system_on_a_lower_path(self, made: MountedOverlay, lower: int) -> None:
        syscalls.mount(b"none", made.layers[lower], b"tmpfs")
        try:
            assert self.misplaced(made) == [made.layers[lower]]
        finally:
            unmount(made.layers[lower])

    def test_a_look_alike_on_a_lower_path(self, made: MountedOverlay, tmp_path: Path) -> None:
        """The same names, other files: a newer release of the same tree."""
        (tmp_path / "bin").mkdir()
        (tmp_path / "lib").mkdir()
        (tmp_path / "README").write_text("another")
        syscalls.mount(bytes(tmp_path), made.layers[0], b"", syscalls.MS_BIND)
        try:
            found = find_misplaced(overlay_at(made.mountpoint))
        finally:
            unmount(made.layers[0])
        assert [misplaced.layer for misplaced in found] == [made.layers[0]]
        assert "another type, size or time" in found[0].seen

    def test_a_detached_lower_whose_root_directories_are_all_in_upper(self, make_overlay: MakeOverlay) -> None:
        made = make_overlay({}, mount=False)
        syscalls.mount(b"server", made.layers[0], b"tmpfs")
        os.mkdir(made.layers[0] + b"/lib")
        with open(made.layers[0] + b"/lib/a.so", "wb"):
            pass
        try:
            made.mount()
            os.utime(made.at("lib"))
            assert self.misplaced(made) == []
        finally:
            syscalls.umount(made.layers[0], syscalls.MNT_DETACH)
        assert os.listdir(made.at("lib")) == [b"a.so"]
        (found,) = find_misplaced(overlay_at(made.mountpoint))
        assert found.layer == made.layers[0]
        assert "/lib/a.so" in found.seen

    def test_another_directory_on_the_upper_path(self, made: MountedOverlay) -> None:
        syscalls.mount(b"none", made.upper, b"tmpfs")
        try:
            assert self.misplaced(made) == [made.upper]
        finally:
            unmount(made.upper)


def test_sockets_and_devices_in_a_layer_are_names_like_others(make_overlay: MakeOverlay) -> None:
    made = make_overlay({"d": {}})
    os.mknod(made.on_server("null"), stat.S_IFCHR | 0o600, os.makedev(1, 3))
    assert find_misplaced(overlay_at(made.mountpoint)) == []


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
