"""Recording real commands on a real overlay: exactly what they looked up, and nothing of theirs changed."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from promoterd.heat import base as heat_base
from promoterd.heatlist import HeatList, Uses, read_list
from support.commands import Ran, environment, on_a_terminal, promoterd
from support.daemons import sleeping_process, wait_for
from support.sites import Site
from support.trees import Symlink, files

pytestmark = pytest.mark.needs("strace")
TREE = {
    "app": {
        "lib": {**files(3), "link": Symlink("f0001"), b"odd \xff\n[red]": "odd", "sub": files(1)},
        "search1": {},
        "search2": {},
        "current": Symlink("lib"),
        b"caf\xe9 100%": {"x": "1"},
    }
}


@pytest.fixture
def site(make_site: Callable[..., Site]) -> Site:
    return make_site(TREE)


class Recording:
    """One mount to record for, and where the lists go."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.file = site.base / "heat.yaml"
        self.here = os.fsdecode(site.mounted.at("app"))

    def run(self, *command: str | bytes, options: tuple[str, ...] = (), **more: Any) -> Ran:
        more.setdefault("cwd", self.here)
        return promoterd("record", "--config", self.site.config, "-o", str(self.file), *options, "--", *command, **more)

    def start(self, *arguments: str, **more: Any) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [
                *(sys.executable, "-m", "promoterd", "record"),
                *("--config", self.site.config, "-o", str(self.file), *arguments),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=self.here,
            env=environment(),
            **more,
        )

    @property
    def heat(self) -> HeatList:
        return read_list([str(self.file)])

    @property
    def uses(self) -> dict[bytes, Uses]:
        """Without the mount's root, where a shell looks for its working directory, as it begins, in its own ways."""
        found = dict(self.heat.mounts[self.site.mounted.mountpoint])
        found.pop(b"", None)
        return found


@pytest.fixture
def recording(site: Site) -> Recording:
    return Recording(site)


PYTHON = (sys.executable, "-I", "-S", "-c")
"""Its own files are on another file system, and it looks for none where it is called."""


class TestWhatIsCounted:
    def test_a_search_in_vain(self, recording: Recording) -> None:
        ran = recording.run("sh", "-c", "for d in search1 search2 lib; do test -e $d/libx.so; test -e $d/f0001; done")
        assert (ran.code, ran.out) == (0, "")
        assert recording.uses == {
            b"app/search1": Uses(misses=2),
            b"app/search2": Uses(misses=2),
            b"app/lib": Uses(misses=1, finds=1),
        }
        assert ran.err.startswith(f"promoterd: 4 directories on {os.fsdecode(recording.site.mounted.mountpoint)}, 7 ")
        assert "(5 in vain)" in ran.err

    def test_opens_listings_stats_and_symlinks(self, recording: Recording) -> None:
        code = """
import os
open("lib/f0000").close()
open("lib/link").close()
os.lstat("lib/link")
os.listdir("lib")
os.stat("current/f0002")
os.stat("current")
open("lib/sub/../f0000").close()
os.path.exists("lib/sub/none/deeper/still")
os.path.exists("lib/f0000/not-a-directory")
"""
        assert recording.run(*PYTHON, code).code == 0
        assert recording.uses == {
            # f0000 twice and f0001; link twice, f0002, and f0000 that is no directory
            b"app/lib": Uses(opens=3, listings=1, finds=4),
            b"app": Uses(finds=2),  # current, and where it leads
            b"app/lib/sub": Uses(misses=1),
        }

    def test_working_directories_processes_and_threads(self, recording: Recording) -> None:
        code = """
import os, subprocess, sys, threading
os.chdir("lib")
os.access("a", os.F_OK)
subprocess.run([sys.executable, "-I", "-S", "-c", "import os; os.access('b', 0)"], cwd="sub")
thread = threading.Thread(target=lambda: (os.access("c", 0), os.chdir("../search1")))
thread.start(); thread.join()
os.access("d", os.F_OK)
if not os.fork():
    fd = os.open("../search2", os.O_RDONLY | os.O_DIRECTORY)
    os.fchdir(fd); os.access("e", 0)
    os.stat("f", dir_fd=os.open("../lib", os.O_PATH)) if os.path.exists("none") else None
    os._exit(0)
os.wait()
"""
        assert recording.run(*PYTHON, code).code == 0
        assert recording.uses == {
            b"app": Uses(finds=2),  # lib and search1, to change to
            b"app/lib": Uses(misses=2, finds=1),  # a and c; sub
            b"app/lib/sub": Uses(misses=1),
            b"app/search1": Uses(misses=1),
            b"app/search2": Uses(listings=1, misses=2),
        }

    def test_odd_names(self, recording: Recording) -> None:
        script = b"cat 'lib/odd \xff\n[red]' 'caf\xe9 100%/x' && test -e 'caf\xe9 100%/\n'"
        assert recording.run("sh", "-c", script).code == 1
        assert recording.uses == {
            b"app/lib": Uses(opens=1),
            b"app/caf\xe9 100%": Uses(opens=1, misses=1),
        }
        assert r'{path: "app/caf%E9 100%25", open: 1, miss: 1}' in recording.file.read_text()

    def test_what_is_executed_and_through_links_from_outside(self, recording: Recording) -> None:
        tool = recording.site.mounted.at("app/lib/tool")
        with open(tool, "wb") as file, open("/bin/true", "rb") as source:
            file.write(source.read())
        os.chmod(tool, 0o755)
        outside = recording.site.base / "outside"
        outside.symlink_to(os.fsdecode(recording.site.mounted.at("app/current")))
        assert recording.run("sh", "-c", f"{outside}/tool; exec {outside}/tool").code == 0
        found = recording.uses[b"app/lib"]
        assert found.opens == 2
        assert set(recording.uses) == {b"app/lib"}

    def test_nothing_of_other_mounts(self, recording: Recording) -> None:
        assert recording.run("ls", "-l", "/etc", "/proc/self/fd").code == 0
        assert recording.uses == {}
        assert recording.heat.runs == 1

    def test_what_existed_for_a_moment_only(self, recording: Recording) -> None:
        assert recording.run("sh", "-c", "mkdir search1/t; echo > search1/t/f; rm -r search1/t").code == 0
        assert set(recording.uses) == {b"app/search1"}


