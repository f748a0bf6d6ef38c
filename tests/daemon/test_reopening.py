"""R5 and R6: what is reopened with what, when that is done at once, and what is said where it has to wait."""

import os
import time
from collections.abc import Callable
from functools import partial
from threading import Thread

import pytest

from promoterd.errors import Deferred, MountGone, PromoterdError, Refused, TripWire
from promoterd.overlay import syscalls
from support.daemons import SLACK, RunningDaemon, mount_policy, use, wait_for
from support.overlays import MountedOverlay, unmounted
from support.promotions import assert_marks_are_sound, assert_same_view, view_of
from support.trees import files

MakeOverlay = Callable[..., MountedOverlay]
MakeDaemon = Callable[..., RunningDaemon]
TREE = {"app": {"lib": {**files(3), "sub": files(3), "other": files(3)}}}
ALL = (b"app/lib", b"app/lib/other", b"app/lib/sub")


def rules(**keys: object) -> list[dict[str, object]]:
    return [{"path": "app/lib", **keys}, {"path": "app/lib/**", **keys}]


def started(mounted: MountedOverlay, make_daemon: MakeDaemon, **keys: object) -> RunningDaemon:
    daemon = make_daemon(mount_policy(mounted, rules(**keys))).start()
    daemon.ask("promote", mounted.at("app/lib"))
    daemon.wait_state("active", *ALL)
    return daemon


class Asking(Thread):
    """A request of somebody who waits for the answer."""

    def __init__(self, daemon: RunningDaemon, command: str, path: bytes) -> None:
        super().__init__()
        self._ask = partial(daemon.ask, command, path)
        self.error: PromoterdError | None = None

    def run(self) -> None:
        try:
            self._ask()
        except PromoterdError as error:
            self.error = error


def test_writers_any_defers_until_nobody_can_write(make_overlay: MakeOverlay, make_daemon: MakeDaemon) -> None:
    mounted = make_overlay(TREE)
    before = view_of(mounted)
    daemon = started(mounted, make_daemon, writers="any")
    marked = assert_marks_are_sound(mounted)
    with pytest.raises(Deferred) as deferred:
        daemon.ask("reopen", mounted.at("app/lib/sub"))
    reason = (
        "somebody may write in /app/lib meanwhile: its rule does not say `writers: none`, "
        "and the overlay is not mounted read-only"
    )
    assert deferred.value.exit_code == 10
    assert reason in deferred.value.message
    assert daemon.status()["deferred_reopens"] == [{"path": "/app/lib/sub", "reason": reason}]
    daemon.wait_for(lambda: daemon.metric("promoterd_reopens_deferred") == 1)
    assert assert_marks_are_sound(mounted) == marked, "nothing was changed"

    syscalls.mount(b"none", mounted.mountpoint, b"", syscalls.MS_REMOUNT | syscalls.MS_RDONLY)
    daemon.wait_state("cold", b"app/lib", b"app/lib/sub")
    assert daemon.status()["phase"] == "working"
    assert daemon.states()["/app/lib/other"] == "active", "complete parents go with it, siblings do not"
    assert assert_marks_are_sound(mounted) == [b"app/lib/other"]
    assert daemon.status()["deferred_reopens"] == []
    assert_same_view(before, view_of(mounted))
    assert daemon.metric("promoterd_reopens_total", outcome="live") == 1
    for name in ("app/lib/new", "app/lib/sub/new"):
        with open(mounted.on_server(name), "w") as file:
            file.write("new")
        assert os.path.exists(mounted.at(name)), "the server is asked again"


