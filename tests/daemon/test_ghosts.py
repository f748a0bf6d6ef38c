"""R1: what the server deletes goes, what a user made stays, and a server that looks broken is not believed."""

import os
import shutil
import time
from collections.abc import Callable
from typing import Any

from support.daemons import SLACK, RunningDaemon, mount_policy
from support.overlays import MountedOverlay
from support.promotions import upper_directories
from support.trees import files

MakeOverlay = Callable[..., MountedOverlay]
MakeDaemon = Callable[..., RunningDaemon]
RECHECK = 0.5
RULES: list[dict[str, Any]] = [
    {"path": "apps", "growing": True},
    {"path": "apps/*", "growing": True},
    {"path": "apps/**", "promote": "always"},
]


def releases(count: int) -> dict[str, object]:
    return {"apps": {f"r{number}": {"lib": files(4), "bin": files(2)} for number in range(count)}}


def libraries(count: int) -> list[bytes]:
    return [b"apps/r%d/lib" % number for number in range(count)]


def test_a_deleted_release_goes_and_what_users_made_stays(make_overlay: MakeOverlay, make_daemon: MakeDaemon) -> None:
    mounted = make_overlay(releases(4))
    daemon = make_daemon(mount_policy(mounted, RULES)).start()
    daemon.wait_state("active", *libraries(4), b"apps/r0/bin")
    with open(mounted.at("apps/r1/lib/mine"), "w") as file:
        file.write("a user's")
    with open(mounted.at("apps/r1/lib/f0001"), "a") as file:
        file.write("and more")
    shutil.rmtree(mounted.on_server("apps/r0"))
    shutil.rmtree(mounted.on_server("apps/r1"))
    deleted = time.monotonic()
    daemon.wait_for(lambda: not os.path.lexists(mounted.at("apps/r0")))
    daemon.wait_for(lambda: len(daemon.find("ghost_removed")) == 2)
    assert time.monotonic() - deleted < 1.1 * RECHECK + 0.5 + SLACK  # due, looked at twice a second, and done
    assert sorted(os.listdir(mounted.at("apps"))) == [b"r1", b"r2", b"r3"]
    assert os.listdir(mounted.at("apps/r1")) == [b"lib"]
    assert sorted(os.listdir(mounted.at("apps/r1/lib"))) == [b"f0001", b"mine"]
    with open(mounted.at("apps/r1/lib/f0001"), "rb") as copied:
        assert copied.read() == b"content of 0001\nand more"
    with open(mounted.at("apps/r1/lib/mine"), "rb") as made:
        assert made.read() == b"a user's"
    found = {event["path"]: event for event in daemon.find("ghost_removed")}
    assert found["/apps/r0"]["kept"] == []
    assert set(found["/apps/r1"]["kept"]) == {"apps/r1/lib/f0001", "apps/r1/lib/mine"}
    assert daemon.metric("promoterd_ghosts_removed_total") > 0
    daemon.wait_state("cold", b"apps/r0/lib")  # tried once more, with no success, since policy says always
    daemon.wait_state("active", b"apps/r2/lib", b"apps/r3/lib")
    assert daemon.status()["paused"] is None
    assert b"apps/r0" not in set(upper_directories(mounted))


def test_many_at_once_trip_the_wire_until_somebody_says_that_it_is_so(
    make_overlay: MakeOverlay, make_daemon: MakeDaemon
) -> None:
    mounted = make_overlay(releases(5))
    daemon = make_daemon(mount_policy(mounted, RULES)).start()
    daemon.wait_state("active", *libraries(5))
    for number in range(3):
        os.rename(mounted.on_server(f"apps/r{number}"), mounted.on_server(f"gone{number}"))
    tripped = daemon.wait_event("trip_wire")
    assert tripped["reason"] == "3 directories vanished from the server at once, /apps/r0 among them"
    assert daemon.status()["paused"] == f"trip wire: {tripped['reason']}"
    assert daemon.metric("promoterd_mount_trip_wire") == 1
    assert daemon.metric("promoterd_mount_paused") == 1
    checked = daemon.metric("promoterd_rechecks_total")
    daemon.wait_for(lambda: daemon.metric("promoterd_rechecks_total") > checked + 10)
    assert set(os.listdir(mounted.at("apps"))) == {b"r%d" % number for number in range(5)}
    assert set(os.listdir(mounted.in_upper("apps/r0/lib"))) >= {b"f0000", b"f0001"}
    assert not daemon.find("ghost_removed")
    assert len(daemon.find("trip_wire")) == 1, "it is said once"

    daemon.ask("resume")
    daemon.wait_for(lambda: len(daemon.find("ghost_removed")) == 3)
    assert set(os.listdir(mounted.at("apps"))) == {b"r3", b"r4"}
    assert daemon.status()["paused"] is None
    assert daemon.metric("promoterd_mount_trip_wire") == 0


def test_a_server_that_comes_back_has_lost_nothing(make_overlay: MakeOverlay, make_daemon: MakeDaemon) -> None:
    mounted = make_overlay(releases(4))
    daemon = make_daemon(mount_policy(mounted, RULES)).start()
    daemon.wait_state("active", *libraries(4))
    os.rename(mounted.on_server("apps"), mounted.on_server("away"))
    os.mkdir(mounted.on_server("apps"))
    daemon.wait_event("trip_wire")
    os.rmdir(mounted.on_server("apps"))
    os.rename(mounted.on_server("away"), mounted.on_server("apps"))
    daemon.ask("resume")
    checked = daemon.metric("promoterd_rechecks_total")
    daemon.wait_for(lambda: daemon.metric("promoterd_rechecks_total") > checked + 10)
    assert not daemon.find("ghost_removed")
    assert daemon.status()["paused"] is None
    for library in libraries(4):
        assert len(os.listdir(mounted.at(library))) == 4
        with open(mounted.at(library + b"/f0003"), "rb") as file:
            assert file.read() == b"content of 0003\n"


def test_another_lower_root_trips_the_wire(make_overlay: MakeOverlay, make_daemon: MakeDaemon) -> None:
    mounted = make_overlay(releases(2))
    daemon = make_daemon(mount_policy(mounted, RULES)).start()
    daemon.wait_state("active", *libraries(2), b"apps/r0/bin", b"apps/r1/bin")
    os.rename(mounted.lowers[0], mounted.lowers[0] + b".before")
    os.mkdir(mounted.lowers[0])  # as a server that exports another, empty directory under the name
    tripped = daemon.wait_event("trip_wire")
    assert "the lower layers are not those that /apps/r0/bin was completed from" in tripped["reason"]
    assert not daemon.find("ghost_removed")
    assert set(os.listdir(mounted.in_upper("apps"))) == {b"r0", b"r1"}
    os.rmdir(mounted.lowers[0])
    os.rename(mounted.lowers[0] + b".before", mounted.lowers[0])