class TestTheCommand:
    def test_its_streams_and_exit_code_are_its_own(self, recording: Recording) -> None:
        script = "cat; echo no >&2; ls /proc/self/fd | wc -l; exit 7"
        with recording.start("sh", "-c", script, stdin=subprocess.PIPE) as process:
            out, err = process.communicate(b"given\n", timeout=30)
        assert (process.returncode, out) == (7, b"given\n4\n")
        assert err.splitlines()[0] == b"no"

    def test_one_that_a_signal_ends(self, recording: Recording) -> None:
        assert recording.run("sh", "-c", "test -e lib/none; kill -TERM $$").code == 128 + signal.SIGTERM
        assert recording.uses == {b"app/lib": Uses(misses=1)}

    def test_one_that_exits_as_after_ctrl_c(self, recording: Recording) -> None:
        ran = recording.run("sh", "-c", "exit 130")
        assert ran.code == 130
        assert "Interrupted" not in ran.err

    def test_one_that_is_not_there(self, recording: Recording) -> None:
        ran = recording.run("no-such-program")
        assert (ran.code, "no-such-program" in ran.err) == (127, True)
        assert not recording.file.exists()

    def test_what_it_leaves_in_the_background_goes_on(self, recording: Recording) -> None:
        ended = recording.site.base / "ended"
        begun = time.monotonic()
        ran = recording.run("sh", "-c", f"(test -e lib/a; sleep 3; : > {ended}) >/dev/null 2>&1 & sleep 0.5")
        assert ran.code == 0
        assert not ended.exists(), f"it was waited for, {time.monotonic() - begun:.1f} s"
        assert recording.uses == {b"app/lib": Uses(misses=1)}
        wait_for(ended.exists)

    def test_with_a_filter_that_is_waited_for(self, recording: Recording) -> None:
        ended = recording.site.base / "ended"
        script = f"(sleep 1.5; test -e lib/a; : > {ended}) >/dev/null 2>&1 & test -e lib/b"
        assert recording.run("sh", "-c", script, options=("--seccomp",)).code == 1
        assert ended.exists()
        assert recording.uses == {b"app/lib": Uses(misses=2)}

    def test_when_the_recorder_is_killed_the_command_goes_on(self, recording: Recording) -> None:
        """Also if it has many processes, each of which is just starting another one and waits for that (vfork(2))."""
        ended = recording.site.base / "ended"
        script = f"""
            echo
            for each in 1 2 3 4 5 6 7 8; do
                (count=0; while [ $count -lt 30 ]; do /bin/true; count=$((count + 1)); done) &
            done
            wait
            test -e lib/f0001 && : > {ended}
        """
        with recording.start("sh", "-c", script) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"\n"
            time.sleep(0.1)
            process.kill()
            wait_for(ended.exists)

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_signals_are_for_the_command(self, recording: Recording, number: signal.Signals) -> None:
        code = f"""
import os, signal, sys, time
def end(*_):
    os.access("lib/none", 0)
    sys.exit(5)
signal.signal({int(number)}, end)
print("ready", flush=True)
time.sleep(60)
"""
        with recording.start("--", *PYTHON, code) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            process.send_signal(number)
            _, err = process.communicate(timeout=30)
        assert process.returncode == 5, err
        assert recording.uses == {b"app/lib": Uses(misses=1)}

    def test_ctrl_c_on_a_terminal_is_for_the_command(self, recording: Recording) -> None:
        script = "trap 'echo caught; exit 3' INT; echo ready; while :; do sleep 0.1; done"
        code, shown = on_a_terminal(
            *("record", "-c", recording.site.config, "-o", str(recording.file), "sh", "-c", script), until="ready"
        )
        assert code == 3, shown
        assert shown.count("caught") == 1
        assert recording.heat.runs == 1

    def test_no_root_is_needed(self) -> None:
        with tempfile.TemporaryDirectory() as directory:
            os.chmod(directory, 0o777)
            ran = promoterd(
                "record", "--mount", "/sys", "-o", f"{directory}/heat.yaml", "test", "-e", "/sys/fs/none", nobody=True
            )
            assert ran.code == 1, ran.err
            assert read_list([f"{directory}/heat.yaml"]).mounts[b"/sys"] == {b"fs": Uses(misses=1)}


