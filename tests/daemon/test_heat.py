"""From heat to an active directory, and what is promoted without heat or never; nobody tells the daemon anything."""

import os
import time
from collections.abc import Callable
from typing import Any

import pytest

from promoterd.ledger import Ledger
from promoterd.paths import show
from support.daemons import RunningDaemon, moment, mount_policy, use
from support.overlays import MountedOverlay
from support.promotions import assert_same_view, upper_directories, view_of
from support.trees import files

MakeOverlay = Callable[..., MountedOverlay]
MakeDaemon = Callable[..., RunningDaemon]


def test_what_is_used_becomes_active_by_itself(make_overlay: MakeOverlay, make_daemon: MakeDaemon) -> None:
    tree = {"app": {"lib": files(20), "bin": files(20), "doc": files(3)}}
    mounted = make_overlay(tree, counting=True, log=True)
    before = view_of(mounted)
    daemon = make_daemon(mount_policy(mounted)).start(watching=4)
    for number in range(3):
        with open(mounted.at(f"app/bin/f000{number}"), "rb") as file:
            assert file.read() == b"content of 000%d\n" % number
        os.listdir(mounted.at("app/lib"))
    daemon.wait_state("active", b"app/lib", b"app/bin")
    assert [event["state"] for event in daemon.find("directory", path="/app/lib")] == [
        *("hot", "shadowing", "complete", "active")
    ]

    mounted.cool()
    asked_before = len(_asked(mounted, b"app/lib"))
    mounted.counted.reset()
    for number in range(50):
        assert not os.path.exists(mounted.at(f"app/lib/missing{number}"))
        assert not os.path.exists(mounted.at(f"app/bin/missing{number}"))
    assert set(os.listdir(mounted.at("app/lib"))) == {os.fsencode(name) for name in files(20)}
    counts = mounted.counted.counts()
    assert counts["LOOKUP_NEGATIVE"] == 0
    assert counts["READDIR"] == 0
    assert len(_asked(mounted, b"app/lib")) == asked_before, "nothing in it was asked for, nor the directory itself"

    assert daemon.states().keys() == {"/app/lib", "/app/bin"}
    assert b"app/doc" not in set(upper_directories(mounted))
    assert daemon.metric("promoterd_directories", state="active") == 2
    assert daemon.metric("promoterd_promotions_total", outcome="marked") == 2
    assert daemon.metric("promoterd_entries_copied_total") == 40
    daemon.stop()
    assert_same_view(before, view_of(mounted))


def _asked(mounted: MountedOverlay, path: bytes) -> list[str]:
    """The requests about this directory or anything in it that the server had so far."""
    with open(mounted.lowers[0] + b".log") as log:
        return [line for line in log if os.fsdecode(mounted.on_server(path)) in line]


def test_its_own_work_heats_nothing(make_overlay: MakeOverlay, make_daemon: MakeDaemon) -> None:
    mounted = make_overlay({"app": {f"d{number}": files(3) for number in range(5)}, "lib": {"sub": files(3)}})
    rules = [{"path": "lib", "promote": "always"}, {"path": "**"}]
    section = mount_policy(mounted, rules, heat={"threshold": 0.001}, activation_interval="2s")
    daemon = make_daemon(section).start(watching=8)
    daemon.wait_state("active", b"lib", b"lib/sub")
    daemon.ask("promote", mounted.at("app/d1"))
    time.sleep(1.1)  # the source is read once a second
    assert daemon.states()["/app/d1"] == "complete", "and waits for the next activation"
    assert daemon.heat() == {}
    daemon.ask("explain", mounted.at("app/d2"))
    daemon.ask("explain", mounted.at("lib"))
    daemon.wait_state("active", b"app/d1")
    checked = daemon.metric("promoterd_rechecks_total")
    daemon.wait_for(lambda: daemon.metric("promoterd_rechecks_total") >= checked + 4)
    time.sleep(1.1)
    assert daemon.heat() == {}
    assert daemon.metric("promoterd_heat_events_total") == 0
    assert daemon.states().keys() == {"/lib", "/lib/sub", "/app/d1"}
    assert set(upper_directories(mounted)) == {b"", b"lib", b"lib/sub", b"app", b"app/d1"}
    use(mounted, "lib", "app/d1")  # they are still heard, after activation and rechecks
    daemon.wait_for(lambda: {"/lib", "/app/d1"} <= daemon.heat().keys())


