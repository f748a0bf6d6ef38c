"""R12, R15, R16: one writer; a trip wire; mounts come, go, are replaced and hang, and others never notice."""

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from promoterd.errors import AlreadyLocked, PromoterdError
from promoterd.overlay import syscalls
from support.daemons import SLACK, RunningDaemon, mount_policy, sleeping_process, use, wait_for
from support.overlays import MountedOverlay, unmount, unmounted
from support.promotions import SCRATCH, assert_marks_are_sound, view_of
from support.soundness import REDIRECT
from support.trees import files

MakeOverlay = Callable[..., MountedOverlay]
MakeDaemon = Callable[..., RunningDaemon]
TREE = {"lib": files(3), "bin": files(3)}
ALWAYS = [{"path": "lib", "promote": "always"}, {"path": "**"}]


class TestOneWriter:
    def test_a_second_daemon_is_refused_and_told_of_the_first(
        self, make_overlay: MakeOverlay, make_daemon: MakeDaemon
    ) -> None:
        mounted, other = make_overlay(TREE), make_overlay(TREE)
        first = make_daemon(mount_policy(mounted, ALWAYS)).start()
        first.wait_state("active", b"lib")
        second = make_daemon(mount_policy(mounted, ALWAYS), mount_policy(other, ALWAYS)).launch()
        reason = second.wait_phase("unfit", os.fsdecode(mounted.mountpoint))["reason"]
        assert f"is being changed by another process: pid {first.pid} (" in reason
        second.wait_state("active", b"lib")  # on the mount that it may work on
        assert first.status()["phase"] == "working"
        assert SCRATCH in os.listdir(mounted.upper), "the first one's scratch directory is its own"
        first.stop()
        second.wait_phase("working", os.fsdecode(mounted.mountpoint))

    def test_a_command_without_the_daemon_is_refused_too(
        self, make_overlay: MakeOverlay, make_daemon: MakeDaemon
    ) -> None:
        mounted = make_overlay(TREE)
        daemon = make_daemon(mount_policy(mounted)).start()
        stranger = make_daemon(mount_policy(mounted))
        stranger.write_policy()
        command = [sys.executable, "-m", "promoterd", "promote", "--config", stranger.policy_file]
        done = subprocess.run([*command, mounted.at("lib")], capture_output=True, text=True, check=False)
        assert done.returncode == AlreadyLocked.exit_code
        assert f"pid {daemon.pid} (" in done.stderr
        assert daemon.states() == {}
        assert assert_marks_are_sound(mounted) == []

    def test_a_second_daemon_on_one_control_socket_ends(
        self, make_overlay: MakeOverlay, make_daemon: MakeDaemon
    ) -> None:
        mounted = make_overlay(TREE)
        daemon = make_daemon(mount_policy(mounted)).start()
        command = [sys.executable, "-m", "promoterd", "run", "--config", daemon.policy_file]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == AlreadyLocked.exit_code
        assert "Traceback" not in done.stderr
        assert daemon.status()["phase"] == "working"


class TestTripWire:
    def test_what_reads_back_wrongly_stops_all_marking(
        self, make_overlay: MakeOverlay, make_daemon: MakeDaemon
    ) -> None:
        mounted = make_overlay(TREE)
        daemon = make_daemon(mount_policy(mounted, activation_interval="2s")).start(watching=2)
        daemon.ask("promote", mounted.at("lib"))
        daemon.wait_state("active", b"lib")
        daemon.ask("promote", mounted.at("bin"))
        assert daemon.states()["/bin"] == "complete"
        broken = mounted.in_upper("bin/f0000")
        redirect = os.getxattr(broken, REDIRECT)
        os.setxattr(broken, REDIRECT, b"/no/such/file")
        tripped = daemon.wait_event("trip_wire")
        assert tripped["reason"].startswith("/bin does not read back as it should: ")
        assert "Input/output error" in tripped["reason"]
        assert daemon.metric("promoterd_mount_trip_wire") == 1

        daemon.restart(watching=2)
        assert daemon.status()["paused"] == f"trip wire: {tripped['reason']}"
        assert daemon.metric("promoterd_mount_trip_wire") == 1, "an alarm does not end by a restart"
        os.setxattr(broken, REDIRECT, redirect)
        mounted.cool()
        daemon.ask("resume")
        assert daemon.status()["paused"] is None
        assert daemon.metric("promoterd_mount_trip_wire") == 0
        with open(mounted.at("bin/f0000"), "rb") as file:
            assert file.read() == b"content of 0000\n"

    def test_a_server_that_fails_for_a_moment_trips_nothing(
        self, make_overlay: MakeOverlay, make_daemon: MakeDaemon
    ) -> None:
        mounted = make_overlay({"lib": files(600), "bin": files(2)}, counting=True)
        section = mount_policy(mounted, limits={"entries_per_second": 600})
        daemon = make_daemon(section).start(watching=2)
        use(mounted, "lib", times=3)
        daemon.wait_state("shadowing", b"lib")
        mounted.counted.fail(errno.EIO)
        daemon.wait_state("failed", b"lib")
        with pytest.raises(PromoterdError, match=r"Input/output error|Stale file handle") as told:
            daemon.ask("promote", mounted.at("lib"))
        assert told.value.exit_code == PromoterdError.exit_code
        mounted.counted.fail(0)
        assert daemon.status()["paused"] is None
        daemon.ask("promote", mounted.at("lib"))
        daemon.wait_state("active", b"lib")
        mounted.counted.fail(errno.EIO)
        daemon.wait_event("recheck_failed", path="/lib")
        mounted.counted.fail(0)
        assert daemon.status()["paused"] is None
        assert daemon.states()["/lib"] == "active"


