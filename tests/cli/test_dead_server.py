"""Commands on a mount whose server does not answer: they end.

The server is stopped by a signal and reads no request, so that who waits for an answer can be killed, as on NFS
(request_wait_answer, fs/fuse/dev.c).
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from promoterd.demo.view import differences, snapshot
from support.commands import environment, promoterd
from support.daemons import RunningDaemon, wait_for
from support.promotions import assert_marks_are_sound
from support.sites import Site
from support.soundness import is_whiteout
from support.trees import files


@contextmanager
def stopped(site: Site) -> Iterator[None]:
    server = site.mounted.counted.pid
    assert server is not None
    os.kill(server, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(server, signal.SIGCONT)


def state(pid: int) -> str:
    with open(f"/proc/{pid}/stat", encoding="ascii") as file:
        return file.read().rpartition(")")[2].split()[0]


def test_promoting_there(make_site: Callable[..., Site]) -> None:
    site = make_site(counting=True)
    with stopped(site):
        begun = time.monotonic()
        ran = promoterd("promote", site.at("app/lib"), "--config", site.config)
        assert time.monotonic() - begun < 30
    assert ran.code == 5
    assert os.fsdecode(site.mounted.layers[0]) in ran.err


def test_it_dies_half_way_and_ctrl_c_still_works(make_site: Callable[..., Site]) -> None:
    site = make_site({"app": {"lib": files(500)}}, counting=True)
    site.mount["limits"]["entries_per_second"] = 120
    site.write()
    before = snapshot(site.mounted.mountpoint, threads=1)
    with subprocess.Popen(
        [sys.executable, "-m", "promoterd", "promote", site.at("app/lib"), "--config", site.config],
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    ) as process:
        wait_for(lambda: os.path.exists(site.mounted.in_upper("app/lib/f0000")), poll=0.005)
        with stopped(site):
            time.sleep(1.5)
            process.send_signal(signal.SIGINT)
            time.sleep(0.5)
            assert process.poll() is None, "it lets the step that is under way end"
            process.send_signal(signal.SIGINT)
            wait_for(lambda: state(process.pid) == "Z", 8)  # a thread of it may wait for an answer that was on its way
        _, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "Ctrl-C again stops at once" in err
    assert "Traceback" not in err
    site.mount["limits"]["entries_per_second"] = "unlimited"
    site.write()
    assert promoterd("promote", site.at("app/lib"), "--config", site.config).code == 0
    assert assert_marks_are_sound(site.mounted) == [b"app/lib"]
    assert differences(before, snapshot(site.mounted.mountpoint, threads=1)) == []


def is_asked(socket: str) -> bool:
    """Whether there is a connection beside the socket that listens (proc(5), net/unix)."""
    with open("/proc/net/unix", encoding="utf-8", errors="replace") as file:
        return sum(line.rstrip().endswith(socket) for line in file) > 1


def test_the_daemon_answers_and_ends(make_site: Callable[..., Site]) -> None:
    site = make_site(counting=True)
    site.mount["limits"]["stuck_after"] = "0.3s"
    with RunningDaemon(os.fsencode(site.base), site.mount) as daemon:
        daemon.start(watching=3)
        with (
            stopped(site),
            subprocess.Popen(
                [sys.executable, "-m", "promoterd", "promote", site.at("app/lib"), "--socket", daemon.socket],
                stderr=subprocess.PIPE,
                env=environment(),
            ) as asking,
        ):
            wait_for(lambda: is_asked(daemon.socket))
            wait_for(lambda: daemon.status()["stuck"])
            said = promoterd("status", "--socket", daemon.socket)
            assert (said.code, "stuck" in said.out) == (0, True)
            daemon.signal(signal.SIGTERM)
            wait_for(lambda: daemon.status()["phase"] == "closing")
            late = promoterd("promote", site.at("app/lib"), "--socket", daemon.socket)
            assert (late.code, "is stopping" in late.err) == (9, True), late.err
            daemon.stop()
            _, said_at_last = asking.communicate(timeout=5)
        assert asking.returncode == 9, said_at_last


def test_it_dies_before_the_mount_is_given_back(make_site: Callable[..., Site]) -> None:
    """A rmdir that is killed while it waits would leave a whiteout in the root, and another time on it."""
    site = make_site(counting=True)
    before = os.stat(site.mounted.mountpoint).st_mtime_ns
    with RunningDaemon(os.fsencode(site.base), site.mount) as daemon:
        daemon.start(watching=3)
        with stopped(site):
            daemon.stop()
        assert [name for name in os.listdir(site.mounted.upper) if is_whiteout(site.mounted.in_upper(name))] == []
        assert os.stat(site.mounted.mountpoint).st_mtime_ns == before
        daemon.start()
        daemon.stop()
    assert os.listdir(site.mounted.upper) == []
    assert os.stat(site.mounted.mountpoint).st_mtime_ns == before
