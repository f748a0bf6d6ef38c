"""Releases come and go on the server while the daemon works; nobody has to remount or restart anything."""

import importlib.machinery
import os
import shutil
import time
from collections.abc import Callable, Mapping
from typing import Any

from lab.guest.stack import Nfs
from support.daemons import SLOWNESS, RunningDaemon, mount_policy, use
from support.overlays import MountedOverlay
from support.promotions import upper_directories
from support.trees import build, files

MakeOverlay = Callable[..., MountedOverlay]
MakeDaemon = Callable[..., RunningDaemon]
CACHED = Nfs("4.2", "actimeo=1")
RECHECK, ACTIVATION = 4.0, 0.5
SLACK = 1.0 * SLOWNESS


def growing(mounted: MountedOverlay) -> dict[str, Any]:
    rules: list[Mapping[str, Any]] = [
        *({"path": path, "growing": True, "recheck": f"{RECHECK}s"} for path in ("py", "py/app")),
        {"path": "py/**", "recheck": f"{RECHECK}s", "writers": "none"},
    ]
    return mount_policy(mounted, rules, activation_interval=f"{ACTIVATION}s")


def test_a_new_release_is_seen_even_by_who_asked_before(make_overlay: MakeOverlay, make_daemon: MakeDaemon) -> None:
    mounted = make_overlay({"py": {"old": {"__init__.py": b""}, "app": {"1.0": {"lib": files(3)}}}}, CACHED)
    daemon = make_daemon(growing(mounted)).start(watching=3)
    for path in ("py/old", "py/app/1.0"):
        daemon.ask("promote", mounted.at(path))
    daemon.wait_state("active", b"py/old", b"py/app/1.0", b"py/app/1.0/lib")
    # a Python that runs for days lists a directory again when its mtime has changed
    loaders = (importlib.machinery.SourceFileLoader, [".py"])
    finder = importlib.machinery.FileFinder(os.fsdecode(mounted.at("py")), loaders)
    assert finder.find_spec("new") is None
    assert not os.path.exists(mounted.at("py/app/2.0")), "and is told from now on that there is none"
    build(mounted.on_server("py/new"), {"__init__.py": b""})
    build(mounted.on_server("py/app/2.0"), {"lib": files(3)})
    for directory in ("py", "py/app"):
        os.utime(mounted.on_server(directory))
    published = time.monotonic()
    daemon.wait_for(lambda: os.path.exists(mounted.at("py/app/2.0")))
    daemon.wait_for(lambda: finder.find_spec("new") is not None)
    assert time.monotonic() - published < 1.1 * RECHECK + ACTIVATION + SLACK
    daemon.wait_armed(6)
    use(mounted, "py/new", "py/app/2.0/lib", times=3)
    daemon.wait_state("active", b"py/new", b"py/app/2.0/lib")
    for grown in (b"py", b"py/app"):
        assert daemon.explain(mounted, grown)["mark"] == "none", "what grows is never complete"


def test_a_deleted_release_leaves_no_ghost(make_overlay: MakeOverlay, make_daemon: MakeDaemon) -> None:
    tree = {"py": {"app": {f"{number}.0": {"lib": files(4), "bin": files(2)} for number in range(4)}}}
    mounted = make_overlay(tree, CACHED)
    daemon = make_daemon(growing(mounted)).start(watching=12)
    for number in range(4):
        daemon.ask("promote", mounted.at(f"py/app/{number}.0"))
    daemon.wait_state("active", *(b"py/app/%d.0/lib" % number for number in range(4)))
    with open(mounted.at("py/app/1.0/lib/mine"), "w") as file:
        file.write("a user's")
    for number in range(2):
        shutil.rmtree(mounted.on_server(f"py/app/{number}.0"))
    deleted = time.monotonic()
    daemon.wait_for(lambda: not os.path.lexists(mounted.at("py/app/0.0")))
    daemon.wait_for(lambda: len(daemon.find("ghost_removed")) == 2)
    assert time.monotonic() - deleted < 1.1 * RECHECK + ACTIVATION + SLACK
    assert sorted(os.listdir(mounted.at("py/app"))) == [b"1.0", b"2.0", b"3.0"]
    assert os.listdir(mounted.at("py/app/1.0/lib")) == [b"mine"], "what a user made stays"
    assert b"py/app/0.0" not in set(upper_directories(mounted))
    status = os.stat(mounted.on_server("py/app"))
    daemon.wait_for(lambda: os.stat(mounted.at("py/app")).st_mtime_ns == status.st_mtime_ns)
    assert daemon.status()["paused"] is None
