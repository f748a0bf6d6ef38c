import asyncio
import ctypes
import grp
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import textwrap
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from promoterd.control import ControlServer, Progress, Request, peer, request
from promoterd.control.protocol import MAX_REQUEST, request_to_line
from promoterd.errors import (
    AlreadyLocked,
    DaemonUnreachable,
    NotPermitted,
    PolicyError,
    PromoterdError,
    Refused,
    UsageError,
)

GROUP = grp.getgrgid(1).gr_name
NOBODY = 65534
ODD = b"/mnt/\xff\n"


@pytest.fixture
def path() -> Iterator[str]:
    """A socket in a directory that everybody may enter."""
    directory = tempfile.mkdtemp(prefix="promoterd-control-")
    os.chmod(directory, 0o755)  # noqa: S103 - as /run/promoterd
    yield f"{directory}/control.sock"
    shutil.rmtree(directory)


class Daemon:
    """Handlers that say what they were asked."""

    def __init__(self) -> None:
        self.asked: list[Request] = []
        self.release = asyncio.Event()
        self.finished = asyncio.Event()

    def table(self) -> dict[str, Callable[[Request, Progress], Awaitable[dict[str, Any]]]]:
        return {"status": self.status, "promote": self.promote, "explain": self.explain, "top": self.top}

    async def status(self, asked: Request, _progress: Progress) -> dict[str, Any]:
        self.asked.append(asked)
        return {"mounts": 1}

    async def promote(self, asked: Request, progress: Progress) -> dict[str, Any]:
        for done in range(3):
            progress({"path": asked.path, "done": done})
            await asyncio.sleep(0)
        return {"path": asked.path}

    async def explain(self, asked: Request, _progress: Progress) -> dict[str, Any]:
        if asked.path == b"/refused":
            raise Refused(path="/refused", reason="growing", hint="say so in the policy")
        raise ZeroDivisionError

    async def top(self, _asked: Request, progress: Progress) -> dict[str, Any]:
        for _ in range(2000):
            progress({"text": "x" * 1000})
        await self.release.wait()
        self.finished.set()
        return {}


@asynccontextmanager
async def serving(path: str, group: str | None = None, **options: float) -> AsyncIterator[Daemon]:
    daemon = Daemon()
    server = ControlServer(path, group, daemon.table(), **options)
    await server.start()
    try:
        async with asyncio.timeout(20):
            yield daemon
    finally:
        await server.stop()


async def ask(
    where: str,
    command: Any,
    path: bytes | None = None,
    progress: Callable[[Any], None] | None = None,
    silence: float = 10,
) -> dict[str, Any]:
    asked = Request(command=command) if path is None else Request(command=command, path=path)
    return await asyncio.to_thread(request, where, asked, progress, silence=silence)


async def converse(path: str, line: bytes) -> list[dict[str, Any]]:
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(line)
    answer = await reader.read()
    writer.close()
    return [json.loads(part) for part in answer.splitlines() if part]


def as_user(user: int, group: int, groups: list[int], work: Callable[[], Any]) -> Any:
    """What ``work`` returns or raises in a thread with other credentials: they belong to threads (credentials(7))."""
    result: list[Any] = []

    def other() -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        array = (ctypes.c_uint32 * len(groups))(*groups)
        numbers = {"x86_64": (116, 119, 117), "aarch64": (159, 149, 147)}[os.uname().machine]
        assert libc.syscall(numbers[0], len(groups), array) == 0
        assert libc.syscall(numbers[1], group, group, group) == 0
        assert libc.syscall(numbers[2], user, user, user) == 0
        try:
            result.append(work())
        except PromoterdError as error:
            result.append(error)

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    return result[0]