class TestProcesses:
    CODE = """
import os, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-I", "-S", "-c", "import os, time\\nwhile 1: os.access('sub/k', 0); time.sleep(0.02)"])
print(child.pid, flush=True)
try:
    while 1: os.access("none", 0); time.sleep(0.02)
finally:
    child.kill()
"""  # noqa: E501 - one line of another program

    def test_one_that_runs_with_its_children_for_a_while(self, recording: Recording) -> None:
        lib = recording.site.mounted.at("app/lib")
        with sleeping_process("-I", "-S", "-c", self.CODE, cwd=lib) as process:
            ran = promoterd(
                "record", "--pid", str(process.pid), "--seconds", "1", "-o", "-", "--config", recording.site.config
            )
            assert ran.code == 0, ran.err
            assert process.poll() is None, "it goes on"
            process.send_signal(signal.SIGINT)
            process.wait()
        recording.file.write_text(ran.out)
        assert set(recording.uses) == {b"app/lib", b"app/lib/sub"}
        assert all(uses.misses > 5 and uses.total == uses.misses for uses in recording.uses.values())

    def test_one_with_threads(self, recording: Recording) -> None:
        code = """
import os, threading, time
def look(name):
    while 1: os.access(name, 0); time.sleep(0.02)
for name in ("none", "sub/none"):
    threading.Thread(target=look, args=(name,), daemon=True).start()
print(flush=True)
time.sleep(60)
"""
        with sleeping_process("-I", "-S", "-c", code, cwd=recording.site.mounted.at("app/lib")) as process:
            ran = promoterd(
                *("record", "--pid", str(process.pid), "--seconds", "1"),
                *("-o", str(recording.file), "-c", recording.site.config),
            )
        assert ran.code == 0, ran.err
        assert set(recording.uses) == {b"app/lib", b"app/lib/sub"}
        assert all(uses.misses > 5 for uses in recording.uses.values())

    def test_one_to_its_end(self, recording: Recording) -> None:
        code = """
import os, time
print(flush=True)
while "TracerPid:\\t0\\n" in open("/proc/self/status").read(): time.sleep(0.05)
for _ in range(20): os.access("none", 0); time.sleep(0.05)
"""
        with sleeping_process("-I", "-S", "-c", code, cwd=recording.site.mounted.at("app/lib")) as process:
            ran = promoterd(
                "record", "--pid", str(process.pid), "-o", str(recording.file), "--json", "-c", recording.site.config
            )
        assert (ran.code, ran.json["directories"]) == (0, 1)
        assert ran.json["uses"]["miss"] == recording.uses[b"app/lib"].misses > 5

    def test_ctrl_c_ends_the_watching_and_not_the_watched(self, recording: Recording) -> None:
        code = "import os, time\nprint(flush=True)\nwhile 1: os.access('none', 0); time.sleep(0.02)"
        with sleeping_process("-I", "-S", "-c", code, cwd=recording.site.mounted.at("app/lib")) as process:
            code_of_it, shown = on_a_terminal(
                *("record", "-c", recording.site.config, "-o", str(recording.file), "--pid", str(process.pid)),
                until="Ctrl-C",
            )
            assert process.poll() is None
        assert code_of_it == 0, shown
        assert recording.heat.runs == 1

    def test_one_that_is_not_there(self, recording: Recording) -> None:
        ran = promoterd("record", "--pid", "4194303", "-o", str(recording.file), "-c", recording.site.config)
        assert (ran.code, "there is no process 4194303" in ran.err) == (16, True)


