"""Every command given what it cannot work with: an exit code, what is wrong and the way out, never a traceback."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from support.commands import environment, promoterd
from support.needs import need
from support.overlays import MountedOverlay
from support.sites import Site

ASKING = ("status", "top", "pause", "resume", "reload")
ACTING = ("promote", "explain", "reopen")
NO_PRIVILEGE = ("setpriv", "--bounding-set", "-all", "--inh-caps", "-all", "--")


class TestNoDaemon:
    @pytest.mark.parametrize("command", [*ASKING, "retire"])
    def test_nobody_answers(self, command: str, tmp_path: Path) -> None:
        where = tmp_path / "control.sock"
        arguments = [command, *(["/mnt"] if command == "retire" else []), "--socket", str(where)]
        ran = promoterd(*arguments)
        assert ran.code == 9
        assert str(where) in ran.err
        assert "promoterd run" in ran.hint
        error = promoterd(*arguments, "--json").json["error"]
        assert (error["class"], error["exit_code"]) == ("DaemonUnreachable", 9)

    def test_a_dead_socket(self, tmp_path: Path) -> None:
        where = tmp_path / "control.sock"
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(where))
        assert promoterd("status", "--socket", str(where)).code == 9

    def test_the_socket_is_the_policys_also_if_that_is_bad_elsewhere(self, tmp_path: Path) -> None:
        policy = tmp_path / "policy.yaml"
        policy.write_text(f"control: {{socket: {tmp_path}/mine.sock}}\nmounts: nonsense\n")
        assert f"{tmp_path}/mine.sock" in promoterd("status", "--config", str(policy)).err
        assert f"{tmp_path}/mine.sock" in promoterd("status", env={"PROMOTERD_CONFIG": str(policy)}).err

    @pytest.mark.parametrize("command", ASKING)
    def test_a_policy_that_was_named_and_is_not_there(self, command: str) -> None:
        ran = promoterd(command, "--config", "/nonexistent/policy.yaml")
        assert ran.code == 3
        assert "/nonexistent/policy.yaml: found no such file" in ran.err


class TestCheck:
    def test_no_such_file(self) -> None:
        ran = promoterd("check", "/nonexistent.yaml")
        assert ran.code == 3
        assert "/nonexistent.yaml: found no such file" in ran.err

    def test_other_things_than_a_policy(self, tmp_path: Path) -> None:
        binary = tmp_path / "binary"
        binary.write_bytes(b"\x7fELF\xff\0")
        for path in (tmp_path, binary, Path("/dev/null")):
            ran = promoterd("check", str(path))
            assert ran.code == 3
            assert str(path) in ran.err

    def test_every_mistake_with_its_line(self, tmp_path: Path) -> None:
        file = tmp_path / "policy.yaml"
        file.write_text("mounts:\n  - mountpoint: relative\n    bakend: opaque\n    rules: [{path: a}]\n")
        ran = promoterd("check", str(file))
        assert ran.code == 3
        assert "2 mistakes" in ran.err.splitlines()[0]
        assert f"{file}:2: mounts[0].mountpoint" in ran.err
        assert f"{file}:3: mounts[0].bakend" in ran.err
        assert "did you mean backend?" in ran.err
        assert promoterd("check", "--json", str(file)).json["error"]["class"] == "PolicyError"

    def test_a_file_that_nobody_may_read(self, tmp_path: Path) -> None:
        file = tmp_path / "policy.yaml"
        file.write_text("mounts: []")
        file.chmod(0o600)
        ran = promoterd("check", str(file), nobody=True)
        assert ran.code == 3
        assert str(file) in ran.err

    def test_odd_bytes_in_the_name(self, tmp_path: Path) -> None:
        ran = promoterd("check", os.fsencode(tmp_path) + b"/\xff\n[red]")
        assert ran.code == 3
        assert "\\xff\\n[red]" in ran.err


class TestDoctor:
    def test_no_overlay_there(self, make_overlay: Callable[..., MountedOverlay], tmp_path: Path) -> None:
        mounted = make_overlay({"app": {}})
        for path in (str(tmp_path), "/nonexistent"):
            ran = promoterd("doctor", path)
            assert ran.code == 4
            assert path in ran.err
        inside = promoterd("doctor", mounted.at("app"))
        assert inside.code == 4
        assert os.fsdecode(mounted.mountpoint) in inside.hint

    def test_an_unfit_mount(self, make_overlay: Callable[..., MountedOverlay]) -> None:
        ran = promoterd("doctor", make_overlay({"app": {}}, options="metacopy=off,redirect_dir=off").mountpoint)
        assert ran.code == 5
        assert "unfit: metacopy" in ran.out
        assert "Mount instead:" in ran.out

    def test_a_fit_one(self, make_overlay: Callable[..., MountedOverlay]) -> None:
        mounted = make_overlay({"app": {}})
        ran = promoterd("doctor", mounted.mountpoint, "--json")
        assert ran.code == 0
        assert ran.json["overlays"][0]["backends"]["opaque"]["fit"] is True

    def test_without_privilege(self, make_overlay: Callable[..., MountedOverlay]) -> None:
        ran = promoterd("doctor", make_overlay({"app": {}}).mountpoint, prefix=NO_PRIVILEGE)
        assert ran.code == 5
        assert "CAP_SYS_ADMIN" in ran.out


class TestActingWithoutDaemon:
    @pytest.mark.parametrize("command", ACTING)
    def test_nothing_without_a_policy(self, command: str) -> None:
        ran = promoterd(command, "/mnt/app", "--config", "/nonexistent.yaml")
        assert ran.code == 3
        assert "/nonexistent.yaml" in ran.err

    def test_nothing_without_the_default_policy(self, tmp_path: Path) -> None:
        need("root")
        if os.path.exists("/etc/promoterd/policy.yaml"):
            pytest.skip("this machine has one")
        ran = promoterd("promote", "/mnt/app", "--socket", str(tmp_path / "none"))
        assert ran.code == 3
        assert "no policy" in ran.err
        assert "--config" in ran.hint

    @pytest.mark.parametrize("command", ACTING)
    def test_a_path_on_no_mount_of_the_policy(self, command: str, site: Site) -> None:
        ran = promoterd(command, "/etc", "--config", site.config)
        assert ran.code == 4
        assert "/etc" in ran.err
        assert os.fsdecode(site.mounted.mountpoint) in ran.hint

    @pytest.mark.parametrize("command", [*ACTING, "reopen --all"])
    def test_a_mount_that_is_not_there(self, command: str, site: Site) -> None:
        site.mounted.umount()
        ran = promoterd(*command.split(), site.at("app/lib"), "--config", site.config)
        assert ran.code == 4
        assert "No overlay is mounted at" in ran.err
        assert "doctor" in ran.hint
        site.mounted.mount()

    @pytest.mark.parametrize("command", [*ACTING, "run"])
    def test_without_privilege(self, command: str, site: Site) -> None:
        path = [] if command == "run" else [site.at("app/lib")]
        ran = promoterd(command, *path, "--config", site.config, prefix=NO_PRIVILEGE)
        assert ran.code == 7
        assert "CAP_SYS_ADMIN" in ran.err
        assert "root" in ran.hint
        assert not site.state_dir.exists()

    @pytest.mark.parametrize("command", [*ACTING, "run"])
    def test_as_nobody(self, command: str, site: Site) -> None:
        path = [] if command == "run" else [site.at("app/lib"), "--socket", str(site.socket)]
        ran = promoterd(command, *path, "--config", site.config, nobody=True)
        assert ran.code == 7
        assert "root" in ran.err

    @pytest.mark.parametrize("command", ["promote", "explain"])
    @pytest.mark.parametrize(
        ("path", "said"),
        [("app/nowhere", "no such directory"), ("app/lib/f0001", "not a directory"), ("app/link", "symlink")],
    )
    def test_what_is_no_directory(self, command: str, path: str, said: str, site: Site) -> None:
        os.symlink("lib", site.at("app/link"))
        ran = promoterd(command, site.at(path), "--config", site.config)
        assert ran.code == 2
        assert f"/{path}" in ran.err
        assert said in ran.err

    @pytest.mark.parametrize(
        ("path", "said", "way_out"),
        [
            ("", "no rule", "--recursive"),
            ("app", "growing", "--recursive"),
            ("app/never", "promote: never", "--recursive"),
        ],
    )
    def test_what_policy_forbids(self, path: str, said: str, way_out: str, site: Site) -> None:
        ran = promoterd("promote", site.at(path), "--config", site.config)
        assert ran.code == 6
        assert said in ran.err
        assert way_out in ran.hint
        assert os.listdir(site.mounted.upper) == []

    def test_an_unfit_mount(self, make_site: Callable[..., Site]) -> None:
        site = make_site(options="metacopy=off,redirect_dir=off")
        for command in ACTING:
            ran = promoterd(command, site.at("app/lib"), "--config", site.config)
            assert ran.code == 5
            assert "metacopy" in ran.err
            assert "doctor" in ran.hint

    def test_what_is_not_complete_cannot_be_reopened(self, site: Site) -> None:
        ran = promoterd("reopen", site.at("app/lib"), "--config", site.config)
        assert ran.code == 6
        assert "not complete" in ran.err

    def test_an_upper_layer_that_somebody_else_changes(self, site: Site) -> None:
        holder = (
            "import fcntl,os,sys;fd=os.open(sys.argv[1],os.O_RDONLY);"
            "fcntl.flock(fd,fcntl.LOCK_EX);print(flush=True);input()"
        )
        with subprocess.Popen(
            [sys.executable, "-c", holder, site.mounted.upper], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as process:
            assert process.stdout is not None
            process.stdout.readline()
            ran = promoterd("promote", site.at("app/lib"), "--config", site.config)
            assert promoterd("explain", site.at("app/lib"), "--config", site.config).code == 0
            process.communicate(b"\n")
        assert ran.code == 8
        assert f"pid {process.pid}" in ran.err

    def test_a_state_directory_that_cannot_be(self, site: Site) -> None:
        site.state_dir.write_text("a file")
        for command in ACTING:
            ran = promoterd(command, site.at("app/lib"), "--config", site.config)
            assert ran.code == 12
            assert str(site.state_dir) in ran.err

    def test_a_working_directory_that_is_gone(self, site: Site, tmp_path: Path) -> None:
        gone = tmp_path / "gone"
        gone.mkdir()
        script = f"cd {gone} && rmdir {gone} && exec {sys.executable} -m promoterd promote x --config {site.config}"
        done = subprocess.run(["sh", "-c", script], capture_output=True, check=False, env=environment())
        assert done.returncode == 2
        assert b"working directory is gone" in done.stderr


class TestOutput:
    def test_a_reader_that_leaves(self, tmp_path: Path) -> None:
        del tmp_path
        script = f"{sys.executable} -m promoterd check config/policy.example.yaml | true; echo ${{PIPESTATUS[0]}}"
        for _ in range(3):
            done = subprocess.run(["bash", "-c", script], capture_output=True, check=True, env=environment())
            assert done.stderr == b""
            assert done.stdout in (b"141\n", b"0\n")

    def test_a_full_disk(self) -> None:
        with open("/dev/full", "wb") as full:
            done = subprocess.run(
                [sys.executable, "-m", "promoterd", "check", "config/policy.example.yaml"],
                stdout=full,
                stderr=subprocess.PIPE,
                check=False,
                env=environment(),
            )
        assert done.returncode == 1
        assert done.stderr == b"promoterd: the output cannot be written: No space left on device\n"

    def test_no_output_at_all(self) -> None:
        script = f"{sys.executable} -m promoterd check config/policy.example.yaml >&-"
        done = subprocess.run(["sh", "-c", script], capture_output=True, check=False, env=environment())
        assert (done.returncode, done.stderr) == (0, b"")

    def test_a_terminal_that_knows_ascii_only(self, site: Site) -> None:
        ran = promoterd(
            "doctor", site.mounted.mountpoint, env={"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
        )
        assert ran.code == 0
        assert ran.out.isascii()

    def test_a_bug_is_one_line_and_a_traceback_for_those_who_ask(self) -> None:
        broken = (
            "import sys, promoterd.cli.checking as c\n"
            "def boom(*a, **k): raise ZeroDivisionError('of\\nthe mind')\n"
            "c.examine_mounts = boom\n"
            "from promoterd.cli import main; sys.argv = ['promoterd', 'doctor', *sys.argv[1:]]; main()"
        )
        command = [sys.executable, "-c", broken]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment())
        assert done.returncode == 70
        assert done.stderr.splitlines()[0] == "promoterd: Internal error: ZeroDivisionError: of the mind."
        assert "PROMOTERD_DEBUG=1" in done.stderr
        assert "Traceback" not in done.stderr
        shown = subprocess.run(
            command, capture_output=True, text=True, check=False, env=environment({"PROMOTERD_DEBUG": "1"})
        )
        assert "Traceback" in shown.stderr
        in_json = subprocess.run([*command, "--json"], capture_output=True, check=False, env=environment())
        assert json.loads(in_json.stdout)["error"]["class"] == "InternalError"
