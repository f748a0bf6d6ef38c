"""The rules that the daemon keeps with a metadata layer: what the backend alone cannot."""

import os
import shutil
import time
from collections.abc import Callable, Iterator

import pytest

from support.daemons import RunningDaemon, mount_policy, wait_for
from support.overlays import MountedOverlay, unmount
from support.promotions import view_of
from support.soundness import OPAQUE, assert_layer_is_sound, graves, xattr
from support.trees import Tree, files

MakeOverlay = Callable[..., MountedOverlay]
MakeDaemon = Callable[..., RunningDaemon]
LIBRARIES = [b"apps/v%d/lib" % number for number in range(3)]
TREE: Tree = {"apps": {f"v{number}": {"lib": {**files(12), "sub": files(2)}} for number in range(3)}}
RULES = ({"path": "apps", "growing": True}, {"path": "apps/**"})


def write(path: bytes, content: bytes = b"new") -> None:
    with open(path, "wb") as file:
        file.write(content)


def promoted(daemon: RunningDaemon, mounted: MountedOverlay, *paths: bytes) -> None:
    for path in paths:
        daemon.ask("promote", mounted.at(path))
    daemon.wait_state("active", *paths)


def test_ghosts_go_and_nothing_of_them_stays(make_overlay: MakeOverlay, make_daemon: MakeDaemon) -> None:
    """R1: also the directory that was copied up in the layer on the way to it; what a user made stays."""
    mounted = make_overlay(TREE, layered=True, upper_fs="tmpfs")
    daemon = make_daemon(mount_policy(mounted, RULES, backend="layer")).start()
    promoted(daemon, mounted, *LIBRARIES)
    write(mounted.at(LIBRARIES[1] + b"/mine"))
    for number in (0, 1):
        shutil.rmtree(mounted.on_server(b"apps/v%d" % number))
    wait_for(lambda: sorted(os.listdir(mounted.at("apps"))) == [b"v1", b"v2"])
    wait_for(lambda: os.listdir(mounted.at(LIBRARIES[1])) == [b"mine"])
    assert not daemon.find("trip_wire"), "two are fewer than are doubted"
    daemon.stop()
    assert not os.path.exists(mounted.in_rest("apps/v0"))
    assert set(assert_layer_is_sound(mounted)) == {b"apps/v2", LIBRARIES[2], LIBRARIES[2] + b"/sub"}


def test_many_at_once_are_doubted(make_overlay: MakeOverlay, make_daemon: MakeDaemon) -> None:
    """R1: a server that lost its disk is likelier."""
    mounted = make_overlay(TREE, layered=True, upper_fs="tmpfs")
    daemon = make_daemon(mount_policy(mounted, RULES, backend="layer")).start()
    promoted(daemon, mounted, *LIBRARIES)
    os.rename(mounted.on_server("apps"), mounted.on_server("lost"))
    os.mkdir(mounted.on_server("apps"))
    daemon.wait_event("trip_wire")
    assert all(os.path.isdir(mounted.in_files(path)) for path in LIBRARIES)


@pytest.mark.needs("fuse")
def test_a_recheck_reaches_a_server_whose_attributes_are_cached_for_an_hour(
    make_overlay: MakeOverlay, make_daemon: MakeDaemon
) -> None:
    """R8, R2: a directory that is complete, one that is not, and an ancestor."""
    mounted = make_overlay(TREE, layered=True, counting=True, timeouts=3600.0)
    rules = (*RULES, {"path": "apps/v0/lib/sub", "promote": "never"})
    daemon = make_daemon(mount_policy(mounted, rules, backend="layer")).start()
    promoted(daemon, mounted, LIBRARIES[0])
    view_of(mounted)
    write(mounted.on_server(LIBRARIES[0] + b"/new"))
    os.chmod(mounted.on_server(LIBRARIES[0] + b"/sub"), 0o750)
    os.chown(mounted.on_server("apps"), 12, 13)
    wait_for(lambda: os.path.exists(mounted.at(LIBRARIES[0] + b"/new")))
    wait_for(lambda: os.stat(mounted.at(LIBRARIES[0] + b"/sub")).st_mode & 0o777 == 0o750)
    wait_for(lambda: os.stat(mounted.at("apps")).st_uid == 12)


