"""The daemon's end of the control socket."""

import asyncio
import fcntl
import os
import socket
import stat
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Any

from promoterd.control.peer import Peer, group_id, group_name, owner_process, peer_of
from promoterd.control.protocol import MAX_REQUEST, Request, error_to_message, line_to_request, to_line
from promoterd.errors import AlreadyLocked, NotPermitted, PromoterdError, UsageError
from promoterd.log import get_logger

Progress = Callable[[Mapping[str, object]], None]
"""Tell the one who asked how far it is. Never waits: what a slow reader cannot take is dropped."""
Handler = Callable[[Request, Progress], Awaitable[dict[str, Any]]]
"""Do what a request asks and return the result; a PromoterdError goes to the one who asked. Bytes are sent as paths."""

_MAX_CLIENTS = 64
_MAX_UNSENT = 64 * 1024
_BACKLOG = 128
_FAREWELL = 1.0  # seconds that a cancelled request may take to end
log = get_logger(__name__)


class ControlServer:
    """Answers on the socket ``path`` between :meth:`start` and :meth:`stop`; ``handlers`` by the request's command.

    Root may use it, and the members of ``group`` if there is one. One request to a connection; a client that goes away
    does not stop what it asked for. ``patience``: seconds that a client may take to ask, or to take its answer;
    ``heartbeat``: seconds between signs of life while it waits.
    """

    def __init__(
        self,
        path: str,
        group: str | None,
        handlers: Mapping[str, Handler],
        *,
        patience: float = 30.0,
        heartbeat: float = 10.0,
    ) -> None:
        self.path = path
        self.handlers = handlers
        self.group = group
        self._patience = patience
        self._heartbeat = heartbeat
        self._group_id: int | None = None
        self._clients: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self._lock: int | None = None
        self._identity: tuple[int, int] | None = None

    async def start(self) -> None:
        """Listen. A socket file that nobody listens on is replaced.

        Raises AlreadyLocked where another daemon answers, PolicyError where the group does not exist, and UsageError
        where no socket can be made there.
        """
        self._group_id = None if self.group is None else group_id(self.group)
        self._lock = _lock(self.path)
        try:
            listener = _listen(self.path, self._group_id)
            status = os.lstat(self.path)
            self._identity = (status.st_dev, status.st_ino)
            self._server = await asyncio.start_unix_server(
                self._accept, sock=listener, limit=MAX_REQUEST, backlog=_BACKLOG
            )
        except BaseException:
            self._release()
            raise

    async def stop(self) -> None:
        """Stop listening, drop everyone who waits, and remove the socket file unless it is somebody else's by now."""
        if self._server is None:
            return
        self._server.close()
        self._server = None
        for client in list(self._clients):
            client.cancel()
        if self._clients:
            await asyncio.wait(self._clients, timeout=_FAREWELL)
        with suppress(FileNotFoundError):
            status = os.lstat(self.path)
            if (status.st_dev, status.st_ino) == self._identity:
                os.unlink(self.path)
        self._release()

    def _release(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(self._serve(reader, writer))
        self._clients.add(task)
        task.add_done_callback(self._clients.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            answer = await self._answer(reader, writer)
            if not writer.is_closing():
                writer.write(answer)
                async with asyncio.timeout(self._patience):
                    await writer.drain()
                    writer.close()
                    await writer.wait_closed()
        except (OSError, TimeoutError):
            log.debug("control_client_lost")
        finally:
            writer.transport.abort()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
        try:
            peer = self._admit(writer)
            request = await self._read(reader)
            log.info("control_request", command=request.command, uid=peer.uid, pid=peer.pid)
            return to_line({"result": await self._handle(request, writer)})
        except PromoterdError as error:
            return to_line({"error": error_to_message(error)})
        except Exception:
            log.exception("control_failed")
            failure = PromoterdError("the daemon failed to do this", hint="its log says why")
            return to_line({"error": error_to_message(failure)})

    def _admit(self, writer: asyncio.StreamWriter) -> Peer:
        peer = peer_of(writer.get_extra_info("socket"))
        if not peer.may_control(self._group_id):
            log.warning("control_denied", uid=peer.uid, pid=peer.pid)
            needed = "root" if self._group_id is None else f"root, or the group {group_name(self._group_id)}"
            raise NotPermitted(needed=needed)
        if len(self._clients) > _MAX_CLIENTS:
            raise PromoterdError("the daemon is busy with other requests", hint="try again")
        return peer

    async def _read(self, reader: asyncio.StreamReader) -> Request:
        try:
            async with asyncio.timeout(self._patience):
                line = await reader.readline()
        except TimeoutError as error:
            raise UsageError(f"no request came within {self._patience:g} seconds") from error
        except ValueError as error:  # what StreamReader raises for a line beyond its limit
            raise UsageError(f"the request is longer than {MAX_REQUEST} bytes") from error
        return line_to_request(line)

    async def _handle(self, request: Request, writer: asyncio.StreamWriter) -> dict[str, Any]:
        handler = self.handlers.get(request.command)
        if handler is None:
            raise UsageError(f"this daemon does not know {request.command!r}")

        def progress(message: Mapping[str, object]) -> None:
            if not writer.is_closing() and writer.transport.get_write_buffer_size() < _MAX_UNSENT:
                writer.write(to_line({"progress": dict(message)}))

        work = asyncio.ensure_future(handler(request, progress))
        try:
            while not (await asyncio.wait({work}, timeout=self._heartbeat))[0]:
                if not writer.is_closing() and writer.transport.get_write_buffer_size() == 0:
                    writer.write(b"\n")
        except asyncio.CancelledError:
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)
            raise
        return work.result()


def _lock(path: str) -> int:
    """Hold the file beside the socket: of two daemons that find the same dead socket, one replaces it."""
    try:
        descriptor = os.open(path + ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise _cannot_listen(path, error) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        raise _answered(path, None) from error
    return descriptor


def _listen(path: str, group: int | None) -> socket.socket:
    try:
        _clear(path)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            listener.bind(path)
            # until listen(2) every connect(2) is refused, so nobody slips in before the mode is right
            os.chown(path, -1, -1 if group is None else group, follow_symlinks=False)
            os.chmod(path, 0o600 if group is None else 0o660)
        except BaseException:
            listener.close()
            raise
    except OSError as error:
        raise _cannot_listen(path, error) from error
    return listener


def _clear(path: str) -> None:
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(status.st_mode):
        raise UsageError(f"{path} is not a socket", hint="move it away, or choose another control socket")
    owner = owner_process(path)
    if owner is not None:
        raise _answered(path, owner)
    os.unlink(path)


def _answered(path: str, owner: int | None) -> AlreadyLocked:
    who = f"process {owner}" if owner else "another process"
    return AlreadyLocked(f"{who} answers on {path} already", hint="stop the other promoterd first")


def _cannot_listen(path: str, error: OSError) -> UsageError:
    hint = "choose another control socket, or make its directory"
    return UsageError(f"no control socket can be made at {path}: {error.strerror or error}", hint=hint)
