"""Promoting, explaining and reopening on a real overlay while no daemon runs."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable

import pytest

from promoterd.demo.view import differences, snapshot
from support.commands import Ran, environment, on_a_terminal, promoterd
from support.daemons import sleeping_process, wait_for
from support.promotions import assert_marks_are_sound
from support.sites import Site
from support.soundness import xattr
from support.trees import files

SCRATCH = b".promoterd"
OPAQUE = "trusted.overlay.opaque"


def run(site: Site, command: str, *arguments: str) -> Ran:
    return promoterd(command, *arguments, "--config", site.config)


def test_a_directory_from_cold_to_active_and_back(site: Site) -> None:
    before = snapshot(site.mounted.mountpoint, skip={SCRATCH}, threads=1)
    lib = site.at("app/lib")
    cold = run(site, "explain", lib, "--json").json
    assert (cold["state"], cold["mark"], cold["entries"], len(cold["not_shadowed"])) == ("cold", "none", 22, 22)
    assert cold["blocked_by"] == "nothing but its heat, which only the daemon knows"
    assert cold["heat"] is None
    assert os.listdir(site.mounted.upper) == [], "explain changes nothing"

    promoted = run(site, "promote", lib)
    assert promoted.code == 0
    assert promoted.out == "active /app/lib: 2 directories, 25 entries\n"
    assert promoted.err == ""
    assert sorted(assert_marks_are_sound(site.mounted)) == [b"app/lib", b"app/lib/sub"]
    assert os.listdir(site.mounted.upper) == [b"app"], "the scratch directory is gone"

    active = run(site, "explain", lib, "--json").json
    assert (active["state"], active["mark"], active["in_effect"]) == ("active", "ours", True)
    assert (active["not_shadowed"], active["blocked_by"], active["holders"]) == ([], None, [])
    again = run(site, "promote", lib)
    assert again.code == 6
    assert "active already" in again.err

    reopened = run(site, "reopen", lib, "--json")
    assert (reopened.code, reopened.json) == (0, {"reopened": ["/app/lib"], "deferred": []})
    assert assert_marks_are_sound(site.mounted) == [b"app/lib/sub"]
    everything = run(site, "reopen", "--all")
    assert (everything.code, everything.out) == (0, "reopened /app/lib/sub\n")
    assert assert_marks_are_sound(site.mounted) == []
    assert run(site, "reopen", "--all").out == "Nothing was complete.\n"
    assert differences(before, snapshot(site.mounted.mountpoint, skip={SCRATCH}, threads=1)) == []


def test_recursively(site: Site) -> None:
    ran = run(site, "promote", "--recursive", site.at("app"), "--json")
    assert ran.code == 0
    assert {one["path"]: one["outcome"] for one in ran.json["promotions"]} == {
        "/app/lib": "marked",
        "/app/[red]": "marked",
        "/app/other": "marked",
    }
    assert sorted(ran.json["active"]) == ["/app/[red]", "/app/lib", "/app/lib/sub", "/app/other"]
    assert ran.json["pinned"] == []
    assert xattr(site.mounted.in_upper("app"), OPAQUE) is None
    assert xattr(site.mounted.in_upper("app/never"), OPAQUE) is None


def test_the_refused_are_named_and_the_others_done(make_site: Callable[..., Site]) -> None:
    site = make_site({"app": {"good": files(3), "bad": files(3)}})
    os.link(site.mounted.on_server("app/bad/f0000"), site.mounted.on_server("app/bad/linked"))
    ran = run(site, "promote", "-r", site.at("app"))
    assert ran.code == 0
    assert "active /app/good" in ran.out
    assert "refused /app/bad: " in ran.out
    assert "hard-linked" in ran.out
    alone = run(site, "promote", site.at("app/bad"))
    assert alone.code == 6
    assert "hardlinks: break" in alone.hint
    explained = run(site, "explain", site.at("app/bad"))
    assert "hard-linked" in explained.out


def test_paths_relative_and_through_links(site: Site) -> None:
    link = site.base / "software"
    link.symlink_to(os.fsdecode(site.mounted.mountpoint))
    ran = promoterd("promote", "../software/app/lib", "--config", "policy.yaml", cwd=str(site.base))
    assert ran.code == 4, "there is no such mount"
    ran = promoterd("promote", "./software/app/lib", "--config", "policy.yaml", cwd=str(site.base))
    assert ran.code == 0
    assert ran.out.startswith("active /app/lib")
    inside = promoterd("promote", "other", "--config", site.config, cwd=site.mounted.at("app"))
    assert inside.out.startswith("active /app/other"), inside.err


def test_odd_names_are_shown_and_nothing_breaks(site: Site) -> None:
    explained = run(site, "explain", site.at("app/lib"))
    assert "  odd \\xff\\n[red]\n" in explained.out
    assert run(site, "promote", site.at("app/[red]")).out == "active /app/[red]: 1 directory, 2 entries\n"
    assert "/app/[red] on " in run(site, "explain", site.at("app/[red]")).out
    missing = promoterd("explain", site.mounted.at(b"app/\xff\n"), "--config", site.config)
    assert (missing.code, "/app/\\xff\\n: " in missing.err) == (2, True)


def test_who_pins_a_directory_is_named(site: Site) -> None:
    with sleeping_process("-c", "print(flush=True); input()", cwd=site.mounted.at("app/lib/sub")) as process:
        ran = run(site, "promote", site.at("app/lib"))
        assert ran.code == 0
        assert "pinned /app/lib: " in ran.out
        assert f"pid {process.pid} (python" in ran.out
        assert "by cwd" in ran.out
        explained = run(site, "explain", site.at("app/lib/sub"))
        assert f"pid {process.pid} (python" in explained.out
        assert "not in effect" in explained.out
    other = run(site, "promote", site.at("app/other"), "--json")
    assert other.json["pinned"] == []
    assert run(site, "explain", site.at("app/lib"), "--json").json["state"] == "active"


def test_our_own_working_directory_pins_nothing(site: Site) -> None:
    """The shell's would: here nobody but the command itself stands in it."""
    ran = promoterd("promote", ".", "--config", site.config, cwd=site.mounted.at("app/lib"))
    assert ran.out.startswith("active /app/lib: ")