@pytest.mark.parametrize("source", ["inotify", "fanotify"])
def test_a_day_of_rechecks_and_verifications_heats_nothing(
    make_overlay: MakeOverlay, make_daemon: MakeDaemon, source: str
) -> None:
    a_day = 144  # rechecks of a directory, by default
    names = [f"d{number:02}" for number in range(30)]
    mounted = make_overlay({"app": {name: files(5) for name in names}})
    rule = {"path": "app/*", "promote": "always", "recheck": "0.1s", "verify": "0.5s"}
    heat = {"threshold": 1e9, "settle": 0, "source": source}
    daemon = make_daemon(mount_policy(mounted, [rule], heat=heat)).start()
    daemon.wait_state("active", *(f"app/{name}".encode() for name in names), patience=60)
    daemon.wait_for(lambda: daemon.metric("promoterd_rechecks_total") >= 2 * a_day, 60)
    time.sleep(1.1)
    assert daemon.metric("promoterd_heat_events_total") == 0
    assert daemon.heat() == {}
    assert daemon.states() == {f"/app/{name}": "active" for name in names}


def test_heat_outlasts_a_restart_and_a_reload(make_overlay: MakeOverlay, make_daemon: MakeDaemon) -> None:
    mounted = make_overlay({"app": {"lib": files(3), "bin": files(3)}})
    daemon = make_daemon(mount_policy(mounted, heat={"threshold": 4})).start(watching=3)
    use(mounted, "app/lib", times=1)
    daemon.wait_for(lambda: daemon.heat().get("/app/lib", 0.0) > 1)
    before = daemon.heat()["/app/lib"]
    daemon.restart(watching=3)
    assert before - 0.2 < daemon.heat()["/app/lib"] <= before, "it decays meanwhile"
    daemon.policy["mounts"][0]["heat"]["threshold"] = 3
    daemon.write_policy()
    daemon.ask("reload")
    daemon.wait_for(lambda: daemon.heat().get("/app/lib", 0.0) > 1)
    daemon.wait_armed(3)
    use(mounted, "app/lib", times=1)
    daemon.wait_state("active", b"app/lib")


def test_heat_outlasts_a_kill_and_has_cooled_meanwhile(make_overlay: MakeOverlay, make_daemon: MakeDaemon) -> None:
    mounted = make_overlay({"app": {"lib": files(3), "bin": files(3)}})
    half_life = 8.0
    section = mount_policy(mounted, heat={"threshold": 1000, "half_life": f"{half_life:g}s"})
    daemon = make_daemon(section).start(watching=3)

    def remembered() -> dict[tuple[bytes, str], tuple[float, float]]:
        with Ledger(daemon.state_dir) as ledger:
            (upper,) = ledger.uppers()
            return {(one.path, one.kind): (one.heat, one.at) for one in ledger.of(upper.id).load_heat()}

    use(mounted, "app/lib", times=30)
    daemon.wait_for(lambda: (b"app/lib", "list") in remembered())
    daemon.kill()
    before = remembered()
    assert before.keys() == {(b"app/lib", "list"), (b"app/lib", "open")}
    daemon.start(watching=3)
    known = daemon.heat()["/app/lib"]
    now = time.time()
    heat = sum(heat * 0.5 ** ((now - at) / half_life) for heat, at in before.values())
    assert heat < sum(heat for heat, _ in before.values()) * 0.97, "starting took some time"
    assert heat <= known * 1.001, "asked a moment before"
    assert known == pytest.approx(heat, rel=0.1)
    daemon.wait_for(lambda: max(at for _, at in remembered().values()) > now)
    after = remembered()
    for key, (heat, at) in before.items():
        assert after[key][0] == pytest.approx(heat * 0.5 ** ((after[key][1] - at) / half_life), rel=0.001)


def test_watches_are_limited_by_policy_and_reported(make_overlay: MakeOverlay, make_daemon: MakeDaemon) -> None:
    mounted = make_overlay({f"d{number}": files(1) for number in range(9)})
    daemon = make_daemon(mount_policy(mounted, heat={"max_watches": 4})).start(watching=3)
    daemon.wait_for(lambda: daemon.status()["heat_source"]["refused"] == 6)
    source = daemon.status()["heat_source"]
    assert (source["limit"], source["watches"], source["armed"]) == (4, 4, 3)
    daemon.wait_for(lambda: daemon.metric("promoterd_heat_directories_refused") == 6)
    assert daemon.metric("promoterd_heat_watches") == 4
    assert daemon.metric("promoterd_heat_watches_limit") == 4


