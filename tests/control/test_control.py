import asyncio
import json
import os
import socket
from typing import Any

import pytest

from promoterd.control import Request
from promoterd.control.protocol import MAX_REQUEST, request_to_line
from promoterd.errors import (
    DaemonUnreachable,
    PromoterdError,
    Refused,
    UsageError,
)
from support.controlling import ODD, ask, converse, run, serving


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
