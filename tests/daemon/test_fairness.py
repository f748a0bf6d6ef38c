"""Mounts of one daemon do not wait for each other's promotions."""

import os
from collections.abc import Callable
from typing import Any

from promoterd.paths import show
from support.daemons import RunningDaemon, mount_policy
from support.overlays import MountedOverlay
from support.trees import files

MakeOverlay = Callable[..., MountedOverlay]
MakeDaemon = Callable[..., RunningDaemon]
CROWD = 10_000
PROMOTIONS = 4


def read(mounted: MountedOverlay, path: str) -> None:
    with open(mounted.at(path), "rb") as file:
        file.read(1)


def test_one_hot_directory_does_not_wait_for_ten_thousand_on_another_mount(
    make_overlay: MakeOverlay, make_daemon: MakeDaemon
) -> None:
    crowded = make_overlay({f"d{number:05}": {"f": "x"} for number in range(CROWD)})
    quiet = make_overlay({"app": {"lib": files(3)}})
    keys: dict[str, Any] = {"heat": {"threshold": 0.5, "half_life": "1h"}, "activation_interval": "1h"}
    daemon = make_daemon(
        mount_policy(crowded, limits={"concurrency": 16}, **keys),
        mount_policy(quiet, [{"path": "app/lib"}], **keys),
        limits={"promotions": PROMOTIONS},
    ).start()
    daemon.wait_for(lambda: daemon.metric("promoterd_heat_directories_armed") >= CROWD + 1, 120)
    for number in range(CROWD):
        read(crowded, f"d{number:05}/f")
    daemon.wait_for(lambda: daemon.metric("promoterd_promotions_total", outcome="marked") >= 20, 60)
    read(quiet, "app/lib/f0001")
    daemon.wait_for(lambda: daemon.find("promoted", path="/app/lib"), 60)

    events = daemon.find("directory")
    lib = [at for at, event in enumerate(events) if event["path"] == show(b"app/lib")]
    assert [events[at]["state"] for at in lib[:3]] == ["hot", "shadowing", "complete"]
    meanwhile = [event for event in events[lib[0] : lib[1]] if event["state"] == "shadowing"]
    assert len(meanwhile) <= 2 * PROMOTIONS, "those that were under way, and no queue"
    backlog = daemon.metric("promoterd_backlog_directories", mount=os.fsdecode(crowded.mountpoint))
    assert backlog > CROWD / 2, "the others still wait"
    at_work: set[str] = set()
    most = 0
    for event in events:
        (at_work.add if event["state"] == "shadowing" else at_work.discard)(event["path"])
        most = max(most, len(at_work))
    assert 2 <= most <= PROMOTIONS + 1, "the other mount's first is not held up by the bound"