def test_what_is_young_is_marked_when_it_is_old_enough(make_overlay: MakeOverlay, make_daemon: MakeDaemon) -> None:
    """R7: until then it is seen, since the server is asked as well."""
    mounted = make_overlay(TREE, layered=True, upper_fs="tmpfs")
    library = LIBRARIES[0]
    rules = ({"path": "apps", "growing": True}, {"path": "apps/**", "min_age": "5s"})
    daemon = make_daemon(mount_policy(mounted, rules, backend="layer")).start()
    time.sleep(max(0.0, os.stat(mounted.on_server(library)).st_ctime + 5.1 - time.time()))
    promoted(daemon, mounted, library)
    daemon.wait_armed(9)
    write(mounted.on_server(library + b"/new"))
    daemon.wait_state("stale", library)
    wait_for(lambda: xattr(mounted.in_rest(library), OPAQUE) is None)
    wait_for(lambda: os.path.exists(mounted.at(library + b"/new")))
    write(mounted.on_server(library + b"/soon after"))
    wait_for(lambda: os.path.exists(mounted.at(library + b"/soon after")))
    assert xattr(mounted.in_rest(library), OPAQUE) is None, "by the server, and not because it was complete again"
    daemon.wait_state("active", library)
    assert os.path.exists(mounted.at(library + b"/soon after"))
    assert xattr(mounted.in_rest(library), OPAQUE) == b"y"


@pytest.fixture
def second_mount(make_overlay: MakeOverlay) -> Iterator[tuple[MountedOverlay, MountedOverlay]]:
    """Two overlays with upper layers of their own, and one metadata layer."""
    first = make_overlay(TREE, layered=True, upper_fs="tmpfs")
    second = make_overlay(TREE, layered=True, upper_fs="tmpfs", mount=False)
    second.metadata = first.metadata
    second.mount()
    yield first, second
    unmount(second.mountpoint)


def test_a_layer_that_two_overlays_have_is_refused(
    second_mount: tuple[MountedOverlay, MountedOverlay], make_daemon: MakeDaemon
) -> None:
    """R12: whichever of them it is about."""
    for mounted, other in (second_mount, reversed(second_mount)):
        daemon = make_daemon(mount_policy(mounted, RULES, backend="layer")).launch()
        reason = daemon.wait_phase("unfit")["reason"]
        assert os.fsdecode(other.mountpoint) in reason
        assert os.fsdecode(mounted.metadata[0]) in reason
        daemon.stop()


def test_one_activation_for_all_that_wait(make_overlay: MakeOverlay, make_daemon: MakeDaemon) -> None:
    """R14: and a pinned one costs ever fewer."""
    mounted = make_overlay(TREE, layered=True, upper_fs="tmpfs")
    daemon = make_daemon(mount_policy(mounted, RULES, backend="layer", activation_interval="1.5s")).start()
    promoted(daemon, mounted, LIBRARIES[0])
    for library in LIBRARIES[1:]:
        daemon.ask("promote", mounted.at(library))
    daemon.wait_state("active", *LIBRARIES)
    activations = daemon.wait_activated(len(LIBRARIES))
    assert len(activations) <= 3
    assert max(event["active"] for event in activations) >= 3


def test_what_was_held_while_it_was_reopened_is_buried_at_last(
    make_overlay: MakeOverlay, make_daemon: MakeDaemon
) -> None:
    """R3, by the daemon alone."""
    mounted = make_overlay(TREE, layered=True, upper_fs="tmpfs")
    daemon = make_daemon(mount_policy(mounted, RULES, backend="layer")).start()
    promoted(daemon, mounted, LIBRARIES[0])
    held = os.open(mounted.at(LIBRARIES[0]), os.O_RDONLY | os.O_DIRECTORY)
    try:
        daemon.ask("reopen", mounted.at(LIBRARIES[0]))
        wait_for(lambda: len(daemon.find("reopening")))
        assert len(graves(mounted)) == 1
        assert len(os.listdir(held)) == 13
    finally:
        os.close(held)
    wait_for(lambda: graves(mounted) == [])
    assert len(os.listdir(mounted.at(LIBRARIES[0]))) == 13
