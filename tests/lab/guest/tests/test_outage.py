"""The server stops answering and comes back: nothing is lost, others go on, and the daemon still ends in time."""

import os
import time
from collections.abc import Callable, Iterator

import pytest

from lab.guest import server
from support.daemons import RunningDaemon, mount_policy, use
from support.overlays import MountedOverlay
from support.overlays import make_overlay as make_local_overlay
from support.promotions import assert_same_view, view_of
from support.trees import Tree, files

MakeOverlay = Callable[..., MountedOverlay]
MakeDaemon = Callable[..., RunningDaemon]
OUTAGE = 20.0
TREE: Tree = {"app": {"lib": files(5), "bin": files(5)}}
RULES = [{"path": "app/lib", "promote": "always", "recheck": "1s"}, {"path": "app/**", "recheck": "1s"}]


@pytest.fixture
def local(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MountedOverlay]:
    """An overlay that needs no server."""
    mounted = make_local_overlay(bytes(tmp_path_factory.mktemp("local")), TREE, upper_fs="tmpfs", upper_size=1 << 26)
    yield mounted
    mounted.close()


@pytest.fixture
def outage() -> Iterator[Callable[[], None]]:
    """The way to begin one; it ends with the test at the latest."""
    yield server.pause
    server.resume()


def test_nothing_is_lost_and_other_mounts_go_on(
    make_overlay: MakeOverlay, make_daemon: MakeDaemon, local: MountedOverlay, outage: Callable[[], None]
) -> None:
    mounted = make_overlay(TREE)
    before = view_of(mounted)
    remote = mount_policy(mounted, RULES, limits={"stuck_after": "3s"})
    daemon = make_daemon(remote, mount_policy(local, RULES)).start()
    daemon.wait_state("active", b"app/lib")
    names = {"mount": os.fsdecode(mounted.mountpoint)}
    others = {"mount": os.fsdecode(local.mountpoint)}
    outage()
    begun = time.monotonic()
    daemon.wait_for(lambda: daemon.metric("promoterd_mount_stuck", **names) == 1)
    assert daemon.metric("promoterd_mount_stuck", **others) == 0
    use(local, "app/bin", times=4)
    daemon.wait_for(lambda: daemon.find("directory", path="/app/bin", state="active", **others))
    time.sleep(max(0.0, begun + OUTAGE - time.monotonic()))
    server.resume()
    daemon.wait_for(lambda: daemon.metric("promoterd_mount_stuck", **names) == 0, patience=90)
    checked = daemon.metric("promoterd_rechecks_total", **names)
    daemon.wait_for(lambda: daemon.metric("promoterd_rechecks_total", **names) > checked, patience=60)
    assert daemon.status()["paused"] is None, "a server that is away is not one that deleted everything"
    assert not daemon.find("ghost_removed")
    assert not daemon.find("stale")
    assert_same_view(before, view_of(mounted))


@pytest.mark.thorough
def test_it_ends_in_time_while_the_server_is_away(
    make_overlay: MakeOverlay, make_daemon: MakeDaemon, outage: Callable[[], None]
) -> None:
    mounted = make_overlay(TREE)
    before = view_of(mounted)
    daemon = make_daemon(mount_policy(mounted, RULES, limits={"stuck_after": "2s"})).start()
    daemon.wait_state("active", b"app/lib")
    outage()
    daemon.wait_for(lambda: daemon.metric("promoterd_mount_stuck") == 1)
    daemon.stop()
    server.resume()
    assert_same_view(before, view_of(mounted))
    daemon.start()
    daemon.wait_for(lambda: daemon.status()["states"]["active"] == 1)
