"""The daemon with copies of small files' data: made with promotions, within a budget, by heat, as policy says."""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable
from typing import Any

import pytest

from promoterd.errors import Refused
from support.daemons import RunningDaemon, mount_policy, use, wait_for
from support.overlays import MountedOverlay
from support.promotions import assert_same_view, view_below, view_of
from support.soundness import xattr
from support.trees import File

DATA = "trusted.overlay.promoterd.data"
SIZE = 1000
RULES = ({"path": "apps", "growing": True}, {"path": "apps/**"})
LIBRARIES = [b"apps/v%d/lib" % number for number in range(4)]


def release(number: int) -> dict[str, Any]:
    return {
        "lib": {f"m{file}.py": File(b"%d" % number * SIZE) for file in range(5)} | {"large.so": File(b"x" * 70_000)}
    }


@pytest.fixture
def mounted(make_overlay: Callable[..., MountedOverlay]) -> MountedOverlay:
    return make_overlay({"apps": {f"v{number}": release(number) for number in range(4)}}, counting=True, layered=True)


def start(
    make_daemon: Callable[..., RunningDaemon], mounted: MountedOverlay, copy_data: dict[str, Any] | None, **rule: Any
) -> RunningDaemon:
    rules = [{**one, **rule} for one in RULES]
    return make_daemon(mount_policy(mounted, rules, backend="layer", copy_data=copy_data)).start()


def copies(mounted: MountedOverlay, path: bytes) -> int:
    """How many files of a directory carry their data; each has the bytes that its record says."""
    found = 0
    for name in os.listdir(mounted.in_files(path)):
        with open(mounted.in_files(path) + b"/" + name, "rb") as file:
            try:
                record = os.getxattr(file.fileno(), DATA)
            except OSError:
                continue
            assert hashlib.sha256(file.read()).hexdigest() == json.loads(record)["sha256"]
            found += 1
    return found


def content_of(path: bytes) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def promote(daemon: RunningDaemon, mounted: MountedOverlay, *paths: bytes) -> None:
    for path in paths:
        daemon.ask("promote", mounted.at(path))
    daemon.wait_state("active", *paths)


def test_a_promotion_copies_and_reading_asks_nothing(
    make_daemon: Callable[..., RunningDaemon], mounted: MountedOverlay
) -> None:
    daemon = start(make_daemon, mounted, {"patterns": ["**/*.py"]}, recheck="1h")
    daemon.wait_armed(8)
    before = view_below(mounted.lowers[0])
    use(mounted, LIBRARIES[0], times=3)
    daemon.wait_state("active", LIBRARIES[0])
    assert copies(mounted, LIBRARIES[0]) == 5
    assert_same_view(before, view_of(mounted))
    mounted.cool()
    directory = os.open(mounted.at(LIBRARIES[0]), os.O_PATH)
    try:
        mounted.reset()
        for name in (b"m1.py", b"m4.py"):
            file = os.open(name, os.O_RDONLY, dir_fd=directory)
            assert os.read(file, 2 * SIZE) == b"0" * SIZE
            os.close(file)
        assert mounted.asked() == 0
    finally:
        os.close(directory)
    assert daemon.metric("promoterd_data_bytes") == 5 * SIZE
    assert daemon.status()["data"] == {"held": 5 * SIZE, "budget": 1 << 30}


def test_the_hotter_directory_has_the_copies(
    make_daemon: Callable[..., RunningDaemon], mounted: MountedOverlay
) -> None:
    cold, warm, hot, other = LIBRARIES
    daemon = start(make_daemon, mounted, {"max_size": "4KiB", "budget": 7 * SIZE})
    promote(daemon, mounted, cold)
    assert copies(mounted, cold) == 5
    promote(daemon, mounted, warm)
    assert copies(mounted, warm) == 2, "nobody has used either, so there is no reason to evict"
    use(mounted, hot, times=10)
    wait_for(lambda: copies(mounted, hot) == 5 if os.path.exists(mounted.in_files(hot)) else False)
    assert copies(mounted, cold) + copies(mounted, warm) == 2
    assert daemon.metric("promoterd_data_evicted_bytes_total") >= 5 * SIZE
    promote(daemon, mounted, other)
    assert copies(mounted, hot) == 5, "nothing is evicted for what is colder"
    assert daemon.metric("promoterd_data_bytes") == daemon.status()["data"]["held"] == 7 * SIZE
    shutil.rmtree(os.path.dirname(mounted.on_server(hot)))
    wait_for(lambda: copies(mounted, cold) + copies(mounted, warm) + copies(mounted, other) == 7)
    wait_for(lambda: not os.path.exists(mounted.at(hot)))
    assert_same_view(view_below(mounted.lowers[0]), view_of(mounted))