def test_writers_none_is_live_unless_somebody_writes(make_overlay: MakeOverlay, make_daemon: MakeDaemon) -> None:
    mounted = make_overlay(TREE)
    daemon = started(mounted, make_daemon, writers="none")
    os.unlink(mounted.at("app/lib/sub/f0001"))
    with open(mounted.at("app/lib/sub/mine"), "w") as file:
        file.write("mine")
    daemon.policy["mounts"][0]["quiet_period"] = "1s"
    daemon.write_policy()
    daemon.ask("reload")
    daemon.wait_for(lambda: daemon.status().get("phase") == "working")

    def disturb() -> bool:
        with open(mounted.at("app/lib/sub/disturbing"), "w"):
            os.unlink(mounted.at("app/lib/sub/disturbing"))
        return bool(daemon.find("reopening"))

    told: list[str] = []

    def ask() -> None:
        try:
            daemon.ask("reopen", mounted.at("app/lib/sub"))
        except Deferred as error:
            told.append(error.message)

    asking = Thread(target=ask)
    asking.start()
    daemon.wait_for(lambda: disturb() and not asking.is_alive(), poll=0.05)
    asking.join()
    assert "somebody wrote there in the last 1 s" in told[0]
    assert set(assert_marks_are_sound(mounted, deleted=[b"app/lib/sub/f0001"])) == set(ALL)
    view = view_of(mounted)
    # it was noted, and is done at the next request
    assert daemon.ask("reopen", mounted.at("app/lib/sub"))["reopened"] == ["/app/lib", "/app/lib/sub"]
    assert daemon.status()["deferred_reopens"] == []
    assert_same_view(view, view_of(mounted))
    assert not os.path.exists(mounted.at("app/lib/sub/f0001")), "what was deleted stays so"
    mounted.cool()
    assert_same_view(view, view_of(mounted))


def test_what_is_not_complete_cannot_be_reopened(make_overlay: MakeOverlay, make_daemon: MakeDaemon) -> None:
    mounted = make_overlay(TREE)
    daemon = make_daemon(mount_policy(mounted, rules())).start()
    with pytest.raises(Refused, match="it is not complete"):
        daemon.ask("reopen", mounted.at("app/lib"))


def test_pause_stops_and_resume_goes_on(make_overlay: MakeOverlay, make_daemon: MakeDaemon) -> None:
    mounted = make_overlay({"app": {"lib": files(600)}})
    section = mount_policy(mounted, rules(), limits={"entries_per_second": 600})
    daemon = make_daemon(section).start(watching=1)
    use(mounted, "app/lib", times=3)
    daemon.wait_state("shadowing", b"app/lib")
    assert daemon.ask("pause") == {"paused": [os.fsdecode(mounted.mountpoint)]}
    daemon.wait_state("hot", b"app/lib")  # it stops in the middle, between two batches
    assert daemon.status()["paused"] == "paused by hand"
    use(mounted, "app/lib", times=3)
    with pytest.raises(TripWire, match="paused by hand"):
        daemon.ask("promote", mounted.at("app/lib"))
    daemon.restart(watching=1)
    assert daemon.status()["paused"] == "paused by hand"
    assert daemon.metric("promoterd_mount_paused") == 1
    use(mounted, "app/lib", times=3)
    daemon.wait_for(lambda: daemon.heat().get("/app/lib", 0.0) > 1.5)
    assert assert_marks_are_sound(mounted) == []
    daemon.ask("resume")
    assert daemon.metric("promoterd_mount_paused") == 0
    daemon.wait_state("active", b"app/lib")


def test_a_pause_in_the_middle_is_finished_after_resume(make_overlay: MakeOverlay, make_daemon: MakeDaemon) -> None:
    mounted = make_overlay({"app": {"lib": files(600)}})
    section = mount_policy(mounted, rules(), limits={"entries_per_second": 600}, heat={"half_life": "1s"})
    daemon = make_daemon(section).start(watching=1)
    use(mounted, "app/lib", times=3)
    daemon.wait_state("shadowing", b"app/lib")
    daemon.ask("pause", mounted.mountpoint)
    daemon.wait_event("promotion_stopped", path="/app/lib")
    daemon.wait_for(lambda: daemon.heat().get("/app/lib", 0.0) < 1.0)
    daemon.ask("resume", mounted.mountpoint)
    daemon.wait_state("active", b"app/lib")


def test_retire_undoes_everything_and_lasts(make_overlay: MakeOverlay, make_daemon: MakeDaemon) -> None:
    mounted = make_overlay(TREE)
    before = view_of(mounted)
    daemon = started(mounted, make_daemon, writers="none")
    answer = daemon.ask("retire", mounted.mountpoint)
    assert sorted(answer["reopened"]) == ["/app/lib", "/app/lib/other", "/app/lib/sub"]
    assert answer["deferred"] == []
    assert assert_marks_are_sound(mounted) == []
    assert_same_view(before, view_of(mounted))
    daemon.restart(watching=3)
    assert daemon.status()["paused"] == "it is retired"
    use(mounted, "app/lib", "app/lib/sub", times=3)
    daemon.wait_for(lambda: daemon.heat().get("/app/lib/sub", 0.0) > 1.5)
    assert not daemon.find("directory", state="shadowing")
    daemon.ask("resume", mounted.mountpoint)
    daemon.wait_state("active", b"app/lib/sub")