class TestComingAndGoing:
    def test_an_idle_mount_can_be_unmounted_at_once(self, make_overlay: MakeOverlay, make_daemon: MakeDaemon) -> None:
        mounted = make_overlay(TREE)
        daemon = make_daemon(mount_policy(mounted, ALWAYS)).start(watching=2)
        daemon.wait_state("active", b"lib")
        time.sleep(0.6)  # rechecks go on, twice a second
        wait_for(lambda: unmounted(mounted), patience=SLACK)
        daemon.wait_phase("absent")
        assert daemon.status() == {"mountpoint": os.fsdecode(mounted.mountpoint), "phase": "absent", "reason": None}
        assert daemon.metric("promoterd_mount_working") == 0
        assert os.listdir(mounted.mountpoint) == [], "nothing was made below the mount point"
        mounted.mount()
        daemon.wait_phase("working")
        daemon.wait_for(lambda: daemon.status()["states"]["active"] == 1)
        assert len(daemon.find("promoted")) == 1, "it is known from before"
        daemon.wait_armed(2)
        use(mounted, "bin", times=3)
        daemon.wait_state("active", b"bin")

    def test_a_mount_that_is_not_there_yet(self, make_overlay: MakeOverlay, make_daemon: MakeDaemon) -> None:
        mounted = make_overlay(TREE, mount=False)
        daemon = make_daemon(mount_policy(mounted, ALWAYS)).launch()
        daemon.wait_event("ready")
        daemon.wait_phase("absent")
        mounted.mount()
        daemon.wait_state("active", b"lib")

    def test_another_overlay_in_its_place(self, make_overlay: MakeOverlay, make_daemon: MakeDaemon) -> None:
        mounted, other = make_overlay(TREE), make_overlay({"lib": files(7)}, mount=False)
        daemon = make_daemon(mount_policy(mounted, ALWAYS)).start()
        daemon.wait_state("active", b"lib")
        daemon.wait_for(lambda: unmounted(mounted))
        data = b"lowerdir=%s,upperdir=%s,workdir=%s,%s" % (
            *(other.layers[0], other.upper, other.work),
            other.options.encode(),
        )
        syscalls.mount(b"overlay", mounted.mountpoint, b"overlay", 0, data)
        daemon.wait_for(lambda: len(daemon.find("promoted")) == 2)
        assert daemon.find("promoted")[1]["entries"] == 7
        daemon.wait_state("active", b"lib")
        assert daemon.status()["states"]["active"] == 1
        assert assert_marks_are_sound(other) == [b"lib"]
        daemon.stop()
        unmount(mounted.mountpoint)

    def test_something_else_mounted_over_it(self, make_overlay: MakeOverlay, make_daemon: MakeDaemon) -> None:
        mounted = make_overlay(TREE)
        daemon = make_daemon(mount_policy(mounted, ALWAYS)).start()
        daemon.wait_state("active", b"lib")
        syscalls.mount(b"tmpfs", mounted.mountpoint, b"tmpfs", 0, b"size=1m")
        daemon.wait_phase("absent")
        time.sleep(1.5)
        assert os.listdir(mounted.mountpoint) == []
        assert len(daemon.find("mount", phase="absent")) == 1, "one thing happened, one event"
        syscalls.umount(mounted.mountpoint)
        daemon.wait_phase("working")

    def test_a_lazy_unmount_under_a_process(self, make_overlay: MakeOverlay, make_daemon: MakeDaemon) -> None:
        mounted = make_overlay(TREE)
        daemon = make_daemon(mount_policy(mounted, ALWAYS)).start()
        daemon.wait_state("active", b"lib")
        with sleeping_process("-c", "print(flush=True); input()", cwd=mounted.at("bin")):
            mounted.umount(lazy=True)
            daemon.wait_phase("absent")

    def test_an_unfit_mount_says_why_and_others_go_on(self, make_overlay: MakeOverlay, make_daemon: MakeDaemon) -> None:
        unfit, fit = make_overlay(TREE, options="metacopy=off,redirect_dir=off,xino=off"), make_overlay(TREE)
        daemon = make_daemon(mount_policy(unfit, ALWAYS), mount_policy(fit, ALWAYS)).launch()
        reason = daemon.wait_phase("unfit", os.fsdecode(unfit.mountpoint))["reason"]
        assert "is not fit for the backend opaque" in reason
        assert "metacopy" in reason
        daemon.wait_state("active", b"lib")
        assert daemon.status(0)["phase"] == "unfit"
        assert daemon.status(0)["reason"] == reason
        with pytest.raises(PromoterdError, match="is not in work: unfit"):
            daemon.ask("promote", unfit.at("lib"))
        assert os.listdir(unfit.upper) == []
        # mounted as it should be, it is taken into work at once
        wait_for(lambda: unmounted(unfit), patience=SLACK)
        unfit.options = fit.options
        unfit.mount()
        daemon.wait_phase("working", os.fsdecode(unfit.mountpoint))