def test_a_dry_run(site: Site) -> None:
    site.mount["backend"] = "observe"
    site.write()
    ran = run(site, "promote", site.at("app/lib"))
    assert ran.code == 0
    assert ran.out.startswith("would be promoted: /app/lib: 2 directories, 25 entries")
    assert os.listdir(site.mounted.upper) == []


def test_what_cannot_be_reopened_now_is_deferred_and_noted(site: Site) -> None:
    site.mount["rules"][2]["writers"] = "any"
    site.write()
    lib = site.at("app/lib")
    assert run(site, "promote", lib).code == 0
    ran = run(site, "reopen", lib)
    assert ran.code == 10
    assert "writers: none" in ran.err
    assert "--offline" in ran.hint
    everything = run(site, "reopen", "--all")
    assert everything.code == 10
    assert "deferred until the overlay is unmounted" in everything.out
    assert "/app/lib/sub" in everything.out
    assert len(run(site, "reopen", "--all", "--json").json["deferred"]) == 2

    site.mounted.umount()
    offline = run(site, "reopen", "--offline", "--deferred", "--upper", os.fsdecode(site.mounted.upper))
    site.mounted.mount()
    assert (offline.code, offline.out) == (0, "reopened /app/lib\nreopened /app/lib/sub\n")
    assert assert_marks_are_sound(site.mounted) == []


class TestOnATerminal:
    def test_a_bar_is_shown_and_gone(self, make_site: Callable[..., Site]) -> None:
        site = make_site({"app": {"lib": files(1500)}})
        site.mount["limits"]["entries_per_second"] = 1000
        site.write()
        code, shown = on_a_terminal("promote", site.at("app/lib"), "--config", site.config)
        assert code == 0
        assert "/1500" in shown
        assert "entries" in shown
        assert shown.rstrip().endswith("/app/lib: 1 directory, 1500 entries")

    def test_a_sign_of_life_while_nothing_can_be_seen(self, site: Site) -> None:
        assert promoterd("promote", site.at("app/lib"), "--config", site.config).code == 0
        site.mount["quiet_period"] = "0.5s"
        site.write()
        code, shown = on_a_terminal("reopen", site.at("app/lib"), "--config", site.config)
        assert code == 0
        assert "waiting until nobody has written there" in shown
        assert shown.rstrip().endswith("reopened /app/lib")

    def test_none_with_json(self, site: Site) -> None:
        code, shown = on_a_terminal("promote", site.at("app/lib"), "--config", site.config, "--json")
        assert code == 0
        assert shown.startswith("{")
        assert "\x1b" not in shown