def test_policy_decides_what_is_touched(make_overlay: MakeOverlay, make_daemon: MakeDaemon) -> None:
    release = {"lib": files(4), "doc": files(4)}
    mounted = make_overlay(
        {
            "apps": {"one": release, "two": release},
            "never": {"deep": files(3)},
            "other": {"deep": files(3)},
            "first": {"a": files(3), "b": {"never": files(3)}},
        }
    )
    rules: list[dict[str, Any]] = [
        {"path": "apps", "growing": True},
        {"path": "apps/*", "growing": True},
        {"path": "apps/one/lib", "promote": "always"},
        {"path": "apps/*/*"},
        {"path": "never", "promote": "never"},
        {"path": "first/b/never", "promote": "never"},
        {"path": "first/**"},
        {"path": "first"},
        {"path": "never/**", "promote": "always"},  # the first that matches decides, and never means all below
    ]
    daemon = make_daemon(mount_policy(mounted, rules)).start(watching=6)
    daemon.wait_state("active", b"apps/one/lib")
    use(mounted, "", "apps", "apps/two", "apps/two/doc", "never", "never/deep", "other", "other/deep", "first")
    daemon.wait_state("active", b"apps/two/doc")
    daemon.wait_state("refused", b"first")
    assert daemon.reason(b"first") == (
        "the child directory /first/b/never blocks it: rule 'first/b/never' says `promote: never`"
    )
    assert set(upper_directories(mounted)) == {
        *(b"", b"apps", b"apps/one", b"apps/one/lib", b"apps/two", b"apps/two/doc")
    }
    assert os.listdir(mounted.in_upper("apps/one")) == [b"lib"]
    for free in ("apps", "apps/one", "apps/two"):
        assert daemon.explain(mounted, free.encode())["mark"] == "none", f"{free} is growing"
    assert daemon.states().keys() == {"/apps/one/lib", "/apps/two/doc", "/first"}


def test_so_many_at_once_and_no_more(make_overlay: MakeOverlay, make_daemon: MakeDaemon) -> None:
    names = [f"d{number}" for number in range(4)]
    mounted = make_overlay({name: files(600) for name in names})
    rules = [{"path": "*", "promote": "always"}]
    limits = {"concurrency": 2, "entries_per_second": 2000}
    daemon = make_daemon(mount_policy(mounted, rules, limits=limits)).start()
    daemon.wait_state("active", *(name.encode() for name in names))
    at_work: set[str] = set()
    most = 0
    for event in daemon.find("directory"):
        (at_work.add if event["state"] == "shadowing" else at_work.discard)(event["path"])
        most = max(most, len(at_work))
    assert most == 2


def test_entries_per_second(make_overlay: MakeOverlay, make_daemon: MakeDaemon) -> None:
    mounted = make_overlay({"a": files(512), "b": files(512)})
    rules = [{"path": "*", "promote": "always"}]
    daemon = make_daemon(mount_policy(mounted, rules, limits={"entries_per_second": 400})).start()
    daemon.wait_for(lambda: len(daemon.find("directory", state="complete")) == 2)
    begun = min(moment(event) for event in daemon.find("directory", state="shadowing"))
    ended = max(moment(event) for event in daemon.find("directory", state="complete"))
    at_once = 80  # a fifth of a second's worth; the time that it is worth is waited for before the next
    assert (1024 - at_once) / (ended - begun) <= 400 * 1.02
    assert daemon.metric("promoterd_throttled_seconds_total") >= 1.5


@pytest.mark.parametrize(
    ("limit", "lack"), [("min_free_space", "less free space"), ("min_free_inodes", "fewer free inodes")]
)
def test_a_full_upper_layer_is_left_alone(
    make_overlay: MakeOverlay, make_daemon: MakeDaemon, limit: str, lack: str
) -> None:
    mounted = make_overlay({"lib": files(5)}, upper_fs="tmpfs", upper_size=1 << 20)
    with open(mounted.at("filler"), "wb") as filler:
        filler.truncate(0)
        filler.write(b"x" * 4096)
    daemon = make_daemon(mount_policy(mounted, [{"path": "lib", "promote": "always"}], limits={limit: "100%"})).start()
    daemon.wait_state("failed", b"lib")
    assert lack in (daemon.reason(b"lib") or "")
    assert limit in (daemon.reason(b"lib") or "")
    assert set(upper_directories(mounted)) == {b""}
    daemon.wait_for(lambda: daemon.metric("promoterd_promotions_total", outcome="busy") == 1)
    assert 0 < daemon.metric("promoterd_upper_free_bytes") < daemon.metric("promoterd_upper_size_bytes") == 1 << 20
    assert 0 < daemon.metric("promoterd_upper_free_inodes") < daemon.metric("promoterd_upper_inodes")


def test_observe_says_what_would_be_done_and_does_nothing(make_overlay: MakeOverlay, make_daemon: MakeDaemon) -> None:
    mounted = make_overlay({"lib": {"sub": files(5)}})
    rules = [{"path": "**", "promote": "always"}]
    daemon = make_daemon(mount_policy(mounted, rules, backend="observe")).start()
    would = daemon.wait_event("would_promote", path="/lib")
    time.sleep(0.5)
    assert len(daemon.find("would_promote")) == 2, "each is said once"
    assert (would["directories"], would["entries"]) == (2, 6)
    assert os.listdir(mounted.upper) == []
    assert not any("promoterd" in name for name in os.listxattr(mounted.upper))
    assert daemon.explain(mounted, b"lib")["blocked_by"] == "the backend observe marks nothing"
    assert daemon.states()[show(b"lib")] == "hot"
