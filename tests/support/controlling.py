"""A control socket with handlers behind it that say what they were asked, and clients of all kinds."""

import asyncio
import ctypes
import grp
import json
import os
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

from promoterd.control import ControlServer, Progress, Request, request
from promoterd.errors import PromoterdError, Refused

GROUP = grp.getgrgid(1).gr_name
NOBODY = 65534
ODD = b"/mnt/\xff\n"


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
