"""Lists that a policy warms from: at the start, after a kill, when they come later, and when they are no good."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from promoterd.heatlist import HeatList, Uses, write_list
from promoterd.heatlist.text import loads
from support.commands import promoterd
from support.daemons import RunningDaemon, mount_policy, use, wait_for
from support.overlays import MountedOverlay
from support.promotions import assert_marks_are_sound
from support.trees import files

RULES = ({"path": "app", "growing": True}, {"path": "app/never", "promote": "never"}, {"path": "app/**"})
TREE = {"app": {"never": files(1), **{f"d{number:02}": files(20) for number in range(10)}}}
ALL = [b"app/d%02d" % number for number in range(10)]


@pytest.fixture
def overlay(make_overlay: Any) -> MountedOverlay:
    found: MountedOverlay = make_overlay(TREE)
    return found


@pytest.fixture
def lists(tmp_path: Path) -> Path:
    directory = tmp_path / "lists"
    directory.mkdir()
    return directory


def write(overlay: MountedOverlay, file: Path, *paths: bytes) -> None:
    """The first is the hottest."""
    heat = HeatList(1)
    for number, path in enumerate(paths):
        heat.add(overlay.mountpoint, path, Uses(misses=1000 - number))
    write_list(heat, str(file))


def policy(overlay: MountedOverlay, lists: Path, **keys: Any) -> dict[str, Any]:
    heat = {"threshold": 100_000}
    return mount_policy(overlay, RULES, warm=[f"{lists}/*.yaml"], heat=heat, **keys)


def warming(daemon: RunningDaemon) -> dict[str, Any]:
    found: dict[str, Any] = daemon.status()["warming"]
    return found


def wait_warm(daemon: RunningDaemon, **counts: int) -> None:
    daemon.wait_for(lambda: {key: warming(daemon)[key] for key in counts} == counts)


def test_at_the_start_and_after_a_restart(overlay: MountedOverlay, lists: Path, tmp_path: Path) -> None:
    write(overlay, lists / "one.yaml", *ALL[:3], b"app/gone", b"app/never")
    write(overlay, lists / "two.yaml", *ALL[2:5])
    with RunningDaemon(os.fsencode(tmp_path), policy(overlay, lists)) as daemon:
        daemon.start()
        daemon.wait_state("active", *ALL[:5])
        wait_warm(daemon, directories=7, complete=5, waiting=0, failed=0, gone=1, forbidden=1)
        assert sorted(assert_marks_are_sound(overlay)) == ALL[:5]
        (event,) = daemon.find("warmed")
        assert (event["complete"], event["gone"], event["forbidden"]) == (5, 1, 1)
        assert daemon.metric("promoterd_warm_directories", state="complete") == 5
        assert daemon.metric("promoterd_warm_directories", state="waiting") == 0
        assert daemon.metric("promoterd_warm_bad_lists") == 0
        shown = promoterd("status", "--socket", daemon.socket).out
        assert "5 of 7 directories (1 gone, 1 not allowed by policy)" in shown

        daemon.restart()
        wait_warm(daemon, complete=5, waiting=0)
        assert daemon.find("promoted") == [], "what is complete is passed over"


def test_after_a_kill_it_goes_on(overlay: MountedOverlay, lists: Path, tmp_path: Path) -> None:
    write(overlay, lists / "all.yaml", *ALL)
    slow = policy(overlay, lists, limits={"entries_per_second": 60, "concurrency": 1})
    with RunningDaemon(os.fsencode(tmp_path), slow) as daemon:
        daemon.start()
        daemon.wait_for(lambda: os.path.exists(overlay.in_upper("app/d03/f0005")))
        assert warming(daemon)["complete"] < 10
        daemon.kill()
        done = sorted(assert_marks_are_sound(overlay))
        assert done[:3] == ALL[:3], "the hottest first"
        daemon.start()
        wait_warm(daemon, complete=10, waiting=0)
        promoted = {event["path"] for event in daemon.find("promoted")}
        assert promoted == {f"/{path.decode()}" for path in ALL if path not in done}
        assert sorted(assert_marks_are_sound(overlay)) == ALL


def test_a_list_that_comes_later_or_is_bad_stops_nothing(overlay: MountedOverlay, lists: Path, tmp_path: Path) -> None:
    (lists / "bad.yaml").write_text("promoterd-heat: 1\nmonts: []\n")
    with RunningDaemon(os.fsencode(tmp_path), policy(overlay, lists)) as daemon:
        daemon.start()
        daemon.wait_for(lambda: warming(daemon)["problems"])
        (problem,) = warming(daemon)["problems"]
        known = "allowed promoterd-heat, runs, mounts; did you mean mounts?"
        assert problem == f"{lists}/bad.yaml:2: the unknown key 'monts'; {known}"
        assert daemon.find("warm_list_bad")[0]["reason"] == problem
        assert daemon.metric("promoterd_warm_bad_lists") == 1
        assert "the unknown key 'monts'" in " ".join(promoterd("status", "--socket", daemon.socket).out.split())

        write(overlay, lists / "good.yaml", ALL[0])
        daemon.signal(signal.SIGHUP)
        daemon.wait_state("active", ALL[0])
        assert len(warming(daemon)["problems"]) == 1

        write(overlay, lists / "bad.yaml", ALL[1])
        assert promoterd("reload", "--socket", daemon.socket).code == 0
        daemon.wait_state("active", ALL[0], ALL[1])
        assert warming(daemon)["problems"] == []
        assert daemon.metric("promoterd_warm_bad_lists") == 0


def test_no_list_at_all(overlay: MountedOverlay, lists: Path, tmp_path: Path) -> None:
    with RunningDaemon(os.fsencode(tmp_path), policy(overlay, lists)) as daemon:
        daemon.start()
        daemon.wait_for(lambda: warming(daemon)["problems"] == [f"{lists}/*.yaml: no list has such a name"])
        assert warming(daemon)["directories"] == 0


def test_what_is_refused_is_told_and_keeps_nothing_back(overlay: MountedOverlay, lists: Path, tmp_path: Path) -> None:
    os.link(overlay.on_server("app/d00/f0000"), overlay.on_server("app/d00/second"))
    write(overlay, lists / "all.yaml", *ALL)
    with RunningDaemon(os.fsencode(tmp_path), policy(overlay, lists)) as daemon:
        daemon.start()
        wait_warm(daemon, complete=9, failed=1, waiting=0)
        assert [one["path"] for one in daemon.status()["troubled"] if one["state"] == "refused"] == ["/app/d00"]
        os.unlink(overlay.on_server("app/d00/second"))
        assert promoterd("promote", os.fsdecode(overlay.at("app/d00")), "--socket", daemon.socket).code == 0
        wait_warm(daemon, complete=10, failed=0)


def test_without_a_mark_each_is_looked_at_once(overlay: MountedOverlay, lists: Path, tmp_path: Path) -> None:
    write(overlay, lists / "all.yaml", *ALL)
    with RunningDaemon(os.fsencode(tmp_path), policy(overlay, lists, backend="observe")) as daemon:
        daemon.start()
        wait_warm(daemon, complete=10, waiting=0)
        assert len(daemon.find("would_promote")) == 10
        assert os.listdir(overlay.upper) == []


def test_paused_it_waits(overlay: MountedOverlay, lists: Path, tmp_path: Path) -> None:
    with RunningDaemon(os.fsencode(tmp_path), policy(overlay, lists)) as daemon:
        daemon.start()
        assert promoterd("pause", "--socket", daemon.socket).code == 0
        write(overlay, lists / "all.yaml", *ALL)
        assert promoterd("reload", "--socket", daemon.socket).code == 0
        wait_warm(daemon, waiting=10)
        assert daemon.find("promoted") == []
        assert promoterd("resume", "--socket", daemon.socket).code == 0
        wait_warm(daemon, complete=10)
        wait_for(lambda: len(assert_marks_are_sound(overlay)) == 10)


def test_the_daemons_heat_is_a_list(overlay: MountedOverlay, lists: Path, tmp_path: Path) -> None:
    with RunningDaemon(os.fsencode(tmp_path), policy(overlay, lists)) as daemon:
        daemon.start(watching=10)
        use(overlay, *ALL[:2], times=5)
        daemon.wait_for(lambda: len(daemon.heat()) == 2)
        dumped = promoterd("heat", "dump", "--socket", daemon.socket)
        assert dumped.code == 0, dumped.err
        heat = loads(dumped.out)
        assert sorted(heat.mounts[overlay.mountpoint]) == ALL[:2]
        assert all(uses.listings == uses.opens == 5 for uses in heat.mounts[overlay.mountpoint].values())
        file = str(lists / "dumped.yaml")
        assert promoterd("heat", "dump", "-o", file, "--top", "1", "--socket", daemon.socket).code == 0
        assert promoterd("reload", "--socket", daemon.socket).code == 0
        wait_warm(daemon, complete=1, waiting=0)
    assert promoterd("heat", "dump", "--socket", daemon.socket).code == 9