class TestSources:
    def test_a_command_heard_by_inotify(self, recording: Recording) -> None:
        ran = recording.run(
            "sh", "-c", "ls search1 && cat lib/f0001 && test -e lib/none", options=("--with", "inotify")
        )
        assert ran.code == 1
        assert recording.uses == {b"app/search1": Uses(listings=1), b"app/lib": Uses(opens=1)}

    @pytest.mark.parametrize("source", ["inotify", "fanotify"])
    def test_everything_for_a_while(self, recording: Recording, source: str) -> None:
        if (lack := heat_base.load(source).unfit()) is not None:
            pytest.skip(lack)
        with recording.start("--seconds", "60", "--with", source) as process:
            wait_for(lambda: hears(process.pid), 30)
            os.listdir(recording.site.mounted.at("app/search1"))
            os.listdir(recording.site.mounted.at("app/search2"))
            time.sleep(0.5)
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=30)
        assert (process.returncode, b"2 directories" in err) == (0, True), err
        assert recording.uses == {b"app/search1": Uses(listings=1), b"app/search2": Uses(listings=1)}

    def test_the_last_that_a_command_does_is_heard(self, recording: Recording) -> None:
        if (lack := heat_base.load("fanotify").unfit()) is not None:
            pytest.skip(lack)
        for _ in range(8):  # it is a matter of a tenth of a second
            assert recording.run("cat", "lib/f0001", options=("--with", "fanotify")).code == 0
            assert recording.uses == {b"app/lib": Uses(opens=1)}

    def test_an_unknown_one(self, recording: Recording) -> None:
        ran = recording.run("true", options=("--with", "inotifi"))
        assert (ran.code, "inotify" in ran.err) == (2, True)


def hears(pid: int) -> bool:
    """Whether a process watches the directories of the test's tree, or the whole mount."""
    try:
        infos = [Path(f"/proc/{pid}/fdinfo/{fd}").read_text() for fd in os.listdir(f"/proc/{pid}/fd")]
    except OSError:
        return False
    return any(info.count("inotify wd:") >= 7 or "fanotify sdev:" in info for info in infos)


@pytest.mark.parametrize("content", ["no program", "#!/no/such/interpreter"])
def test_what_cannot_be_executed_replaces_no_list(recording: Recording, content: str) -> None:
    assert recording.run("test", "-e", "lib/none").code == 1
    before = recording.heat
    program = recording.site.base / "program"
    program.write_text(content)
    program.chmod(0o755)
    ran = recording.run(str(program))
    assert (ran.code, "could not be executed" in ran.err) == (16, True)
    assert recording.heat == before


class TestOptions:
    def test_adding_to_a_list(self, recording: Recording) -> None:
        for _ in range(2):
            assert recording.run("test", "-e", "lib/none", options=("--add",)).code == 1
        assert recording.heat.runs == 2
        assert recording.uses == {b"app/lib": Uses(misses=2)}
        assert recording.run("true").code == 0
        assert recording.uses == {}

    def test_a_mount_of_no_policy(self, recording: Recording, tmp_path: Path) -> None:
        mount = os.fsdecode(recording.site.mounted.mountpoint)
        ran = promoterd("record", "--mount", mount, "test", "-e", f"{mount}/app/lib/none", cwd=str(tmp_path))
        assert ran.code == 1
        assert read_list([f"{tmp_path}/heat.yaml"]).mounts == {os.fsencode(mount): {b"app/lib": Uses(misses=1)}}

    @pytest.mark.parametrize(
        ("arguments", "code", "said"),
        [
            ([], 2, "nothing to record"),
            (["--seconds", "1", "true"], 2, "to its end"),
            (["--json", "true"], 2, "--json would mix"),
            (["-o", "-", "true"], 2, "--output - would mix"),
            (["--seconds", "1", "--with", "strace"], 2, "strace needs"),
            (["--seconds", "1", "--seccomp"], 2, "--seccomp is for"),
            (["-o", "/no/where/heat.yaml", "true"], 15, "there is no directory /no/where"),
            (["--mount", "/no/where", "true"], 4, "nothing is mounted at /no/where"),
        ],
    )
    def test_what_cannot_be(self, arguments: list[str], code: int, said: str, recording: Recording) -> None:
        ran = promoterd("record", *arguments, env={"PROMOTERD_CONFIG": recording.site.config})
        assert (ran.code, said in ran.out + ran.err) == (code, True), ran

    def test_without_strace(self, recording: Recording, tmp_path: Path) -> None:
        (tmp_path / "bin").mkdir()
        (tmp_path / "bin" / "true").symlink_to("/bin/true")
        ran = recording.run("true", env={"PATH": str(tmp_path / "bin")})
        assert (ran.code, "install the package strace" in ran.hint) == (16, True)
