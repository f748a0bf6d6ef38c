"""Sweeps over a mount that a real daemon works on promote nothing; the launches of an application do."""

import os
import subprocess
import time
from collections.abc import Callable
from typing import Any

import pytest

from promoterd.demo import application, tree
from promoterd.heat.waves import FEWEST
from promoterd.paths import show
from support.daemons import RunningDaemon, mount_policy
from support.overlays import MountedOverlay
from support.promotions import upper_directories

MakeOverlay = Callable[..., MountedOverlay]
MakeDaemon = Callable[..., RunningDaemon]
RULES: list[dict[str, Any]] = [{"path": "apps", "growing": True}, {"path": "apps/*", "growing": True}, {"path": "**"}]
HEARD = 146
"""Directories of the share that policy lets be promoted."""
SETTLE = 1.0
HELD = 3 * SETTLE + 1.5
"""Seconds after which nothing that a sweep did is held back any more: its patience, and a reading of the source."""


@pytest.fixture
def share(make_overlay: MakeOverlay) -> tuple[MountedOverlay, tree.Share]:
    mounted = make_overlay({}, mount=False)
    built = tree.build(mounted.on_server(""))
    return mounted.mount(), built


def sweep(mounted: MountedOverlay, command: str) -> None:
    subprocess.run(["sh", "-c", command], cwd=mounted.mountpoint, stdout=subprocess.DEVNULL, check=True)


@pytest.mark.parametrize("source", ["inotify", "fanotify"])
def test_find_and_tar_promote_nothing_and_launches_do(
    share: tuple[MountedOverlay, tree.Share], make_daemon: MakeDaemon, source: str
) -> None:
    mounted, built = share
    section = mount_policy(mounted, RULES, heat={"threshold": 1.5, "settle": f"{SETTLE:g}s", "source": source})
    daemon = make_daemon(section).start(watching=HEARD if source == "inotify" else None)
    for command in ("find . -ls", "tar cf - . | cat", "find . -ls"):
        sweep(mounted, command)
        time.sleep(HELD)
    assert daemon.heat() == {}
    assert daemon.states() == {}
    assert set(upper_directories(mounted)) == {b""}
    assert daemon.metric("promoterd_heat_events_total", kind="list") >= 3 * HEARD
    assert daemon.metric("promoterd_heat_swept_events_total") == daemon.metric("promoterd_heat_events_total")
    assert daemon.metric("promoterd_heat_sweeps_total") == 3
    swept = daemon.find("swept")
    assert len(swept) == 3
    assert all(event["path"].startswith("/apps/") and event["directories"] >= FEWEST for event in swept)

    spec = application.Spec.of(built, mounted.mountpoint)
    for _ in range(2):
        assert application.launch(spec).errors == []
        time.sleep(HELD)
    daemon.wait_state("active", *built.search_path, patience=60)
    assert daemon.metric("promoterd_heat_sweeps_total") == 3
    assert set(daemon.states()) >= {show(path) for path in built.search_path}
    assert b"apps/atlas/1.4.0" in set(upper_directories(mounted))
    assert not os.path.exists(mounted.in_upper("apps/lumen/2.0.1/share")), "no launch was there"


def test_a_policy_may_count_sweeps(share: tuple[MountedOverlay, tree.Share], make_daemon: MakeDaemon) -> None:
    mounted, _ = share
    section = mount_policy(mounted, RULES, heat={"threshold": 1000, "settle": 0})
    daemon = make_daemon(section).start(watching=HEARD)
    sweep(mounted, "find .")
    daemon.wait_for(lambda: daemon.metric("promoterd_tracked_directories") >= HEARD)
    assert daemon.metric("promoterd_heat_sweeps_total") == 0
