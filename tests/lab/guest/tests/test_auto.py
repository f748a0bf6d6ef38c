"""`heat: source: auto` over real NFS: lookups from the client's tracepoints, opens from whatever costs nothing."""

import os
from collections.abc import Callable

import pytest

from lab.guest.lookups import miss
from lab.guest.stack import Nfs
from lab.guest.tracing import mount_tracefs
from support.daemons import RunningDaemon, mount_policy, use
from support.overlays import MountedOverlay
from support.promotions import assert_marks_are_sound
from support.trees import files

MakeOverlay = Callable[..., MountedOverlay]
MakeDaemon = Callable[..., RunningDaemon]


@pytest.fixture(scope="module", autouse=True)
def _tracefs() -> None:
    mount_tracefs()


@pytest.mark.parametrize(
    ("version", "opens"), [("4.2", "inotify"), pytest.param("3", "fanotify", marks=pytest.mark.thorough)]
)
def test_what_is_searched_in_vain_and_what_is_opened_are_found(
    make_overlay: MakeOverlay, make_daemon: MakeDaemon, version: str, opens: str
) -> None:
    """No single source hears both: nobody opens anything in one directory, and the client has the other's names."""
    tree = {"searched": files(30), "opened": files(3), "cold": files(3)}
    mounted = make_overlay(tree, Nfs(version, "actimeo=600"))
    rules = [{"path": "searched"}, {"path": "opened"}, {"path": "cold"}]
    daemon = make_daemon(mount_policy(mounted, rules, heat={"source": "auto", "threshold": 12})).start()
    assert [part["name"] for part in daemon.status()["heat_sources"]] == ["nfs-trace", opens]
    assert list(daemon.status()["heat_sources_left"]) == ["fanotify" if opens == "inotify" else "inotify"]
    if opens == "inotify":
        daemon.wait_for(lambda: daemon.status()["heat_sources"][1]["stats"]["armed"] == len(tree))
    miss(mounted.at("searched"), 40)
    daemon.wait_state("active", b"searched")
    before = daemon.heat().get("/opened", 0.0)
    for _ in range(12):
        use(mounted, "opened", times=1)
        daemon.wait_for(lambda: daemon.metric("promoterd_heat_source_events_total", source=opens) > 0)
    daemon.wait_for(lambda: daemon.heat().get("/opened", 0.0) > before or "/opened" in daemon.states())
    assert daemon.metric("promoterd_heat_source", source="nfs-trace") == 1
    assert daemon.metric("promoterd_heat_events_total", kind="miss") >= 40
    assert daemon.metric("promoterd_heat_events_total", kind="open") > 0
    assert b"searched" in assert_marks_are_sound(mounted)
    assert "/cold" not in daemon.states()
    assert os.listdir(mounted.at("cold"))
