"""``promoterd run``: what keeps it from starting, and how it ends."""

import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from support.commands import Ran, environment, promoterd
from support.daemons import RunningDaemon, wait_for
from support.needs import need
from support.sites import Site


def run(site: Site) -> Ran:
    site.write()
    return promoterd("run", "--config", site.config)


class TestItDoesNotStart:
    def test_without_a_policy(self) -> None:
        need("root")
        ran = promoterd("run", "--config", "/nonexistent.yaml")
        assert ran.code == 3
        assert "/nonexistent.yaml: found no such file" in ran.err

    def test_with_a_bad_policy(self, site: Site) -> None:
        site.policy["mounts"][0]["backend"] = "opaqe"
        ran = run(site)
        assert ran.code == 3
        assert "mounts[0].backend" in ran.err
        assert "did you mean opaque?" in ran.err

    def test_with_something_else_than_a_policy(self, site: Site) -> None:
        site.file.write_bytes(os.urandom(512))
        assert promoterd("run", "--config", site.config).code == 3

    def test_where_the_state_cannot_be_kept(self, site: Site) -> None:
        site.state_dir.write_text("a file")
        ran = run(site)
        assert ran.code == 12
        assert str(site.state_dir) in ran.err
        assert "root can write" in ran.hint

    def test_where_others_could_write_the_state(self, site: Site) -> None:
        site.state_dir.mkdir()
        site.state_dir.chmod(0o777)
        ran = run(site)
        assert ran.code == 12
        assert "chmod 0700" in ran.hint

    def test_with_a_newer_ledger(self, site: Site) -> None:
        site.state_dir.mkdir(mode=0o700)
        with sqlite3.connect(site.state_dir / "ledger.sqlite") as database:
            database.execute("PRAGMA user_version = 1000")
        database.close()
        ran = run(site)
        assert ran.code == 12
        assert "newer promoterd" in ran.err

    def test_when_the_port_is_taken(self, site: Site) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            address = f"127.0.0.1:{taken.getsockname()[1]}"
            site.policy["metrics"]["listen"] = address
            ran = run(site)
        assert ran.code == 2
        assert address in ran.err
        assert "metrics" in ran.err

    def test_when_the_socket_is_in_use(self, site: Site) -> None:
        with socket.socket(socket.AF_UNIX) as other:
            other.bind(str(site.socket))
            other.listen()
            ran = run(site)
        assert ran.code == 8
        assert str(site.socket) in ran.err
        assert f"process {os.getpid()}" in ran.err

    def test_when_a_file_is_in_the_sockets_place(self, site: Site) -> None:
        site.socket.write_text("precious")
        ran = run(site)
        assert ran.code == 2
        assert f"{site.socket} is not a socket" in ran.err
        assert site.socket.read_text() == "precious"

    def test_where_there_is_no_place_for_the_socket(self, site: Site) -> None:
        site.policy["control"]["socket"] = "/proc/nowhere/control.sock"
        ran = run(site)
        assert ran.code == 2
        assert "/proc/nowhere/control.sock" in ran.err

    def test_for_a_group_that_does_not_exist(self, site: Site) -> None:
        site.policy["control"]["group"] = "nosuchgroup"
        ran = run(site)
        assert ran.code == 3
        assert "nosuchgroup" in ran.err
        assert "groupadd" in ran.hint


class TestItEnds:
    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    def test_on_a_signal(self, site: Site, number: signal.Signals) -> None:
        with RunningDaemon(os.fsencode(site.base), site.mount) as daemon:
            daemon.start()
            begun = time.monotonic()
            daemon.signal(number)
            assert daemon.running.wait(5) == 0
            assert time.monotonic() - begun < 5
            daemon.process = None
            daemon.assert_no_surprise()
            assert not os.path.exists(daemon.socket)
        assert os.listdir(site.mounted.upper) == []

    def test_at_any_moment_of_its_start(self, site: Site) -> None:
        for delay in (0.1, 0.3, 0.5, 0.6, 0.65, 0.7, 0.75, 0.8, 1.0):
            with subprocess.Popen(
                [sys.executable, "-m", "promoterd", "run", "--config", site.config],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env=environment(),
            ) as process:
                time.sleep(delay)
                process.terminate()
                out, err = process.communicate(timeout=10)
            assert "Traceback" not in out + err, f"after {delay} s: {err}"
            assert process.returncode in (0, -signal.SIGTERM), f"after {delay} s: {err}"
            assert os.listdir(site.mounted.upper) == [], f"after {delay} s: {err}"

    def test_with_its_mount_given_back(self, site: Site) -> None:
        with RunningDaemon(os.fsencode(site.base), site.mount) as daemon:
            daemon.start()
            daemon.stop()
        assert promoterd("promote", site.at("app/lib"), "--config", site.config).code == 0


class TestItStarts:
    def test_with_what_is_doubtful_in_the_log(self, site: Site) -> None:
        mount = site.mount | {"rules": [{"path": "app", "promote": "never"}]}
        with RunningDaemon(os.fsencode(site.base), mount) as daemon:
            daemon.start()
            assert "no rule lets anything be promoted" in daemon.wait_event("policy_doubt")["reason"]

    def test_by_the_environment(self, site: Site, tmp_path: Path) -> None:
        policy = site.policy | {"mounts": [site.mount]}
        other = tmp_path / "other.yaml"
        other.write_text(yaml.safe_dump(policy))
        with subprocess.Popen(
            [sys.executable, "-m", "promoterd", "run"],
            stderr=subprocess.DEVNULL,
            env=environment({"PROMOTERD_CONFIG": str(other)}),
        ) as process:
            wait_for(site.socket.exists)
            process.terminate()
            assert process.wait(5) == 0

    def test_small(self, site: Site) -> None:
        """Idle, without watches to speak of."""
        with RunningDaemon(os.fsencode(site.base), site.mount) as daemon:
            daemon.start()
            with open(f"/proc/{daemon.pid}/status") as file:
                kilobytes = next(int(line.split()[1]) for line in file if line.startswith("VmRSS:"))
        assert kilobytes < 80_000

    def test_a_damaged_ledger_is_begun_anew(self, site: Site) -> None:
        site.state_dir.mkdir(mode=0o700)
        (site.state_dir / "ledger.sqlite").write_bytes(b"SQLite format 3\0" + os.urandom(8192))
        with RunningDaemon(os.fsencode(site.base), site.mount) as daemon:
            daemon.start()
            assert daemon.find("ledger_rebuilt")
