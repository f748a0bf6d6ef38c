"""What keeps a whole mount from promoting: it is seen, what is complete stays true, and by hand it goes on."""

import os
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import pytest

from promoterd.errors import Refused
from support.daemons import RunningDaemon, mount_policy
from support.overlays import MountedOverlay
from support.promotions import assert_marks_are_sound
from support.trees import files

MakeOverlay = Callable[..., MountedOverlay]
MakeDaemon = Callable[..., RunningDaemon]
TREE = {"a": files(20), "b": files(20), "c": files(20)}
ALWAYS = [{"path": name, "promote": "always"} for name in ("a", "b", "c")]


def closed_now() -> str:
    """A window that opens the day after tomorrow."""
    return f"{(datetime.now().astimezone() + timedelta(days=2)):%a} 10:00-11:00"


def held(daemon: RunningDaemon) -> str | None:
    found: dict[str, Any] | None = daemon.status().get("held")
    return None if found is None else found["reason"]


@pytest.mark.parametrize(
    ("limits", "reason", "complete"),
    [
        ({"max_promoted_entries": 40}, "entries", 2),
        ({"max_inodes": 63 - 21}, "inodes", 2),
        ({"max_inodes": 0}, "inodes", 0),
        ({"request_budget": {"requests": 60, "window": "1h"}, "concurrency": 1}, "budget", 1),
    ],
)
def test_limits_stop_promotion_and_it_shows(
    make_overlay: MakeOverlay, make_daemon: MakeDaemon, limits: dict[str, Any], reason: str, complete: int
) -> None:
    mounted = make_overlay(TREE)
    daemon = make_daemon(mount_policy(mounted, ALWAYS, limits=limits)).start()
    event = daemon.wait_event("promotion_held")
    assert held(daemon) == reason
    assert daemon.metric("promoterd_promotion_held") == 1
    assert daemon.metric("promoterd_promotion_held", reason=reason) == 1
    daemon.wait_for(lambda: daemon.metric("promoterd_backlog_directories") == 3 - complete)
    assert len(assert_marks_are_sound(mounted)) == complete
    waiting = next(name for name in ("a", "b", "c") if name.encode() not in assert_marks_are_sound(mounted))
    assert daemon.explain(mounted, waiting.encode())["blocked_by"] == event["reason"]
    assert f"limits.{next(iter(limits))}" in event["reason"]


def test_it_goes_on_when_there_is_room_again(make_overlay: MakeOverlay, make_daemon: MakeDaemon) -> None:
    mounted = make_overlay(TREE)
    rules = [{**rule, "writers": "none"} for rule in ALWAYS]
    daemon = make_daemon(mount_policy(mounted, rules, limits={"max_promoted_entries": 45})).start()
    daemon.wait_for(lambda: len(assert_marks_are_sound(mounted)) == 2)
    (late,) = {b"a", b"b", b"c"} - set(assert_marks_are_sound(mounted))
    daemon.wait_for(lambda: "limits.max_promoted_entries = 45" in (daemon.reason(late) or ""))
    assert held(daemon) is None, "a smaller directory would do"
    daemon.policy["mounts"][0]["limits"]["max_promoted_entries"] = "unlimited"
    daemon.restart()
    daemon.ask("promote", mounted.at(late))
    assert len(assert_marks_are_sound(mounted)) == 3


def test_nothing_begins_outside_the_window_but_by_hand_and_rechecks(
    make_overlay: MakeOverlay, make_daemon: MakeDaemon
) -> None:
    mounted = make_overlay(TREE)
    daemon = make_daemon(mount_policy(mounted, ALWAYS, maintenance=[closed_now()])).start()
    daemon.wait_event("promotion_held")
    daemon.wait_for(lambda: daemon.metric("promoterd_backlog_directories") == 3)
    assert held(daemon) == "maintenance"
    assert daemon.status()["held"]["until"] > time.time()
    assert "it waits for the maintenance window, from " in daemon.explain(mounted, b"a")["blocked_by"]
    assert assert_marks_are_sound(mounted) == []
    assert daemon.ask("promote", mounted.at("a"))["promotions"][0]["outcome"] == "marked"
    daemon.wait_state("active", b"a")
    with open(mounted.on_server("a/new"), "wb"):
        pass
    daemon.wait_event("stale", path="/a")
    assert set(daemon.states()) == {"/a"}, "nothing else was promoted meanwhile"


def test_a_window_that_is_open_holds_nothing(make_overlay: MakeOverlay, make_daemon: MakeDaemon) -> None:
    mounted = make_overlay(TREE)
    daemon = make_daemon(mount_policy(mounted, ALWAYS, maintenance=[closed_now(), "00:00-24:00"])).start()
    daemon.wait_state("active", b"a", b"b", b"c")
    assert held(daemon) is None
    assert not daemon.find("promotion_held")


def test_by_hand_neither_budget_nor_hours_hold_but_room_does(
    make_overlay: MakeOverlay, make_daemon: MakeDaemon
) -> None:
    mounted = make_overlay(TREE)
    limits = {"request_budget": {"requests": 1, "window": "1h"}, "max_promoted_entries": 40}
    rules = [{"path": "*"}]
    daemon = make_daemon(mount_policy(mounted, rules, limits=limits, maintenance=[closed_now()])).start()
    for name in ("a", "b"):
        assert daemon.ask("promote", mounted.at(name))["promotions"][0]["outcome"] == "marked"
    with pytest.raises(Refused, match=r"limits\.max_promoted_entries = 40"):
        daemon.ask("promote", mounted.at("c"))
    daemon.wait_for(lambda: daemon.metric("promoterd_requests_total") > 200)


def test_what_a_budget_interrupts_goes_on_when_there_is_more(
    make_overlay: MakeOverlay, make_daemon: MakeDaemon
) -> None:
    mounted = make_overlay({"big": files(60)})
    rules = [{"path": "big", "promote": "always"}]
    limits = {"request_budget": {"requests": 150, "window": "6s"}, "entries_per_second": 50}
    daemon = make_daemon(mount_policy(mounted, rules, limits=limits)).start()
    daemon.wait_state("shadowing", b"big")
    daemon.wait_for(lambda: daemon.status().get("budget_left") == 0)
    assert len(os.listdir(mounted.in_upper("big"))) < 60
    daemon.wait_state("active", b"big", patience=60)
