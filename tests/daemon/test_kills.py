"""I5: the daemon is killed at any moment; the view never changes, and the next start finishes what was begun."""

import os
import random
import time
from collections.abc import Callable
from functools import partial

from promoterd.demo.reader import Known, Reader
from support.daemons import RunningDaemon, mount_policy
from support.overlays import MountedOverlay
from support.promotions import assert_marks_are_sound, assert_same_view, view_of
from support.trees import files

MakeOverlay = Callable[..., MountedOverlay]
MakeDaemon = Callable[..., RunningDaemon]
SEEDS = range(10)
SLOW = {"entries_per_second": 1200}
"""A promotion of 200 entries lasts for a sixth of a second, on however fast a machine."""


def test_killed_in_the_middle_of_promotions(make_overlay: MakeOverlay, make_daemon: MakeDaemon) -> None:
    tops = [f"app{seed}" for seed in SEEDS]
    mounted = make_overlay({top: {**files(120), "sub": {**files(60), "deep": files(20)}} for top in tops})
    view = view_of(mounted)
    daemon = make_daemon()
    interrupted = 0
    with Reader(mounted.mountpoint, Known.of(mounted.lowers[0], [b"app1/sub/no", b"app7/no"])) as reader:
        for seed in SEEDS:
            daemon.policy["mounts"] = [
                mount_policy(mounted, [{"path": f"{top}{below}", "promote": "always"} for top in tops[: seed + 1]
                                       for below in ("", "/**")], limits=SLOW)
            ]  # fmt: skip
            daemon.launch()
            path = f"/{tops[seed]}"
            daemon.wait_event("directory", path=path, state="shadowing", patience=20, poll=0.001)
            time.sleep(random.Random(seed).uniform(0, 0.2))
            interrupted += not daemon.find("promoted", path=path)
            daemon.kill()
            assert_marks_are_sound(mounted)
        assert reader.stop() == []
    assert interrupted >= 3, "most kills came too late to hit a promotion"
    assert_same_view(view, view_of(mounted))
    mounted.remount()
    assert_same_view(view, view_of(mounted))

    # no rule asks for these any more: only the journal tells that they were begun
    daemon.policy["mounts"][0]["rules"] = [{"path": f"{tops[-1]}{below}", "min_age": "0s"} for below in ("", "/**")]
    daemon.start()
    last = tops[-1].encode()
    daemon.wait_state("active", last)
    status = daemon.status()
    on_disk = set(assert_marks_are_sound(mounted))
    daemon.wait_for(lambda: daemon.status()["states"]["active"] == len(on_disk))
    assert status["paused"] is None
    daemon.stop()
    assert_same_view(view, view_of(mounted))
    assert not [name for name in os.listdir(mounted.upper) if name.startswith(b".promoterd")]


def marks_in_the_book(daemon: RunningDaemon, mounted: MountedOverlay, deleted: list[bytes]) -> set[str]:
    """What is marked on disk, once the daemon knows just that; nothing before."""
    known = {path.decode() for path in assert_marks_are_sound(mounted, deleted=deleted)}
    return known if daemon.status().get("states", {}).get("active") == len(known) else set()


def test_killed_in_the_middle_of_reopenings(make_overlay: MakeOverlay, make_daemon: MakeDaemon) -> None:
    mounted = make_overlay({"app": {**files(80), "sub": files(80), "other": files(40)}})
    rules = [{"path": path, "writers": "none"} for path in ("app", "app/**")]
    daemon = make_daemon(mount_policy(mounted, rules, quiet_period="0s")).start()
    for seed in range(4):
        daemon.ask("promote", mounted.at("app"))
        daemon.wait_state("active", b"app", b"app/sub", b"app/other")
        os.unlink(mounted.at(f"app/sub/f000{seed}"))
        view = view_of(mounted)
        asking = os.fork()
        if not asking:  # the answer never comes
            try:
                daemon.ask("reopen", mounted.at("app/sub"))
            finally:
                os._exit(0)
        daemon.wait_for(lambda: daemon.find("reopening"), poll=0.001)
        time.sleep(random.Random(seed).uniform(0, 0.03))
        daemon.kill()
        os.waitpid(asking, 0)
        assert_same_view(view, view_of(mounted))
        mounted.remount()
        assert_same_view(view, view_of(mounted))
        daemon.start()
        deleted = [b"app/sub/f000%d" % number for number in range(seed + 1)]
        known = daemon.wait_for(partial(marks_in_the_book, daemon, mounted, deleted))
        assert_same_view(view, view_of(mounted))
        if "app" in known:
            daemon.ask("reopen", mounted.at("app"))
        for left in sorted(known - {"app"}):
            daemon.ask("reopen", mounted.at(left))
        assert_same_view(view, view_of(mounted))