def catches_interrupts(pid: int) -> bool:
    """Whether the program is loaded and has a handler for SIGINT."""
    with open(f"/proc/{pid}/cmdline", "rb") as file:
        is_loaded = b"promoterd" in file.read()
    with open(f"/proc/{pid}/status", encoding="ascii") as file:
        caught = next(int(line.split()[1], 16) for line in file if line.startswith("SigCgt:"))
    return is_loaded and bool(caught & 1 << signal.SIGINT - 1)


def wait_for_first_line(pid: int) -> None:
    """Until our first line has run, which takes off the handler that the interpreter makes when it starts."""
    wait_for(lambda: catches_interrupts(pid), poll=0.001)
    wait_for(lambda: not catches_interrupts(pid), poll=0.001)


def test_ctrl_c_is_not_lost_in_a_callback() -> None:
    """What a callback of the garbage collector raises, the interpreter would only print."""
    interrupted = """
import signal, time, weakref
from promoterd.cli import entry

def execute(arguments):
    class Module: pass
    module = Module()
    callback = weakref.ref(module, lambda _: signal.raise_signal(signal.SIGINT))
    try:
        del module
        time.sleep(20)
    except KeyboardInterrupt:
        return 130
    return 0

entry.execute = execute
entry.enter()
"""
    ran = subprocess.run(
        [sys.executable, "-c", interrupted], capture_output=True, text=True, timeout=30, env=environment(), check=False
    )
    assert (ran.returncode, ran.stderr) == (130, "")


class TestCtrlC:
    def start(self, site: Site) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "promoterd", "promote", site.at("app/lib"), "--config", site.config],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(),
        )

    @pytest.fixture
    def slow(self, make_site: Callable[..., Site]) -> Site:
        site = make_site({"app": {"lib": files(2000)}})
        site.mount["limits"]["entries_per_second"] = 200
        site.write()
        return site

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_half_way(self, slow: Site, number: signal.Signals) -> None:
        before = snapshot(slow.mounted.mountpoint, threads=1)
        process = self.start(slow)
        wait_for(lambda: os.path.exists(slow.mounted.in_upper("app/lib/f0000")))
        begun = time.monotonic()
        process.send_signal(number)
        out, err = process.communicate(timeout=20)
        assert time.monotonic() - begun < 5
        assert process.returncode == 130
        assert "Traceback" not in err
        assert out == ""
        assert "/app/lib is not complete" in err
        assert "the same command goes on from here" in err
        assert os.listdir(slow.mounted.upper) == [b"app"], "the scratch directory is gone"
        assert xattr(slow.mounted.in_upper("app/lib"), OPAQUE) is None
        assert differences(before, snapshot(slow.mounted.mountpoint, threads=1)) == []
        slow.mount["limits"]["entries_per_second"] = "unlimited"
        slow.write()
        assert promoterd("promote", slow.at("app/lib"), "--config", slow.config).code == 0
        assert assert_marks_are_sound(slow.mounted) == [b"app/lib"]

    def test_at_any_moment(self, slow: Site) -> None:
        """Whenever it comes, the end is quick, clean and one of two: nothing marked, or all of it."""
        for delay in (0.0, 0.15, 0.3, 0.4, 0.5, 0.65, 1.0):
            process = self.start(slow)
            wait_for_first_line(process.pid)
            timer = threading.Timer(delay, process.send_signal, [signal.SIGINT])
            timer.start()
            out, err = process.communicate(timeout=20)
            timer.join()
            assert "Traceback" not in out + err, f"after {delay} s"
            assert process.returncode in (0, 130, -signal.SIGINT), f"after {delay} s: {out}{err}"
            marked = [b"app/lib"] if process.returncode == 0 else []
            assert assert_marks_are_sound(slow.mounted) == marked, f"after {delay} s: {out}{err}"
            if marked:
                break
            assert set(os.listdir(slow.mounted.upper)) <= {b"app"}
