"""R2: copied-up ancestors follow the server, and a new release is seen by whoever looked for it before."""

import importlib.machinery
import os
import stat
from collections.abc import Callable
from typing import Any

from support.daemons import RunningDaemon, mount_policy, use
from support.overlays import MountedOverlay
from support.promotions import upper_directories
from support.rich import acl
from support.trees import OLD, files

MakeOverlay = Callable[..., MountedOverlay]
MakeDaemon = Callable[..., RunningDaemon]
ACL = "system.posix_acl_access"


def look(path: bytes) -> tuple[int, int, int, int, bytes | None]:
    status = os.stat(path)
    has_acl = ACL in os.listxattr(path)
    return (
        stat.S_IMODE(status.st_mode),
        status.st_uid,
        status.st_gid,
        status.st_mtime_ns,
        os.getxattr(path, ACL) if has_acl else None,
    )


def wait_until_it_follows(daemon: RunningDaemon, mounted: MountedOverlay, name: str) -> None:
    daemon.wait_for(lambda: look(mounted.at(name)) == look(mounted.on_server(name)))


def test_ancestors_follow_and_what_a_user_changed_does_not(make_overlay: MakeOverlay, make_daemon: MakeDaemon) -> None:
    mounted = make_overlay({"apps": {"r1": {"lib": files(3)}, "r2": {"lib": files(3)}}})
    daemon = make_daemon(mount_policy(mounted, [{"path": "apps/*/lib", "promote": "always"}])).start()
    daemon.wait_state("active", b"apps/r1/lib", b"apps/r2/lib")
    os.chmod(mounted.at("apps/r2"), 0o711)
    for name in ("apps", "apps/r1", "apps/r2"):
        os.setxattr(mounted.on_server(name), ACL, acl(7, 5))
        os.chmod(mounted.on_server(name), 0o2775)
        os.chown(mounted.on_server(name), 1001, 1002)
        os.utime(mounted.on_server(name), ns=(OLD, OLD + 12345))
    wait_until_it_follows(daemon, mounted, "apps/r1")
    wait_until_it_follows(daemon, mounted, "apps")
    daemon.wait_event("directory_follows", path="/apps/r2")
    assert look(mounted.at("apps/r2")) == (0o711, 1001, 1002, OLD + 12345, None), "its mode is the user's now"
    assert daemon.states() == {"/apps/r1/lib": "active", "/apps/r2/lib": "active"}


def test_an_importer_and_whoever_asked_before_see_a_new_release(
    make_overlay: MakeOverlay, make_daemon: MakeDaemon
) -> None:
    mounted = make_overlay({"py": {"old": {"__init__.py": b""}, "app": {"1.0": {"lib": files(3)}}}})
    rules: list[dict[str, Any]] = [
        *({"path": path, "growing": True} for path in ("py", "py/app")),
        {"path": "py/**"},
    ]
    daemon = make_daemon(mount_policy(mounted, rules)).start(watching=3)
    for path in ("py/old", "py/app/1.0"):
        daemon.ask("promote", mounted.at(path))
    daemon.wait_state("active", b"py/old", b"py/app/1.0", b"py/app/1.0/lib")
    activations = len(daemon.wait_activated(3))

    # as a Python that runs for days: its finder lists the directory again when the mtime has changed
    finder = importlib.machinery.FileFinder(
        os.fsdecode(mounted.at("py")), (importlib.machinery.SourceFileLoader, [".py"])
    )
    assert finder.find_spec("new") is None
    # as an application that asks for the release itself, and is told from then on that there is none
    assert not os.path.exists(mounted.at("py/app/2.0"))
    os.makedirs(mounted.on_server("py/new"))
    with open(mounted.on_server("py/new/__init__.py"), "w") as file:
        file.write("")
    os.makedirs(mounted.on_server("py/app/2.0/lib"))
    with open(mounted.on_server("py/app/2.0/lib/so"), "w") as file:
        file.write("")
    daemon.wait_for(lambda: finder.find_spec("new") is not None, patience=4.0)
    daemon.wait_for(lambda: os.path.exists(mounted.at("py/app/2.0")), patience=4.0)
    assert daemon.find("growing_changed", path="/py/app")
    assert len(daemon.find("activation")) == activations, "nothing was promoted for that"
    daemon.wait_armed(6)
    use(mounted, "py/new", "py/app/2.0/lib", times=3)
    daemon.wait_state("active", b"py/new", b"py/app/2.0/lib")
    for growing in (b"py", b"py/app"):
        assert daemon.explain(mounted, growing)["mark"] == "none"


def test_what_was_reopened_goes_on_following(make_overlay: MakeOverlay, make_daemon: MakeDaemon) -> None:
    mounted = make_overlay({"app": {"lib": {"sub": files(3)}}})
    rules = [{"path": "app/lib", "writers": "none"}, {"path": "app/lib/**", "writers": "none"}]
    daemon = make_daemon(mount_policy(mounted, rules)).start()
    daemon.ask("promote", mounted.at("app/lib"))
    daemon.wait_state("active", b"app/lib", b"app/lib/sub")
    daemon.ask("reopen", mounted.at("app/lib/sub"))
    assert {b"app", b"app/lib", b"app/lib/sub"} <= set(upper_directories(mounted))
    for round_, restart in enumerate((False, True)):
        if restart:
            daemon.restart()
        for name in ("app", "app/lib", "app/lib/sub"):
            os.utime(mounted.on_server(name), ns=(OLD, OLD + 99 + round_))
            os.chmod(mounted.on_server(name), 0o750 + round_)
        for name in ("app", "app/lib", "app/lib/sub"):
            wait_until_it_follows(daemon, mounted, name)
