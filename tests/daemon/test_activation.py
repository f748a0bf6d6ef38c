"""R10, R11, R13, R14: when a mark takes effect, what holds it up, and how often the overlay is reconfigured."""

import mmap
import os
import time
from collections.abc import Callable
from contextlib import ExitStack
from itertools import pairwise

import pytest

from support.daemons import RunningDaemon, moment, mount_policy, sleeping_process, wait_for
from support.overlays import MountedOverlay
from support.promotions import assert_marks_are_sound, assert_same_view, view_of
from support.trees import files

MakeOverlay = Callable[..., MountedOverlay]
MakeDaemon = Callable[..., RunningDaemon]
HOLD = {
    "cwd": "print(flush=True); input()",
    "fd": "import os, sys; os.open(sys.argv[1], os.O_RDONLY); print(flush=True); input()",
    "map": (
        "import mmap, os, sys; f = os.open(sys.argv[1] + '/f0000', os.O_RDONLY);"
        "m = mmap.mmap(f, 0, prot=mmap.PROT_READ); os.close(f); print(flush=True); input()"
    ),
}


def test_what_a_process_holds_is_pinned_until_it_lets_go(make_overlay: MakeOverlay, make_daemon: MakeDaemon) -> None:
    mounted = make_overlay({**{name: files(3) for name in HOLD}, "free": files(3)})
    view = view_of(mounted)
    daemon = make_daemon(mount_policy(mounted)).start()
    paths = [name.encode() for name in HOLD]
    with ExitStack() as stack:
        holders = {
            name: stack.enter_context(
                sleeping_process(
                    "-c", text, os.fsdecode(mounted.at(name)), cwd=mounted.at(name) if name == "cwd" else b"/"
                )
            )
            for name, text in HOLD.items()
        }
        for path in (*paths, b"free"):
            daemon.ask("promote", mounted.at(path))
        daemon.wait_state("active", b"free")
        daemon.wait_state("pinned", *paths)
        for name, process in holders.items():
            said = daemon.explain(mounted, name.encode())
            assert said["state"] == "pinned"
            assert said["in_effect"] is False
            assert {holder["pid"] for holder in said["holders"]} == {process.pid}
            assert name in said["holders"][0]["by"]
        troubled = {one["path"]: one for one in daemon.status()["troubled"]}
        assert troubled["/cwd"]["reason"] == "a process holds it, or something in it"
        assert_same_view(view, view_of(mounted))
        (freed,) = (moment(event) for event in daemon.find("activation", active=1))
        daemon.wait_for(lambda: len(_rounds(daemon, freed)) >= 4)
        rounds = _rounds(daemon, freed)[:4]
        pauses = [later - earlier for earlier, later in pairwise(rounds)]
        assert all(pause >= 0.38 * 2**number for number, pause in enumerate(pauses)), f"it backs off: {pauses}"
    daemon.wait_state("active", *paths)
    assert_same_view(view, view_of(mounted))


def _rounds(daemon: RunningDaemon, since: float) -> list[float]:
    """When it was activated in vain, after that."""
    return [at for event in daemon.find("activation", active=0, pinned=3) if (at := moment(event)) > since]


def test_from_the_mark_on_anybody_may_activate_it(make_overlay: MakeOverlay, make_daemon: MakeDaemon) -> None:
    """R10: a reconfigure of somebody else's is as good as ours; nothing is relied on that only ours would bring."""
    mounted = make_overlay({"lib": files(3), "bin": files(3)})
    view = view_of(mounted)
    daemon = make_daemon(mount_policy(mounted, activation_interval="30s")).start()
    daemon.ask("promote", mounted.at("bin"))
    daemon.wait_state("active", b"bin")
    daemon.ask("promote", mounted.at("lib"))
    daemon.wait_state("complete", b"lib")
    mounted.cool()
    assert daemon.explain(mounted, b"lib")["in_effect"] is True
    assert_same_view(view, view_of(mounted))
    daemon.restart()
    daemon.wait_state("active", b"lib")