def test_what_the_server_changes_is_followed(
    make_daemon: Callable[..., RunningDaemon], mounted: MountedOverlay
) -> None:
    daemon = start(make_daemon, mounted, {}, verify="0.5s")
    promote(daemon, mounted, LIBRARIES[0])
    server, at = mounted.on_server(LIBRARIES[0]), mounted.at(LIBRARIES[0])
    before = os.stat(server + b"/m1.py")
    with open(server + b"/m1.py", "r+b") as file:
        file.write(b"!" * SIZE)
    os.utime(server + b"/m1.py", ns=(before.st_atime_ns, before.st_mtime_ns))
    with open(server + b"/new.py", "wb") as file:
        file.write(b"new")
    os.unlink(server + b"/m2.py")
    wait_for(lambda: content_of(at + b"/m1.py") == b"!" * SIZE)
    wait_for(lambda: copies(mounted, LIBRARIES[0]) == 5)
    daemon.wait_state("active", LIBRARIES[0])
    mounted.cool()
    assert_same_view(view_below(mounted.lowers[0]), view_of(mounted))
    wait_for(lambda: daemon.metric("promoterd_data_bytes") == 4 * SIZE + 3)


def test_the_policy_is_followed_by_what_is_complete(
    make_daemon: Callable[..., RunningDaemon], mounted: MountedOverlay
) -> None:
    """Without a promotion: at a reload, or after a kill by a daemon that has to count first."""
    lib = LIBRARIES[0]
    daemon = start(make_daemon, mounted, None)
    promote(daemon, mounted, lib)
    before = view_of(mounted)
    assert copies(mounted, lib) == 0
    assert daemon.status()["data"] is None
    policies: list[tuple[dict[str, Any] | None, int]] = [
        ({"patterns": ["**/m[123].py"]}, 3),
        ({"max_size": "1MiB"}, 6),
        ({"max_size": "1MiB", "budget": 2 * SIZE}, 2),
        (None, 0),
    ]
    for copy_data, expected in policies:
        daemon.policy["mounts"][0]["copy_data"] = copy_data
        if expected == 2:
            daemon.kill()
            daemon.start()
        else:
            daemon.write_policy()
            daemon.ask("reload")
        wait_for(lambda: copies(mounted, lib) == expected)  # noqa: B023
        daemon.wait_state("active", lib)
        assert_same_view(before, view_of(mounted))
    wait_for(lambda: xattr(mounted.metadata[0], DATA) is None)
    assert daemon.status()["data"] is None


def test_files_are_copied_once_they_are_old_enough(
    make_daemon: Callable[..., RunningDaemon], mounted: MountedOverlay
) -> None:
    lib = LIBRARIES[0]
    daemon = start(make_daemon, mounted, {}, min_age="1s")
    os.utime(mounted.on_server(lib) + b"/m1.py")
    wait_for(lambda: daemon.find("ready"))
    daemon.wait_for(lambda: promoted(daemon, mounted, lib))
    assert copies(mounted, lib) == 5
    with open(mounted.on_server(lib) + b"/new.py", "wb") as file:
        file.write(b"new")
    young_until = time.time() + 4
    os.utime(mounted.on_server(lib) + b"/new.py", (young_until, young_until))
    wait_for(lambda: os.path.exists(mounted.in_files(lib) + b"/new.py"))
    assert copies(mounted, lib) == 5, "it is young"
    wait_for(lambda: copies(mounted, lib) == 6)
    daemon.wait_state("active", lib)


def promoted(daemon: RunningDaemon, mounted: MountedOverlay, path: bytes) -> bool:
    try:
        daemon.ask("promote", mounted.at(path))
    except Refused:
        return False
    return True
