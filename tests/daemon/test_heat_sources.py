"""The daemon with heat sources other than inotify: from an open to an active directory."""

import errno
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from promoterd.paths import show
from support.daemons import SLACK, RunningDaemon, mount_policy, sleeping_process, use, wait_for
from support.overlays import MountedOverlay, unmounted
from support.promotions import assert_same_view, upper_directories, view_of
from support.refusing import environment_refusing_fanotify
from support.trees import files

MakeOverlay = Callable[..., MountedOverlay]
MakeDaemon = Callable[..., RunningDaemon]
FANOTIFY = {"source": "fanotify"}


def names(daemon: RunningDaemon) -> list[str]:
    return [part["name"] for part in daemon.status()["heat_sources"]]


def test_fanotify_promotes_what_is_opened(make_overlay: MakeOverlay, make_daemon: MakeDaemon) -> None:
    tree = {"app": {"lib": files(20), "bin": files(20), "doc": files(3)}, "never": files(3)}
    mounted = make_overlay(tree, counting=True)
    before = view_of(mounted)
    rules = [{"path": "never", "promote": "never"}, {"path": "**"}]
    daemon = make_daemon(mount_policy(mounted, rules, heat=FANOTIFY)).start()
    assert names(daemon) == ["fanotify"]
    assert daemon.heat() == {}
    use(mounted, "app/lib", "app/bin", "never")
    daemon.wait_state("active", b"app/lib", b"app/bin")
    assert daemon.states().keys() == {"/app/lib", "/app/bin"}
    assert set(upper_directories(mounted)) == {b"", b"app", b"app/lib", b"app/bin"}
    assert daemon.metric("promoterd_heat_watches") == 0
    assert daemon.metric("promoterd_heat_source", source="fanotify") == 1
    assert daemon.metric("promoterd_heat_source_events_total", source="fanotify") >= 4
    use(mounted, "app/lib")
    daemon.wait_for(lambda: daemon.heat().get("/app/lib", 0) > 0)
    daemon.stop()
    assert_same_view(before, view_of(mounted))


READING = """
import os, sys, time
print(flush=True)
while True:
    for name in ("f0000", "f0001"):
        open(os.path.join(sys.argv[1], name), "rb").close()
        time.sleep(0.02)
"""


@pytest.mark.parametrize("backend", ["opaque", "layer"])
def test_what_is_read_all_the_time_becomes_active(
    make_overlay: MakeOverlay, make_daemon: MakeDaemon, backend: str
) -> None:
    """An event that waits to be read holds its directory; while it is activated, none may."""
    mounted = make_overlay({"app": {"lib": files(20)}}, counting=True, layered=backend == "layer")
    daemon = make_daemon(mount_policy(mounted, [{"path": "app/lib"}], backend=backend, heat=FANOTIFY)).start()
    with sleeping_process("-c", READING, os.fsdecode(mounted.at("app/lib"))):
        daemon.wait_state("active", b"app/lib")
        heat = daemon.heat()["/app/lib"]
        daemon.wait_for(lambda: daemon.heat()["/app/lib"] > heat + 2)
    assert daemon.states() == {"/app/lib": "active"}


def test_fanotify_walks_through_no_tree(make_overlay: MakeOverlay, make_daemon: MakeDaemon) -> None:
    """inotify reads every directory that policy can promote, to watch it; one mark needs none of that."""
    mounted = make_overlay({f"d{number}": {"sub": files(1)} for number in range(60)}, counting=True)
    daemon = make_daemon(mount_policy(mounted, heat=FANOTIFY)).start()
    time.sleep(1)
    assert mounted.counted.counts()["READDIR"] < 20
    daemon.stop()
    before = mounted.counted.counts()["READDIR"]
    make_daemon(mount_policy(mounted, heat={"source": "inotify"})).start(watching=120)
    assert mounted.counted.counts()["READDIR"] - before >= 60