@contextmanager
def frozen(mounted: MountedOverlay) -> Iterator[None]:
    """Its server does not answer. As with NFS, who waits for it can be killed."""
    pid = mounted.counted.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


class TestHanging:
    def test_one_mount_hangs_and_the_other_goes_on(self, make_overlay: MakeOverlay, make_daemon: MakeDaemon) -> None:
        hanging, well = make_overlay(TREE, counting=True), make_overlay(TREE)
        limits = {"stuck_after": "0.5s"}
        daemon = make_daemon(mount_policy(hanging, limits=limits), mount_policy(well)).start(watching=2)
        daemon.ask("promote", hanging.at("lib"))
        daemon.wait_state("active", b"lib")
        with frozen(hanging):
            stuck = daemon.wait_event("stuck")
            assert (stuck["mount"], stuck["reason"]) == (
                os.fsdecode(hanging.mountpoint),
                "the server does not answer",
            )
            at = {"mount": os.fsdecode(hanging.mountpoint)}
            assert daemon.metric("promoterd_mount_stuck", **at) == 1
            assert daemon.metric("promoterd_mount_stuck_calls", **at) >= 1
            assert daemon.metric("promoterd_mount_stuck", mount=os.fsdecode(well.mountpoint)) == 0
            assert daemon.status(0)["stuck"][0]["seconds"] >= 0.5
            daemon.ask("promote", well.at("bin"))
            daemon.wait_state("active", b"bin")
            assert len(daemon.find("stuck")) == 1
            daemon.stop()

    def test_it_recovers_with_the_server(self, make_overlay: MakeOverlay, make_daemon: MakeDaemon) -> None:
        mounted = make_overlay(TREE, counting=True)
        view = view_of(mounted)
        daemon = make_daemon(mount_policy(mounted, limits={"stuck_after": "0.3s"})).start(watching=2)
        with frozen(mounted), ThreadPoolExecutor(1) as asking:
            promoting = asking.submit(daemon.ask, "promote", mounted.at("lib"))
            daemon.wait_event("stuck")
            assert not promoting.done()
            os.kill(mounted.counted.pid or 0, signal.SIGCONT)
            assert promoting.result(10)["promotions"][0]["outcome"] == "marked"
        daemon.wait_state("active", b"lib")
        daemon.wait_for(lambda: daemon.metric("promoterd_mount_stuck") == 0)
        assert view == view_of(mounted)

    def test_one_that_hangs_at_the_start(self, make_overlay: MakeOverlay, make_daemon: MakeDaemon) -> None:
        hanging, well = make_overlay(TREE, counting=True), make_overlay(TREE)
        with frozen(hanging):
            section = mount_policy(hanging, ALWAYS, limits={"stuck_after": "0.5s"})
            daemon = make_daemon(section, mount_policy(well, ALWAYS)).launch()
            daemon.wait_state("active", b"lib")
            daemon.wait_for(lambda: "does not answer" in (daemon.status(0)["reason"] or ""))
        daemon.ask("reload")
        daemon.wait_phase("working", os.fsdecode(hanging.mountpoint))
        daemon.wait_for(lambda: daemon.status(0)["states"]["active"] == 1)

    def test_the_end_while_one_hangs_at_the_start(self, make_overlay: MakeOverlay, make_daemon: MakeDaemon) -> None:
        hanging = make_overlay(TREE, counting=True)
        with frozen(hanging):
            daemon = make_daemon(mount_policy(hanging, ALWAYS)).launch()
            daemon.wait_phase("opening")
            daemon.stop()
