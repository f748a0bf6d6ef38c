"""The commands while a daemon runs."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from promoterd.ledger import DirectoryRecord, Ledger
from promoterd.states import State
from support.commands import Ran, environment, on_a_terminal, promoterd
from support.daemons import SLACK, RunningDaemon, wait_for
from support.overlays import unmounted
from support.promotions import assert_marks_are_sound
from support.sites import Site
from support.soundness import xattr
from support.trees import files

OPAQUE = "trusted.overlay.opaque"


class Served:
    """A site with a daemon on it."""

    def __init__(self, site: Site, daemon: RunningDaemon) -> None:
        self.site = site
        self.daemon = daemon
        self.mountpoint = os.fsdecode(site.mounted.mountpoint)

    def run(self, command: str, *arguments: str, **options: Any) -> Ran:
        return promoterd(command, *arguments, "--config", self.daemon.policy_file, **options)

    def at(self, path: str) -> str:
        return self.site.at(path)

    def state(self, path: str) -> str:
        found: str = self.run("explain", self.at(path), "--json").json["state"]
        return found


def serve(site: Site) -> RunningDaemon:
    site.mount["heat"]["threshold"] = 1000
    return RunningDaemon(os.fsencode(site.base), site.mount)


@pytest.fixture
def served(site: Site) -> Iterator[Served]:
    with serve(site) as daemon:
        yield Served(site, daemon.start(watching=3))


class TestAsking:
    def test_status(self, served: Served) -> None:
        ran = served.run("status")
        assert ran.code == 0
        assert ran.out.startswith("promoterd ")
        assert f"pid {served.daemon.pid}" in ran.out
        assert served.mountpoint in ran.out
        assert "all cold" in ran.out
        answer = served.run("status", "--json").json
        assert answer["pid"] == served.daemon.pid
        assert [mount["mountpoint"] for mount in answer["mounts"]] == [served.mountpoint]
        one = served.run("status", served.at("app/lib"), "--json").json
        assert len(one["mounts"]) == 1
        other = served.run("status", "/etc")
        assert (other.code, served.mountpoint in other.hint) == (4, True)

    def test_status_of_a_mount_that_is_not_there(self, served: Served) -> None:
        wait_for(lambda: unmounted(served.site.mounted), patience=SLACK)
        served.daemon.wait_phase("absent")
        ran = served.run("status")
        assert (ran.code, "absent" in ran.out) == (0, True)
        promoted = served.run("promote", served.at("app/lib"))
        assert promoted.code == 1
        assert "is not in work: absent" in promoted.err
        served.site.mounted.mount()
        served.daemon.wait_phase("working")

    def test_status_says_how_many_troubled_directories_it_leaves_out(self, make_site: Callable[..., Site]) -> None:
        names = [f"d{number:02}" for number in range(53)]
        site = make_site({"app": {name: {"f": b"1"} for name in names}})
        with serve(site) as daemon:
            served = Served(site, daemon.start())
            assert served.run("status", "--json").json["mounts"][0]["troubled_total"] == 0
            daemon.stop()
            with Ledger(daemon.policy["state_dir"]) as ledger:
                (upper,) = ledger.uppers()
                ledger.of(upper.id).put_all(
                    DirectoryRecord(f"app/{name}".encode(), State.FAILED, 1.0, "no luck", retry_at=time.time() + 3600)
                    for name in names
                )
            daemon.start()
            (mount,) = served.run("status", "--json").json["mounts"]
            assert (len(mount["troubled"]), mount["troubled_total"]) == (50, 53)
            said = served.run("status").out
            assert "53 failed" in said
            assert "/app/d49" in said
            assert "/app/d50" not in said
            assert said.endswith("… and 3 more\n")

    def test_top(self, served: Served) -> None:
        assert served.run("top").out.startswith("Nothing is warm. ")
        for _ in range(5):
            os.listdir(served.at("app/[red]"))
        wait_for(served.daemon.heat)
        rows = served.run("top", "--json", "-n", "1").json["directories"]
        assert [(row["path"], row["state"]) for row in rows] == [("/app/[red]", "cold")]
        assert rows[0]["kinds"].keys() == {"list"}
        assert rows[0]["cost"] == 50 * 7 + 25
        assert rows[0]["payback_seconds"] == pytest.approx(rows[0]["cost"] * 3600 / rows[0]["saved_per_hour"], rel=0.02)
        shown = served.run("top", served.mountpoint).out
        assert "/app/[red]" in shown
        assert "pays back in" in shown
        explained = served.run("explain", served.mountpoint + "/app/[red]")
        assert "requests an hour saved" in explained.out

    def test_top_again_and_again(self, served: Served) -> None:
        command = [sys.executable, "-m", "promoterd", "top", "--watch", "--interval", "0.1", "--json"]
        with subprocess.Popen(
            [*command, "--socket", served.daemon.socket], stdout=subprocess.PIPE, text=True, env=environment()
        ) as process:
            assert process.stdout is not None
            for _ in range(3):
                assert json.loads(process.stdout.readline()) == {"directories": []}
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=5)
            assert process.returncode == 130

    def test_top_on_a_terminal_until_ctrl_c(self, served: Served) -> None:
        code, shown = on_a_terminal("top", "-w", "--interval", "0.1", "--socket", served.daemon.socket, until="warm")
        assert code == 0
        assert "Traceback" not in shown

    def test_who_may_not(self, served: Served) -> None:
        ran = promoterd("status", "--socket", served.daemon.socket, nobody=True)
        assert ran.code == 7
        assert "root" in ran.err

    def test_nothing_needs_the_policy_but_the_socket(self, served: Served) -> None:
        with open(served.daemon.policy_file, "a") as file:
            file.write("nonsense: true\n")
        assert served.run("status").code == 0


class TestPromoting:
    def test_to_active_and_back(self, served: Served) -> None:
        ran = served.run("promote", served.at("app/lib"))
        assert ran.code == 0
        assert ran.out.startswith("complete /app/lib: 2 directories, 25 entries\n")
        served.daemon.wait_state("active", b"app/lib", b"app/lib/sub")
        explained = served.run("explain", served.at("app/lib"))
        assert "active" in explained.out
        assert "marked, in effect" in explained.out
        status = served.run("status")
        assert "2 active" in status.out
        reopened = served.run("reopen", served.at("app/lib"))
        assert (reopened.code, reopened.out) == (0, "reopened /app/lib\n")
        assert xattr(served.site.mounted.in_upper("app/lib"), OPAQUE) is None
        assert served.state("app/lib") == "cold"

    def test_with_a_bar_on_a_terminal(self, make_site: Callable[..., Site]) -> None:
        site = make_site({"app": {"lib": files(900)}})
        site.mount["limits"]["entries_per_second"] = 1000
        with serve(site) as daemon:
            daemon.start()
            code, shown = on_a_terminal("promote", site.at("app/lib"), "--socket", daemon.socket)
        assert code == 0
        assert "/900" in shown
        assert "/app/lib: 1 directory, 900 entries" in shown

    def test_recursively_in_json(self, served: Served) -> None:
        ran = served.run("promote", "-r", served.at("app"), "--json")
        assert ran.code == 0
        assert {one["path"] for one in ran.json["promotions"]} == {"/app/lib", "/app/[red]", "/app/other"}
        assert len(assert_marks_are_sound(served.site.mounted)) == 4

    @pytest.mark.parametrize(
        ("path", "code", "said"),
        [
            ("app/never", 6, "promote: never"),
            ("app", 6, "growing"),
            ("app/nowhere", 2, "no such directory"),
            ("app/lib/f0001", 2, "not a directory"),
        ],
    )
    def test_what_cannot_be(self, path: str, code: int, said: str, served: Served) -> None:
        ran = served.run("promote", served.at(path))
        assert (ran.code, said in ran.err) == (code, True)
        assert served.run("status", "--json").json["mounts"][0]["troubled"] == []
        in_json = served.run("promote", served.at(path), "--json")
        assert in_json.json["error"]["exit_code"] == code

    def test_a_path_elsewhere(self, served: Served) -> None:
        for command in ("promote", "explain", "reopen", "retire", "pause"):
            ran = served.run(command, "/etc")
            assert ran.code == 4
            assert "/etc" in ran.err
            assert served.mountpoint in ran.hint

    def test_odd_names(self, served: Served) -> None:
        ran = promoterd("explain", served.site.mounted.at(b"app/\xff[red]"), "--socket", served.daemon.socket)
        assert (ran.code, "/app/\\xff[red]: there is no such directory" in ran.err) == (2, True)
        assert "  odd \\xff\\n[red]\n" in served.run("explain", served.at("app/lib")).out

    def test_a_client_that_gives_up(self, make_site: Callable[..., Site]) -> None:
        site = make_site({"app": {"lib": files(600)}})
        site.mount["limits"]["entries_per_second"] = 300
        with serve(site) as daemon:
            daemon.start()
            with subprocess.Popen(
                [sys.executable, "-m", "promoterd", "promote", site.at("app/lib"), "--socket", daemon.socket],
                stderr=subprocess.PIPE,
                text=True,
                env=environment(),
            ) as process:
                daemon.wait_state("shadowing", b"app/lib")
                process.send_signal(signal.SIGINT)
                _, err = process.communicate(timeout=5)
            assert process.returncode == 130
            assert "goes on" in err
            daemon.wait_state("active", b"app/lib")


class TestSteering:
    def test_pause_and_resume(self, served: Served) -> None:
        assert served.run("pause").out == f"paused {served.mountpoint}\n"
        assert "paused by hand" in served.run("status").out
        refused = served.run("promote", served.at("app/lib"))
        assert refused.code == 11
        assert f"promoterd resume {served.mountpoint}" in refused.hint
        assert served.run("resume", served.mountpoint, "--json").json == {"resumed": [served.mountpoint]}
        assert served.run("promote", served.at("app/lib")).code == 0

    def test_a_pause_survives_a_restart(self, served: Served) -> None:
        served.run("pause", served.mountpoint)
        served.daemon.restart()
        assert "paused by hand" in served.run("status").out

    def test_reload_takes_a_good_policy_and_keeps_the_old_one_from_a_bad(self, served: Served) -> None:
        good = dict(served.site.mount)
        served.daemon.policy["mounts"] = [good | {"rules": "nonsense"}]
        served.daemon.write_policy()
        bad = served.run("reload")
        assert bad.code == 3
        assert "mounts[0].rules" in bad.err
        assert served.run("promote", served.at("app/lib")).code == 0
        served.daemon.policy["mounts"] = [good | {"rules": [{"path": "app/other", "promote": "always", "min_age": 0}]}]
        served.daemon.write_policy()
        assert served.run("reload").out == f"reloaded, with {served.mountpoint}\n"
        served.daemon.wait_state("active", b"app/other")
        forbidden = served.run("promote", served.at("app/[red]"))
        assert (forbidden.code, "no rule" in forbidden.err) == (6, True)

    def test_retire(self, served: Served) -> None:
        served.run("promote", "-r", served.at("app"))
        served.daemon.wait_state("active", b"app/lib", b"app/other")
        ran = served.run("retire", served.mountpoint)
        assert ran.code == 0
        assert ran.out.startswith(f"retired {served.mountpoint}\nreopened /app/")
        assert assert_marks_are_sound(served.site.mounted) == []
        assert served.run("promote", served.at("app/lib")).code == 11
        assert "retired" in served.run("status").out
        assert served.run("resume").code == 0
        assert served.run("promote", served.at("app/lib")).code == 0

    def test_retire_where_somebody_may_write(self, make_site: Callable[..., Site]) -> None:
        site = make_site()
        site.mount["rules"][2]["writers"] = "any"
        with serve(site) as daemon:
            served = Served(site, daemon.start())
            served.run("promote", served.at("app/lib"))
            served.daemon.wait_state("active", b"app/lib")
            ran = served.run("retire", served.mountpoint)
            assert ran.code == 10
            assert "deferred until the overlay is unmounted" in ran.out
            assert "to be reopened when unmounted" in served.run("status").out
            refused = promoterd(
                "reopen", "--offline", "--deferred", "--upper", os.fsdecode(site.mounted.upper),
                "--config", daemon.policy_file,
            )  # fmt: skip
            assert refused.code in (6, 8), "it is mounted, and the daemon holds it"
            wait_for(lambda: unmounted(site.mounted), patience=SLACK)
            daemon.wait_phase("absent")
            done = promoterd(
                "reopen", "--offline", "--deferred", "--upper", os.fsdecode(site.mounted.upper),
                "--config", daemon.policy_file,
            )  # fmt: skip
            assert (done.code, done.out) == (0, "reopened /app/lib\nreopened /app/lib/sub\n")
            site.mounted.mount()
            daemon.wait_phase("working")
            assert assert_marks_are_sound(site.mounted) == []
            assert served.run("status", "--json").json["mounts"][0]["deferred_reopens"] == []


class TestBesideADaemon:
    def test_it_is_found_by_its_lock_where_its_socket_is_not(self, served: Served) -> None:
        ran = served.run("promote", served.at("app/lib"), "--socket", "/nonexistent")
        assert ran.code == 8
        assert f"pid {served.daemon.pid}" in ran.err
        explained = served.run("explain", served.at("app/lib"), "--socket", "/nonexistent", "--json")
        assert explained.json["state"] == "cold"

    def test_a_daemon_that_is_killed_meanwhile(self, make_site: Callable[..., Site]) -> None:
        site = make_site({"app": {"lib": files(600)}})
        site.mount["limits"]["entries_per_second"] = 100
        with serve(site) as daemon:
            daemon.start()
            with subprocess.Popen(
                [sys.executable, "-m", "promoterd", "promote", site.at("app/lib"), "--socket", daemon.socket],
                stderr=subprocess.PIPE,
                text=True,
                env=environment(),
            ) as process:
                daemon.wait_state("shadowing", b"app/lib")
                daemon.kill()
                _, err = process.communicate(timeout=5)
            assert process.returncode == 9
            assert "went away before it answered" in err
            assert "next start" in err
        site.mount["limits"]["entries_per_second"] = "unlimited"
        site.write()
        begun = time.monotonic()
        assert promoterd("promote", site.at("app/lib"), "--config", site.config).code == 0
        assert time.monotonic() - begun < 30
        assert assert_marks_are_sound(site.mounted) == [b"app/lib"]