def run(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(main())


# What is asked and answered


def test_a_request_is_handled_and_its_result_comes_back(path: str) -> None:
    async def main() -> None:
        async with serving(path) as daemon:
            assert await ask(path, "status", path=ODD) == {"mounts": 1}
            assert daemon.asked == [Request(command="status", path=ODD)]

    run(main)


def test_progress_comes_before_the_result_and_paths_survive(path: str) -> None:
    seen: list[dict[str, Any]] = []

    async def main() -> None:
        async with serving(path):
            result = await ask(path, "promote", path=ODD, progress=seen.append)
            assert os.fsencode(result["path"]) == ODD
            assert [(os.fsencode(one["path"]), one["done"]) for one in seen] == [(ODD, 0), (ODD, 1), (ODD, 2)]
            lines = await converse(path, request_to_line(Request(command="promote", path=b"/lib")))
            assert [list(line) for line in lines] == [["progress"]] * 3 + [["result"]]

    run(main)


def test_an_error_comes_back_as_itself_and_a_bug_as_no_traceback(path: str) -> None:
    async def main() -> None:
        async with serving(path):
            with pytest.raises(Refused) as caught:
                await ask(path, "explain", path=b"/refused")
            assert (caught.value.message, caught.value.hint) == (
                "/refused is refused: growing.",
                "say so in the policy",
            )
            with pytest.raises(PromoterdError, match="the daemon failed to do this"):
                await ask(path, "explain", path=b"/bug")
            with pytest.raises(UsageError, match="does not know 'reload'"):
                await ask(path, "reload")
            assert await ask(path, "status") == {"mounts": 1}

    run(main)


@pytest.mark.parametrize(
    "rubbish", [b"\n", b"\x00\xff\n", b"GET / HTTP/1.1\r\n", b'{"version": 1}\n', b"[" * 9999 + b"\n"]
)
def test_rubbish_is_answered_and_harms_nobody(path: str, rubbish: bytes) -> None:
    async def main() -> None:
        async with serving(path):
            ((line,), again) = await converse(path, rubbish), await ask(path, "status")
            assert line["error"]["class"] == "UsageError"
            assert line["error"]["exit_code"] == 2
            assert again == {"mounts": 1}

    run(main)


def test_an_endless_line_is_cut_off(path: str) -> None:
    async def main() -> None:
        async with serving(path):
            reader, writer = await asyncio.open_unix_connection(path)
            writer.write(b"x" * (MAX_REQUEST * 3))
            line = json.loads(await reader.readline())
            assert "longer than 65536 bytes" in line["error"]["message"]
            writer.close()
            assert await ask(path, "status") == {"mounts": 1}

    run(main)


# Clients that misbehave


def test_a_client_that_never_asks_holds_up_nobody_and_is_sent_away(path: str) -> None:
    async def main() -> None:
        async with serving(path, patience=0.3):
            silent = [await asyncio.open_unix_connection(path) for _ in range(20)]
            silent[0][1].write(b'{"version": 1, ')
            assert await ask(path, "status") == {"mounts": 1}
            for reader, writer in silent:
                assert "no request came within 0.3 seconds" in json.loads(await reader.readline())["error"]["message"]
                assert await reader.read() == b""
                writer.close()

    run(main)


def test_a_client_that_never_reads_holds_up_nobody_and_what_it_cannot_take_is_dropped(path: str) -> None:
    async def main() -> None:
        async with serving(path, patience=0.3) as daemon:
            deaf = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            deaf.connect(path)
            deaf.sendall(request_to_line(Request(command="top")))
            assert await ask(path, "status") == {"mounts": 1}
            daemon.release.set()
            await daemon.finished.wait()
            await asyncio.sleep(0.5)
            deaf.settimeout(5)
            received = b""
            while chunk := deaf.recv(1 << 20):
                received += chunk
            assert 1000 < len(received) < 1_000_000
            deaf.close()

    run(main)


def test_a_client_that_goes_away_does_not_stop_what_it_asked_for(path: str) -> None:
    async def main() -> None:
        async with serving(path) as daemon:
            _, writer = await asyncio.open_unix_connection(path)
            writer.write(request_to_line(Request(command="top")))
            await writer.drain()
            await asyncio.sleep(0.1)
            writer.transport.abort()
            assert await ask(path, "status") == {"mounts": 1}
            daemon.release.set()
            await daemon.finished.wait()

    run(main)


def test_there_is_an_end_to_the_number_of_clients(path: str) -> None:
    async def main() -> None:
        async with serving(path):
            crowd = [await asyncio.open_unix_connection(path) for _ in range(64)]
            with pytest.raises(PromoterdError, match="busy with other requests"):
                await ask(path, "status")
            for _, writer in crowd:
                writer.close()
            await asyncio.sleep(0.1)
            assert await ask(path, "status") == {"mounts": 1}

    run(main)


def test_signs_of_life_keep_a_patient_client_waiting(path: str) -> None:
    async def main() -> None:
        async with serving(path, heartbeat=0.05) as daemon:
            waiting = asyncio.create_task(ask(path, "top", silence=0.5))
            await asyncio.sleep(1.0)
            daemon.release.set()
            assert await waiting == {}

    run(main)


def test_a_daemon_that_says_nothing_is_given_up(path: str) -> None:
    async def main() -> None:
        async with serving(path, heartbeat=30.0):
            with pytest.raises(DaemonUnreachable, match=r"has said nothing for 0\.3 seconds"):
                await ask(path, "top", silence=0.3)

    run(main)


def test_stopping_ends_what_still_waits_and_says_so(path: str) -> None:
    async def main() -> None:
        async with serving(path) as daemon:
            waiting = asyncio.create_task(ask(path, "top"))
            await asyncio.sleep(0.2)
        with pytest.raises(DaemonUnreachable, match="went away before it answered"):
            await waiting
        assert not daemon.finished.is_set()

    run(main)


# The socket file


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
                os.chmod(path, 0o666)  # noqa: S103 - even so the peer's credentials are looked at
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
