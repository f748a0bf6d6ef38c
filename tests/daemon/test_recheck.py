"""R7 and R8: nothing half-published is touched, what keeps changing is left alone, and a recheck reaches the server."""

import os
import time
from collections.abc import Callable
from functools import partial

import pytest

from promoterd.errors import Refused
from support.daemons import SLACK, RunningDaemon, moment, mount_policy, use
from support.overlays import MountedOverlay
from support.promotions import assert_marks_are_sound, upper_directories
from support.trees import OLD, files

MakeOverlay = Callable[..., MountedOverlay]
MakeDaemon = Callable[..., RunningDaemon]


def add(mounted: MountedOverlay, name: str) -> None:
    with open(mounted.on_server(name), "w") as file:
        file.write("new")


class TestHalfPublished:
    def test_it_is_promoted_when_it_is_old_enough(self, make_overlay: MakeOverlay, make_daemon: MakeDaemon) -> None:
        mounted = make_overlay({"rel": {"lib": files(3)}})
        rules = [{"path": "rel/**", "promote": "always", "min_age": "4s"}]
        daemon = make_daemon(mount_policy(mounted, rules)).start()
        add(mounted, "rel/lib/late")
        daemon.wait_state("refused", b"rel/lib")
        assert "younger than min_age (a release may still be on its way)" in (daemon.reason(b"rel/lib") or "")
        assert set(upper_directories(mounted)) == {b""}, "nothing was touched"
        born = os.stat(mounted.on_server("rel/lib/late")).st_ctime
        daemon.wait_state("active", b"rel/lib", patience=15)
        shadowing = daemon.find("directory", path="/rel/lib", state="shadowing")
        assert moment(shadowing[0]) >= born + 4

    def test_one_young_directory_holds_up_what_contains_it(
        self, make_overlay: MakeOverlay, make_daemon: MakeDaemon
    ) -> None:
        mounted = make_overlay({"rel": {"lib": {"old": files(3), "young": files(3)}}})
        rules = [{"path": "rel/lib/young", "min_age": "1h"}, {"path": "rel/**", "promote": "always"}]
        daemon = make_daemon(mount_policy(mounted, rules)).start()
        daemon.wait_state("active", b"rel/lib/old")
        assert daemon.states()["/rel/lib"] == "refused"
        assert "/rel/lib/young" in (daemon.reason(b"rel/lib") or "")
        assert assert_marks_are_sound(mounted) == [b"rel/lib/old"]


class TestRestless:
    def test_three_changes_in_a_day_count_as_growing(self, make_overlay: MakeOverlay, make_daemon: MakeDaemon) -> None:
        mounted = make_overlay({"app": {"lib": {**files(2), "plugins": files(2)}}})
        rules = [{"path": "app/lib", "writers": "none"}, {"path": "app/lib/**", "writers": "none"}]
        section = mount_policy(mounted, rules, quiet_period="0s", activation_interval="0.1s")
        daemon = make_daemon(section).start(watching=2)
        plugins = "/app/lib/plugins"

        def is_active_again(times: int) -> bool:
            use(mounted, "app/lib/plugins")
            return len(daemon.find("directory", path=plugins, state="active")) >= times

        daemon.ask("promote", mounted.at("app/lib"))
        for times in range(1, 4):
            daemon.wait_for(partial(is_active_again, times), poll=0.1)
            add(mounted, f"app/lib/plugins/new{times}")
            daemon.wait_event("stale", path=plugins, times_today=times)
        daemon.wait_state("refused", b"app/lib/plugins")
        assert daemon.metric("promoterd_stale_total") == 3
        for path in ("app/lib/plugins", "app/lib"):
            use(mounted, path, times=5)
        daemon.wait_state("refused", b"app/lib")
        reason = "it changed too often, so it counts as growing until it is promoted by hand"
        assert reason in (daemon.reason(b"app/lib") or ""), "nor is what contains it ever complete (I3)"
        assert reason in (daemon.explain(mounted, b"app/lib/plugins")["blocked_by"] or "")
        with pytest.raises(Refused, match="it changed too often"):
            daemon.ask("promote", mounted.at("app/lib"))
        assert assert_marks_are_sound(mounted) == []
        daemon.restart(watching=2)
        use(mounted, "app/lib/plugins", times=5)
        daemon.wait_for(lambda: daemon.heat().get("/app/lib/plugins", 0.0) > 5)
        assert not daemon.find("promoted")
        assert daemon.ask("promote", mounted.at("app/lib/plugins"))["promotions"][0]["outcome"] == "marked"
        daemon.wait_state("active", b"app/lib/plugins")
        assert daemon.ask("promote", mounted.at("app/lib"))["promotions"][0]["outcome"] == "marked"


class TestReachingTheServer:
    def test_a_change_behind_the_clients_cache_is_found(
        self, make_overlay: MakeOverlay, make_daemon: MakeDaemon
    ) -> None:
        mounted = make_overlay({"app": {"lib": files(3), "gone": files(3)}}, counting=True, timeouts=3600)
        daemon = make_daemon(mount_policy(mounted, [{"path": "app/*", "promote": "always"}])).start()
        daemon.wait_state("active", b"app/lib", b"app/gone")
        cached = os.stat(mounted.layers[0] + b"/app/lib").st_mtime_ns
        checked = daemon.metric("promoterd_rechecks_total")
        mounted.counted.reset()
        daemon.wait_for(lambda: daemon.metric("promoterd_rechecks_total") >= checked + 6)
        counts = mounted.counted.counts()
        assert counts["GETATTR"] >= 6, "each recheck asks the server"
        assert counts["READDIR"] == counts["OPENDIR"] == 0, "and only for attributes"
        assert counts["GETATTR"] <= 6 * 12, "of the directory and those on the way"

        add(mounted, "app/lib/new")
        os.utime(mounted.on_server("app/lib"), ns=(OLD, OLD))  # the change time tells all the same
        assert os.stat(mounted.layers[0] + b"/app/lib").st_mtime_ns == cached, "a client that looks sees no change"
        begun = time.monotonic()
        daemon.wait_event("stale", path="/app/lib")
        assert time.monotonic() - begun < 0.55 + 0.5 + SLACK
        daemon.wait_for(lambda: "reopening is deferred" in (daemon.reason(b"app/lib") or ""))

    def test_a_quiet_server_is_asked_once_in_the_interval(
        self, make_overlay: MakeOverlay, make_daemon: MakeDaemon
    ) -> None:
        mounted = make_overlay({"app": {"lib": files(3)}}, counting=True, timeouts=3600)
        rules = [{"path": "app/lib", "promote": "always", "recheck": "1h"}]
        daemon = make_daemon(mount_policy(mounted, rules)).start()
        daemon.wait_state("active", b"app/lib")
        time.sleep(0.5)
        mounted.counted.reset()
        time.sleep(1.5)
        assert mounted.counted.total() == 0
        assert daemon.metric("promoterd_rechecks_total") == 0
