"""The daemon as a service: how it ends, reloads, speaks to systemd, and what its log and metrics may hold."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from support.daemons import RunningDaemon, mount_policy, use
from support.overlays import MountedOverlay
from support.promotions import assert_marks_are_sound, assert_same_view, view_of
from support.trees import File, files, odd_files

MakeOverlay = Callable[..., MountedOverlay]
MakeDaemon = Callable[..., RunningDaemon]
TREE = {"lib": files(3), "bin": files(3)}
ALWAYS = [{"path": "lib", "promote": "always"}, {"path": "**"}]


class TestTheEnd:
    def test_at_any_time_of_a_large_promotion(self, make_overlay: MakeOverlay, make_daemon: MakeDaemon) -> None:
        mounted = make_overlay({"big": {**files(3000), "sub": files(1000)}})
        view = view_of(mounted)
        rules = [{"path": "**", "promote": "always"}]
        daemon = make_daemon(mount_policy(mounted, rules, limits={"entries_per_second": 2000}))
        moments = random.Random(6)
        for _ in range(4):
            daemon.launch()
            daemon.wait_event("directory", state="shadowing")
            time.sleep(moments.uniform(0, 0.4))
            assert not daemon.find("promoted"), "it is in the middle of it"
            daemon.stop()
            assert_marks_are_sound(mounted)
        assert_same_view(view, view_of(mounted))
        daemon.policy["mounts"][0]["limits"]["entries_per_second"] = "unlimited"
        daemon.start()
        daemon.wait_state("active", b"big", b"big/sub")
        daemon.stop()
        assert_same_view(view, view_of(mounted))
        mounted.remount()
        assert_same_view(view, view_of(mounted))

    @pytest.mark.parametrize("after", [0.0, 0.3, 0.5, 0.7])
    def test_while_it_starts(self, make_overlay: MakeOverlay, make_daemon: MakeDaemon, after: float) -> None:
        mounted = make_overlay(TREE)
        daemon = make_daemon(mount_policy(mounted, ALWAYS), environment={}).launch()
        time.sleep(after)
        daemon.signal(signal.SIGTERM)
        code = daemon.running.wait(5)
        assert code in (0, -signal.SIGTERM)  # the latter before it could say what it wants done
        daemon.process = None
        assert not any("exception" in event for event in daemon.events())
        assert b".promoterd" not in os.listdir(mounted.upper)

    def test_interrupt_ends_it_as_well(self, make_overlay: MakeOverlay, make_daemon: MakeDaemon) -> None:
        daemon = make_daemon(mount_policy(make_overlay(TREE))).start()
        daemon.signal(signal.SIGINT)
        assert daemon.running.wait(5) == 0
        daemon.process = None
        assert daemon.events()[-1]["event"] in ("stopping", "mount")
        assert not os.path.exists(daemon.socket)


class TestReloading:
    def test_a_good_policy_takes_effect(self, make_overlay: MakeOverlay, make_daemon: MakeDaemon) -> None:
        mounted, other, third = make_overlay(TREE), make_overlay(TREE), make_overlay(TREE)
        daemon = make_daemon(mount_policy(mounted), mount_policy(other)).start()
        begun = len(daemon.find("mount", mount=os.fsdecode(other.mountpoint)))
        daemon.policy["mounts"] = [mount_policy(mounted, ALWAYS), mount_policy(other), mount_policy(third, ALWAYS)]
        daemon.write_policy()
        daemon.signal(signal.SIGHUP)
        daemon.wait_event("reloaded", mounts=3)
        daemon.wait_for(lambda: daemon.find("promoted", mount=os.fsdecode(mounted.mountpoint)))
        daemon.wait_for(lambda: daemon.find("promoted", mount=os.fsdecode(third.mountpoint)))
        assert len(daemon.find("mount", mount=os.fsdecode(other.mountpoint))) == begun, "it is left in peace"
        assert not daemon.find("mount", phase="unfit"), "the old work gives back its lock before the new one takes it"
        daemon.policy["mounts"] = [mount_policy(other)]
        daemon.write_policy()
        daemon.signal(signal.SIGHUP)
        daemon.wait_event("reloaded", mounts=1)
        daemon.wait_for(lambda: b".promoterd" not in os.listdir(mounted.upper))
        assert [mount["mountpoint"] for mount in daemon.ask("status")["mounts"]] == [os.fsdecode(other.mountpoint)]
        assert daemon.metric("promoterd_policy_last_reload_successful") == 1

    def test_a_bad_policy_changes_nothing(self, make_overlay: MakeOverlay, make_daemon: MakeDaemon) -> None:
        mounted = make_overlay(TREE)
        daemon = make_daemon(mount_policy(mounted)).start(watching=2)
        daemon.policy["mounts"][0]["rules"][0]["promote"] = "alwyas"
        daemon.write_policy()
        daemon.signal(signal.SIGHUP)
        failed = daemon.wait_event("reload_failed")
        assert "alwyas" in failed["reason"]
        assert "always" in failed["reason"]
        assert daemon.policy_file in failed["reason"]
        assert daemon.metric("promoterd_policy_last_reload_successful") == 0
        use(mounted, "lib", times=3)
        daemon.wait_state("active", b"lib")
        assert len(daemon.find("mount", phase="working")) == 1

    def test_what_needs_a_restart_is_said(self, make_overlay: MakeOverlay, make_daemon: MakeDaemon) -> None:
        daemon = make_daemon(mount_policy(make_overlay(TREE))).start()
        daemon.policy["state_dir"] += "-elsewhere"
        daemon.write_policy()
        daemon.signal(signal.SIGHUP)
        daemon.wait_event("reloaded")
        assert [event["key"] for event in daemon.find("needs_restart")] == ["state_dir"]


@pytest.fixture
def systemd(tmp_path: Path) -> Any:
    """What systemd hears (sd_notify(3))."""

    class Systemd:
        def __init__(self) -> None:
            self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            self.socket.bind(str(tmp_path / "notify"))
            self.socket.settimeout(10)
            self.environment = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "1000000"}

        def wait_for(self, wanted: str) -> list[str]:
            """The messages up to the one that says it."""
            heard: list[str] = []
            while not any(wanted in said.splitlines() for said in heard):
                heard.append(self.socket.recv(4096).decode())
            return heard

    found = Systemd()
    yield found
    found.socket.close()


def test_systemd_is_told(make_overlay: MakeOverlay, make_daemon: MakeDaemon, systemd: Any) -> None:
    mounted = make_overlay(TREE)
    daemon = make_daemon(mount_policy(mounted), environment=systemd.environment).launch()
    heard = systemd.wait_for("READY=1")
    assert "STATUS=working on 1 of 1 mounts" in heard[-1]
    assert daemon.wait_phase("working"), "it is ready when the mount is in work"
    beats = time.monotonic()
    systemd.wait_for("WATCHDOG=1")
    systemd.wait_for("WATCHDOG=1")
    assert time.monotonic() - beats < 1.0, "twice as often as is asked for"
    daemon.signal(signal.SIGHUP)
    assert any(part.startswith("MONOTONIC_USEC=") for part in systemd.wait_for("RELOADING=1")[-1].splitlines())
    systemd.wait_for("READY=1")
    daemon.stop()
    systemd.wait_for("STOPPING=1")


def test_a_dead_server_is_no_failure_of_ours(make_overlay: MakeOverlay, make_daemon: MakeDaemon, systemd: Any) -> None:
    """READY comes though a mount is not there; beats come though one hangs."""
    absent, hanging = make_overlay(TREE, mount=False), make_overlay(TREE, counting=True)
    sections = [mount_policy(absent), mount_policy(hanging, ALWAYS)]
    pid = hanging.counted.pid
    assert pid is not None
    daemon = make_daemon(*sections, environment=systemd.environment).launch()
    daemon.wait_state("active", b"lib")
    assert "STATUS=working on 1 of 2 mounts" in systemd.wait_for("READY=1")[-1]
    os.kill(pid, signal.SIGSTOP)
    try:
        time.sleep(1.0)
        for _ in range(6):
            systemd.wait_for("WATCHDOG=1")
        daemon.stop()
    finally:
        os.kill(pid, signal.SIGCONT)


def test_log_and_metrics(make_overlay: MakeOverlay, make_daemon: MakeDaemon) -> None:
    """JSON whatever names hold, one event for each thing that happened, and no path in a metric."""
    odd = b'odd \xff\n"name"'
    names = {name: node for name, node in odd_files().items() if len(name) < 100}
    mounted = make_overlay({odd: {**names, "sub": files(2)}, "linked": {"a": "1"}, "young": files(2)})
    os.link(mounted.on_server("linked/a"), mounted.on_server("linked/b"))
    rules = [{"path": "young", "promote": "always", "min_age": "1h"}, {"path": "**", "promote": "always"}]
    daemon = make_daemon(mount_policy(mounted, rules)).start()
    daemon.wait_state("active", odd, odd + b"/sub")
    daemon.wait_state("refused", b"linked", b"young")
    events = daemon.events()
    for event in events:
        assert {"timestamp", "level", "event", "logger"} <= event.keys()
        assert event["level"] in ("info", "warning", "error")
    told = [(event["event"], event.get("path"), event.get("state"), event.get("phase")) for event in events]
    repeated = {one for one in told if told.count(one) > 1 and one[0] not in ("control_request", "activation")}
    assert not repeated
    assert {event.get("mount") for event in daemon.find("directory")} == {os.fsdecode(mounted.mountpoint)}
    assert "it holds hard-linked files" in (daemon.reason(b"linked") or "")
    assert "younger than min_age" in (daemon.reason(b"young") or "")

    for sample in daemon.samples():
        assert sample.labels.keys() <= {"mount", "state", "outcome", "effect", "kind", "backend", "le", "result",
                                        "reason", "source", "version", "python", "kernel"}  # fmt: skip
        for name, value in sample.labels.items():
            assert name == "mount" or "/" not in value, f"{sample.name} has a path in {name}"
            assert "odd" not in value
    assert daemon.metric("promoterd_build_info") == 1
    assert daemon.metric("promoterd_backend_info", backend="opaque") == 1
    assert daemon.metric("promoterd_promotions_total", outcome="refused") == 2


def test_a_terminal_gets_text(make_overlay: MakeOverlay, make_daemon: MakeDaemon) -> None:
    daemon = make_daemon(mount_policy(make_overlay(TREE)), log={"format": "console", "level": "info"}).launch()
    daemon.wait_for(lambda: [line for line in daemon.lines() if "ready" in line])
    with pytest.raises(json.JSONDecodeError):
        daemon.events()
    daemon.signal(signal.SIGTERM)
    assert daemon.running.wait(5) == 0
    daemon.process = None


@pytest.mark.parametrize(
    ("change", "code", "said"),
    [
        ({"state_dir": "/proc/nowhere/state"}, 12, "/proc/nowhere/state"),
        ({"control": {"socket": "/proc/nowhere/socket"}}, 2, "/proc/nowhere/socket"),
        ({"control": {"socket": "{base}/c", "group": "no-such-group"}}, 3, "no-such-group"),
        ({"metrics": {"listen": "127.0.0.1:1"}}, 2, None),
        ({"mounts": []}, 3, "mounts"),
    ],
)  # fmt: skip
def test_what_keeps_it_from_starting_is_one_message(
    make_overlay: MakeOverlay, make_daemon: MakeDaemon, change: dict[str, Any], code: int, said: str | None
) -> None:
    daemon = make_daemon(mount_policy(make_overlay(TREE)))
    text = json.dumps({**daemon.policy, **change}).replace("{base}", daemon.base)
    daemon.policy = json.loads(text)
    daemon.write_policy()
    with socket.socket() as taken:
        if "metrics" in change:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            daemon.policy["metrics"]["listen"] = said = f"127.0.0.1:{taken.getsockname()[1]}"
            daemon.write_policy()
        command = [sys.executable, "-m", "promoterd", "run", "--config", daemon.policy_file]
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    lines = done.stderr.splitlines()
    assert said is not None
    assert any(said in line for line in lines if line.startswith(("promoterd: ", "  ")))


def test_files_of_others_stay_private(make_overlay: MakeOverlay, make_daemon: MakeDaemon) -> None:
    """What the daemon makes is for root: the socket, the ledger, the scratch directory."""
    mounted = make_overlay({"lib": {"secret": File(b"s", mode=0o600)}})
    daemon = make_daemon(mount_policy(mounted)).start()
    for path in (daemon.socket, daemon.state_dir, f"{daemon.state_dir}/ledger.sqlite"):
        assert os.stat(path).st_uid == 0
        assert os.stat(path).st_mode & 0o022 == 0
    assert os.stat(daemon.socket).st_mode & 0o077 == 0
    assert os.stat(daemon.state_dir).st_mode & 0o077 == 0
