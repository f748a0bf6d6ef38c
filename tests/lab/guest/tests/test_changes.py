"""A complete directory whose server changes is noticed within the recheck interval, and as on the server after it."""

import os
import time
from collections.abc import Callable

import pytest

from lab.guest.stack import Nfs
from support.daemons import SLOWNESS, RunningDaemon, mount_policy, wait_for
from support.overlays import MountedOverlay
from support.trees import files

MakeOverlay = Callable[..., MountedOverlay]
MakeDaemon = Callable[..., RunningDaemon]
RECHECK = 5.0
SLACK = 1.0 * SLOWNESS


def write(path: bytes) -> None:
    with open(path, "wb") as file:
        file.write(b"new content")


def replace(path: bytes) -> None:
    write(path + b".part")
    os.rename(path + b".part", path)


def look(path: bytes) -> bytes | str | None:
    try:
        with open(path, "rb") as file:
            return file.read()
    except FileNotFoundError:
        return None
    except OSError as error:
        return f"errno {error.errno}"


@pytest.mark.parametrize("version", ["4.2", pytest.param("3", marks=pytest.mark.thorough)])
@pytest.mark.parametrize(
    ("change", "name"),
    [
        pytest.param(write, b"added", id="added", marks=pytest.mark.thorough),
        pytest.param(os.unlink, b"f0001", id="removed"),
        pytest.param(replace, b"f0002", id="replaced", marks=pytest.mark.thorough),
    ],
)
def test_it_is_noticed_and_healed(
    make_overlay: MakeOverlay, make_daemon: MakeDaemon, version: str, change: Callable[[bytes], None], name: bytes
) -> None:
    # a client that believes its caches for an hour: the daemon must not
    mounted = make_overlay({"app": {"lib": files(5)}}, Nfs(version, "actimeo=3600,nocto"))
    rules = [{"path": "app/lib", "promote": "always", "writers": "none", "recheck": f"{RECHECK}s"}]
    daemon = make_daemon(mount_policy(mounted, rules, quiet_period="0.1s")).start()
    daemon.wait_state("active", b"app/lib")
    path = b"app/lib/" + name
    assert look(mounted.at(path)) == look(mounted.on_server(path))
    change(mounted.on_server(path))
    expected = look(mounted.on_server(path))
    changed = time.monotonic()
    daemon.wait_event("stale", path="/app/lib")
    assert time.monotonic() - changed < 1.1 * RECHECK + SLACK
    wait_for(lambda: look(mounted.at(path)) == expected, patience=10 * SLOWNESS)
    daemon.wait_state("active", b"app/lib")
    assert look(mounted.at(path)) == expected
    assert sorted(os.listdir(mounted.at("app/lib"))) == sorted(os.listdir(mounted.on_server("app/lib")))
