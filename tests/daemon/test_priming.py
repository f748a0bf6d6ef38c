"""The daemon keeps hot directories known where it marks nothing, and shows that it does."""

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from promoterd.errors import PromoterdError
from promoterd.overlay.lock import writer_of
from support.daemons import RunningDaemon, mount_policy, use
from support.overlays import MountedOverlay
from support.trees import files

MakeOverlay = Callable[..., MountedOverlay]
MakeDaemon = Callable[..., RunningDaemon]
RULES = ({"path": "app", "growing": True}, {"path": "app/never", "promote": "never"}, {"path": "app/**"})


def test_what_is_hot_is_primed_and_everybody_can_see_that(make_overlay: MakeOverlay, make_daemon: MakeDaemon) -> None:
    tree = {"app": {"lib": {**files(30), "sub": files(2)}, "never": files(3)}}
    mounted = make_overlay(tree, counting=True, timeouts=60.0, xattrs=False)
    daemon = make_daemon(mount_policy(mounted, RULES, backend="prime", heat={"half_life": "1h"})).start(watching=2)
    use(mounted, "app/lib", "app/never", times=3)
    daemon.wait_state("primed", b"app/lib")
    mounted.cool()
    mounted.reset()
    for number in range(30):
        os.lstat(mounted.at(f"app/lib/f{number:04}"))
    assert mounted.asked() == 0

    assert daemon.states() == {"/app/lib": "primed"}, "neither the forbidden one, nor what is only near it"
    status = daemon.status()
    assert (status["backend"], status["states"]["primed"], status["troubled"]) == ("prime", 1, [])
    assert daemon.metric("promoterd_directories", state="primed") == 1
    assert daemon.metric("promoterd_promotions_total", outcome="primed") == 1
    assert daemon.metric("promoterd_entries_primed_total") == 31
    assert daemon.metric("promoterd_entries_copied_total") == 0
    explained = daemon.explain(mounted, b"app/lib")
    assert explained["state"] == "primed"
    assert "read anew every 45s" in explained["reason"]
    assert explained["retry_at"] > time.time()
    assert explained["blocked_by"] is None
    assert "never" in daemon.explain(mounted, b"app/never")["blocked_by"]

    assert os.listdir(mounted.upper) == []
    assert writer_of(mounted.upper) == "", "who changes nothing locks nobody out"


def test_its_own_reads_heat_nothing(make_overlay: MakeOverlay, make_daemon: MakeDaemon) -> None:
    mounted = make_overlay({"app": {"lib": files(30)}})
    rules = [{"path": "app/lib", "promote": "always"}]
    daemon = make_daemon(mount_policy(mounted, rules, backend="prime", heat={"half_life": "1h"})).start(watching=1)
    daemon.wait_state("primed", b"app/lib")
    daemon.ask("promote", mounted.at("app/lib"))
    assert daemon.metric("promoterd_promotions_total", outcome="primed") == 2
    time.sleep(1.5)  # longer than it takes to hear
    assert daemon.heat() == {}


def test_an_overlay_without_an_upper_layer(make_overlay: MakeOverlay, make_daemon: MakeDaemon) -> None:
    mounted = make_overlay([{"app": {"lib": files(5)}}, {"app": {"lib": {"other": b""}}}], mount=False)
    lowers = b"lowerdir=" + b":".join(mounted.layers)
    subprocess.run(["mount", "-t", "overlay", "overlay", "-o", lowers, mounted.mountpoint], check=True)
    daemon = make_daemon(mount_policy(mounted, backend="prime")).start(watching=2)
    use(mounted, "app/lib", times=3)
    daemon.wait_state("primed", b"app/lib")
    assert daemon.explain(mounted, b"app/lib")["entries"] == 6


def test_a_server_that_hangs_holds_nobody_up(make_overlay: MakeOverlay, make_daemon: MakeDaemon) -> None:
    mounted = make_overlay({"app": {"lib": files(5)}}, counting=True)
    limits = {"stuck_after": "0.3s"}
    rules = [{"path": "app/lib", "promote": "always"}]
    daemon = make_daemon(mount_policy(mounted, rules, backend="prime", limits=limits)).start()
    daemon.wait_state("primed", b"app/lib")
    server = mounted.counted.pid
    assert server is not None
    os.kill(server, signal.SIGSTOP)
    asking = threading.Thread(target=ask_in_vain, args=(daemon, mounted.at("app/lib")))
    try:
        asking.start()
        daemon.wait_for(lambda: daemon.status()["stuck"])
        assert daemon.status()["states"]["primed"] == 1, "what it knows it knows until then"
        daemon.stop()
    finally:
        os.kill(server, signal.SIGCONT)
        asking.join()


def ask_in_vain(daemon: RunningDaemon, path: bytes) -> None:
    with suppress(PromoterdError):
        daemon.ask("promote", path)


def test_by_hand(make_overlay: MakeOverlay, make_daemon: MakeDaemon) -> None:
    mounted = make_overlay({"app": {"lib": files(30), "never": files(2)}})
    daemon = make_daemon(mount_policy(mounted, RULES, backend="prime")).start()
    (done,) = daemon.ask("promote", mounted.at("app/lib"))["promotions"]
    assert (done["outcome"], done["entries"], done["directories"]) == ("primed", 30, ["/app/lib"])
    assert daemon.explain(mounted, b"app/lib")["state"] == "primed"


def test_the_next_daemon_goes_on_with_another_backend(make_overlay: MakeOverlay, make_daemon: MakeDaemon) -> None:
    mounted = make_overlay({"app": {"lib": files(5)}})
    rules = [{"path": "app/lib", "promote": "always"}]
    daemon = make_daemon(mount_policy(mounted, rules, backend="prime")).start()
    daemon.wait_state("primed", b"app/lib")
    daemon.stop()
    daemon.policy["mounts"][0]["backend"] = "opaque"
    daemon.start().wait_state("active", b"app/lib")


def test_the_next_daemon_begins_anew(make_overlay: MakeOverlay, make_daemon: MakeDaemon) -> None:
    mounted = make_overlay({"app": {"lib": files(5)}})
    daemon = make_daemon(mount_policy(mounted, [{"path": "**", "promote": "hot"}], backend="prime")).start()
    daemon.ask("promote", mounted.at("app/lib"))
    daemon.restart()
    assert daemon.status()["states"]["primed"] == 1, "what the kernel knows outlasts the daemon"