def test_retire_defers_what_is_not_safe_now(make_overlay: MakeOverlay, make_daemon: MakeDaemon) -> None:
    mounted = make_overlay(TREE)
    daemon = started(mounted, make_daemon, writers="any")
    answer = daemon.ask("retire", mounted.mountpoint)
    assert answer["reopened"] == []
    assert [entry["path"] for entry in answer["deferred"]] == ["/app/lib", "/app/lib/other", "/app/lib/sub"]
    assert len(daemon.status()["deferred_reopens"]) == 3
    assert set(assert_marks_are_sound(mounted)) == set(ALL)


class TestInTheQuietPeriod:
    """Nothing is begun yet, and nothing of the mount is held (R16)."""

    def waiting(self, mounted: MountedOverlay, make_daemon: MakeDaemon, command: str) -> tuple[RunningDaemon, Asking]:
        section = mount_policy(mounted, rules(writers="none"), quiet_period="5s", limits={"stuck_after": "0.5s"})
        daemon = make_daemon(section).start()
        daemon.ask("promote", mounted.at("app/lib"))
        daemon.wait_state("active", *ALL)
        path = mounted.mountpoint if command == "retire" else mounted.at("app/lib/sub")
        asking = Asking(daemon, command, path)
        asking.start()
        daemon.wait_event("reopening")
        time.sleep(0.2)
        return daemon, asking

    @pytest.mark.parametrize("command", ["reopen", "retire"])
    def test_it_can_be_unmounted(self, make_overlay: MakeOverlay, make_daemon: MakeDaemon, command: str) -> None:
        mounted = make_overlay(TREE)
        before = view_of(mounted)
        daemon, asking = self.waiting(mounted, make_daemon, command)
        wait_for(lambda: unmounted(mounted), patience=SLACK)
        asking.join(3.0)
        assert not asking.is_alive(), "who asked is told at once"
        assert isinstance(asking.error, MountGone)
        daemon.wait_phase("absent")
        daemon.assert_no_surprise()
        assert set(assert_marks_are_sound(mounted)) == set(ALL), "nothing was changed"
        mounted.mount()
        daemon.wait_phase("working")
        assert not daemon.find("reopening_finished"), "nothing was begun"
        assert not daemon.find("close_abandoned")
        assert_same_view(before, view_of(mounted))

    def test_it_does_not_look_like_a_dead_server(self, make_overlay: MakeOverlay, make_daemon: MakeDaemon) -> None:
        mounted = make_overlay(TREE)
        daemon, asking = self.waiting(mounted, make_daemon, "reopen")
        time.sleep(2.5)
        assert daemon.metric("promoterd_mount_stuck") == 0
        assert not daemon.find("stuck")
        daemon.stop()
        asking.join()
        assert not daemon.find("close_abandoned")
        assert not daemon.find("stuck")
        daemon.start()
        assert not daemon.find("reopening_finished"), "nothing was begun"
        assert set(assert_marks_are_sound(mounted)) == set(ALL)


def test_what_policy_comes_to_forbid_is_reopened(make_overlay: MakeOverlay, make_daemon: MakeDaemon) -> None:
    """I3: a growing directory is never complete, also when it is called so later."""
    mounted = make_overlay(TREE)
    daemon = started(mounted, make_daemon, writers="none")
    daemon.policy["mounts"][0]["rules"].insert(
        0, {"path": "app/lib/sub", "growing": True, "recheck": "0.5s", "writers": "none"}
    )
    daemon.write_policy()
    daemon.ask("reload")
    daemon.wait_for(lambda: daemon.status().get("phase") == "working")
    daemon.wait_state("cold", b"app/lib/sub", b"app/lib")
    assert assert_marks_are_sound(mounted) == [b"app/lib/other"]