def test_its_own_work_heats_nothing(make_overlay: MakeOverlay, make_daemon: MakeDaemon) -> None:
    mounted = make_overlay({"app": {f"d{number}": files(3) for number in range(5)}, "lib": {"sub": files(3)}})
    rules = [{"path": "lib", "promote": "always"}, {"path": "**"}]
    section = mount_policy(mounted, rules, heat={"threshold": 0.001} | FANOTIFY)
    daemon = make_daemon(section).start()
    daemon.wait_state("active", b"lib", b"lib/sub")
    daemon.ask("promote", mounted.at("app/d1"))
    daemon.ask("explain", mounted.at("app/d2"))
    daemon.wait_state("active", b"app/d1")
    checked = daemon.metric("promoterd_rechecks_total")
    daemon.wait_for(lambda: daemon.metric("promoterd_rechecks_total") >= checked + 4)
    time.sleep(1.2)
    assert daemon.heat() == {}
    assert daemon.metric("promoterd_heat_events_total") == 0
    assert daemon.states().keys() == {"/lib", "/lib/sub", "/app/d1"}


def test_the_mount_can_be_unmounted_at_once(make_overlay: MakeOverlay, make_daemon: MakeDaemon) -> None:
    mounted = make_overlay({"app": {"lib": files(20)}})
    daemon = make_daemon(mount_policy(mounted, heat={"threshold": 1000} | FANOTIFY)).start()
    use(mounted, "app/lib", times=5)
    wait_for(lambda: unmounted(mounted), patience=SLACK)
    daemon.wait_phase("absent")
    mounted.mount()
    daemon.wait_phase("working")
    use(mounted, "app/lib", times=5)
    daemon.wait_for(lambda: daemon.heat().get("/app/lib", 0) > 1)


def test_a_hot_directory_that_is_gone_is_let_go(make_overlay: MakeOverlay, make_daemon: MakeDaemon) -> None:
    """Nobody tells of its end; its promotion finds out."""
    mounted = make_overlay({"app": {"lib": files(3), "bin": files(3)}})
    daemon = make_daemon(mount_policy(mounted, heat=FANOTIFY)).start()
    daemon.ask("pause", mounted.mountpoint)
    use(mounted, "app/lib", "app/bin")
    daemon.wait_for(lambda: {"/app/lib", "/app/bin"} <= daemon.heat().keys())
    subprocess.run(["rm", "-r", mounted.at("app/lib")], check=True)
    daemon.ask("resume", mounted.mountpoint)
    daemon.wait_state("active", b"app/bin")
    assert daemon.states().get(show(b"app/lib")) not in ("active", "complete", "shadowing")


def test_where_the_kernel_refuses_inotify_stands_in(
    make_overlay: MakeOverlay, make_daemon: MakeDaemon, tmp_path: Path
) -> None:
    mounted = make_overlay({"app": {"lib": files(3)}})
    environment = environment_refusing_fanotify(tmp_path, errno.ENOSYS)
    daemon = make_daemon(mount_policy(mounted, heat=FANOTIFY), environment=environment).start(watching=2)
    reason = "this kernel has no fanotify"
    (said,) = daemon.find("heat_sources")
    assert said["taken"] == {"inotify": f"instead of fanotify: {reason}"}
    assert said["level"] == "warning"
    assert daemon.status()["heat_sources_left"] == {"fanotify": reason}
    use(mounted, "app/lib")
    daemon.wait_state("active", b"app/lib")


def test_auto_takes_what_costs_the_server_nothing(make_overlay: MakeOverlay, make_daemon: MakeDaemon) -> None:
    served, local = make_overlay({"lib": files(3)}, counting=True), make_overlay({"lib": files(3)})
    sections = [mount_policy(mounted) for mounted in (served, local)]
    for section in sections:
        del section["heat"]["source"]  # the default
    daemon = make_daemon(*sections).start()
    daemon.wait_armed(1)
    assert [part["name"] for part in daemon.status(0)["heat_sources"]] == ["inotify"]
    assert [part["name"] for part in daemon.status(1)["heat_sources"]] == ["fanotify"]
    for mounted in (served, local):
        use(mounted, "lib")
        daemon.wait_for(
            lambda mounted=mounted: [  # type: ignore[misc]
                found
                for found in daemon.find("directory", path="/lib", state="active")
                if found["mount"] == os.fsdecode(mounted.mountpoint)
            ]
        )