def test_directories_that_others_watch(make_overlay: MakeOverlay, make_daemon: MakeDaemon) -> None:
    mounted = make_overlay({"kept": files(2), "ignored": files(2)})
    rules = [{"path": "kept", "promote": "always"}, {"path": "ignored", "promote": "always", "watched": "ignore"}]
    watch = (
        "import os, sys; from promoterd.inotify import *; i = Inotify();"
        "[i.add(os.open(path, os.O_PATH), IN_CREATE) for path in sys.argv[1:]]; print(flush=True); input()"
    )
    paths = [os.fsdecode(mounted.at(name)) for name in ("kept", "ignored")]
    daemon = make_daemon(mount_policy(mounted, rules))
    with sleeping_process("-c", watch, *paths) as watcher:
        daemon.start()
        daemon.wait_state("refused", b"kept")
        assert f"process {watcher.pid} watches it (inotify)" in (daemon.reason(b"kept") or "")
        daemon.wait_for(lambda: daemon.states()["/ignored"] in ("pinned", "active"))
    assert assert_marks_are_sound(mounted) == [b"ignored"]


def test_one_reconfigure_for_all_that_wait(make_overlay: MakeOverlay, make_daemon: MakeDaemon) -> None:
    names = [f"d{number}" for number in range(8)]
    mounted = make_overlay({name: files(2) for name in names})
    daemon = make_daemon(mount_policy(mounted, [{"path": "*", "promote": "always"}], activation_interval="1s")).start()
    daemon.wait_state("active", *(name.encode() for name in names))
    begun = moment(daemon.wait_phase("working"))
    activations = [moment(event) for event in daemon.wait_activated(len(names))]
    assert len(activations) <= 1 + (activations[-1] - begun) / 1.0
    assert all(later - earlier >= 0.99 for earlier, later in pairwise(activations))
    assert daemon.metric("promoterd_activations_total") == len(activations)
    assert daemon.metric("promoterd_activation_effects_total", effect="active") == len(names)
    time.sleep(1.2)
    assert daemon.metric("promoterd_activations_total") == len(activations), "nothing waits, nothing is done"


@pytest.mark.needs("mkfs.btrfs", "loop")
def test_a_file_system_without_proof_says_so(make_overlay: MakeOverlay, make_daemon: MakeDaemon) -> None:
    mounted = make_overlay({"lib": files(2)}, upper_fs="btrfs")
    daemon = make_daemon(mount_policy(mounted, [{"path": "lib", "promote": "always"}])).start()
    daemon.wait_state("active", b"lib")
    assert "unproven" in (daemon.reason(b"lib") or "")


def test_read_mappings_go_on_through_an_activation(make_overlay: MakeOverlay, make_daemon: MakeDaemon) -> None:
    mounted = make_overlay({"lib": {"big": b"x" * 100_000}})
    with open(mounted.at("lib/big"), "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        daemon = make_daemon(mount_policy(mounted)).start()
        daemon.ask("promote", mounted.at("lib"))
        daemon.wait_state("pinned", b"lib")
        assert mapped[:] == b"x" * 100_000
        assert file.read() == b"x" * 100_000
    wait_for(lambda: daemon.states()["/lib"] == "active")


def test_a_restart_beside_a_pinned_directory_that_the_server_changed(
    make_overlay: MakeOverlay, make_daemon: MakeDaemon
) -> None:
    mounted = make_overlay({"lib": files(3)})
    held = os.open(mounted.at("lib"), os.O_RDONLY | os.O_DIRECTORY)
    try:
        daemon = make_daemon(mount_policy(mounted, [{"path": "lib", "promote": "always"}])).start()
        daemon.wait_state("pinned", b"lib")
        with open(mounted.on_server("lib/new"), "w") as file:
            file.write("new")
        assert b"new" in os.listdir(mounted.at("lib")), "the mark has no effect yet"
        daemon.restart()
        assert daemon.status()["phase"] == "working"
    finally:
        os.close(held)
