import asyncio
import os
import signal
import socket
import stat
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from promoterd.control import ControlServer, Request, peer, request
from promoterd.errors import (
    AlreadyLocked,
    DaemonUnreachable,
    NotPermitted,
    PolicyError,
    UsageError,
)
from support.controlling import GROUP, NOBODY, as_user, ask, run, serving


def test_nobody_listens(path: str, tmp_path: Path) -> None:
    for where in (path, str(tmp_path / "no" / "such")):
        with pytest.raises(DaemonUnreachable, match=f"No promoterd answers on {where}"):
            request(where, Request(command="status"))


def test_the_socket_is_removed_at_the_end_and_a_dead_one_taken_over(path: str) -> None:
    dead = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    dead.bind(path)
    dead.close()
    with pytest.raises(DaemonUnreachable):
        request(path, Request(command="status"))

    async def main() -> None:
        async with serving(path):
            assert await ask(path, "status") == {"mounts": 1}

    for _ in range(2):
        run(main)
        assert not os.path.exists(path)


def test_a_living_daemon_is_not_pushed_aside(path: str) -> None:
    async def main() -> None:
        async with serving(path):
            with pytest.raises(AlreadyLocked, match="answers on"):
                await ControlServer(path, None, {}).start()
            os.unlink(path + ".lock")  # a daemon that holds no lock is found by asking
            with pytest.raises(AlreadyLocked, match=f"process {os.getpid()} answers on"):
                await ControlServer(path, None, {}).start()
            assert await ask(path, "status") == {"mounts": 1}

    run(main)


def test_the_socket_of_a_killed_daemon_is_taken_over(path: str) -> None:
    script = f"""
        import asyncio
        from promoterd.control import ControlServer

        async def main():
            await ControlServer({path!r}, None, {{}}).start()
            print("up", flush=True)
            await asyncio.sleep(60)

        asyncio.run(main())
    """
    with subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)], stdout=subprocess.PIPE) as daemon:
        assert daemon.stdout is not None
        assert daemon.stdout.readline() == b"up\n"
        daemon.send_signal(signal.SIGKILL)
    assert os.path.exists(path)

    async def main() -> None:
        async with serving(path):
            assert await ask(path, "status") == {"mounts": 1}

    run(main)


def test_a_socket_that_is_somebody_elses_by_now_is_left_alone(path: str) -> None:
    other = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)

    async def main() -> None:
        async with serving(path):
            os.unlink(path)
            other.bind(path)

    run(main)
    assert os.path.exists(path)
    other.close()


def test_a_file_in_the_way_is_never_removed(path: str) -> None:
    Path(path).write_text("precious")

    async def main() -> None:
        with pytest.raises(UsageError, match="is not a socket"):
            await ControlServer(path, None, {}).start()

    run(main)
    assert Path(path).read_text() == "precious"


@pytest.mark.parametrize("place", ["no-such-directory/control.sock", "d" * 120])
def test_a_place_that_cannot_hold_a_socket(tmp_path: Path, place: str) -> None:
    async def main() -> None:
        with pytest.raises(UsageError, match="no control socket can be made at"):
            await ControlServer(str(tmp_path / place), None, {}).start()

    run(main)


# Who may


def test_an_unknown_group_is_named_with_the_way_out(path: str) -> None:
    async def main() -> None:
        with pytest.raises(PolicyError, match="'nosuchgroup'") as caught:
            await ControlServer(path, "nosuchgroup", {}).start()
        assert caught.value.hint == "`groupadd --system nosuchgroup` creates it"

    run(main)


@pytest.mark.needs("root")
def test_the_socket_file_is_for_root_and_the_group(path: str) -> None:
    async def main() -> None:
        async with serving(path):
            status = os.stat(path)
            assert (stat.S_IMODE(status.st_mode), status.st_uid) == (0o600, 0)
        async with serving(path, GROUP):
            status = os.stat(path)
            assert (stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid) == (0o660, 0, 1)

    run(main)


@pytest.mark.needs("root")
@pytest.mark.parametrize(
    ("group", "user_group", "groups", "allowed"),
    [
        (GROUP, NOBODY, [1], True),
        (GROUP, 1, [], True),
        (GROUP, NOBODY, [2, 3], False),
        (None, NOBODY, [1, 0], False),
        (None, 0, [], False),
    ],
)
@pytest.mark.parametrize("open_file", [False, True])
def test_only_the_group_gets_in(
    path: str, group: str | None, user_group: int, groups: list[int], allowed: bool, open_file: bool
) -> None:
    async def main() -> None:
        async with serving(path, group):
            if open_file:
                os.chmod(path, 0o666)
            result = await asyncio.to_thread(
                as_user, NOBODY, user_group, groups, lambda: request(path, Request(command="status"))
            )
        if allowed:
            assert result == {"mounts": 1}
        else:
            assert isinstance(result, NotPermitted)
            assert (f"root, or the group {GROUP}" if group else "needs root,") in result.message

    run(main)


@pytest.mark.needs("root")
def test_a_socket_that_cannot_even_be_seen_is_roots(tmp_path: Path) -> None:
    result = as_user(NOBODY, NOBODY, [], lambda: request(str(tmp_path / "control.sock"), Request(command="status")))
    assert isinstance(result, NotPermitted)
    assert result.exit_code == 7


@pytest.mark.needs("root")
def test_more_groups_than_the_kernel_call_can_give_are_read_from_proc() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    assert peer.peer_of(ours).groups == frozenset(os.getgroups())
    ours.close()
    theirs.close()
    pair = as_user(NOBODY, NOBODY, list(range(1, 301)), lambda: socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM))
    found = peer.peer_of(pair[0])
    assert (found.uid, found.gid) == (NOBODY, NOBODY)
    assert found.groups == frozenset(os.getgroups())  # /proc/<pid> is the main thread's
    for end in pair:
        end.close()
    with subprocess.Popen(["sleep", "60"], user=NOBODY, group=NOBODY, extra_groups=[3, 70000]) as other:
        assert peer.groups_of(other.pid) == {3, 70000}
        other.kill()
    assert peer.groups_of(other.pid) == frozenset()
