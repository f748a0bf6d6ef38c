"""The command line's end of the control socket."""

import json
import os
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Any, BinaryIO

from promoterd.control.peer import group_name
from promoterd.control.protocol import Request, message_to_error, request_to_line
from promoterd.errors import DaemonUnreachable, NotPermitted


def request(
    path: str,
    asked: Request,
    on_progress: Callable[[dict[str, Any]], None] | None = None,
    *,
    silence: float = 60.0,
) -> dict[str, Any]:
    """Ask the daemon that listens on the socket ``path``, and wait for the result; each progress goes to the callback.

    Raises DaemonUnreachable where no daemon listens, or it goes away or says nothing for ``silence`` seconds;
    NotPermitted where the socket is not for this user; and whatever error the daemon met.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(silence)
        try:
            connection.connect(path)
        except PermissionError as error:
            raise NotPermitted(needed=_who_may(path), hint="run it as root, or join that group") from error
        except OSError as error:
            raise DaemonUnreachable(socket=path) from error
        try:
            with suppress(BrokenPipeError):  # the daemon hung up early, and has said why
                connection.sendall(request_to_line(asked))
            with connection.makefile("rb") as lines:
                return _result(path, lines, on_progress)
        except TimeoutError as error:
            text = f"the promoterd on {path} has said nothing for {silence:g} seconds"
            raise DaemonUnreachable(text, hint="its log may say why: `journalctl -u promoterd`") from error
        except OSError as error:
            raise _went_away(path) from error


def _result(path: str, lines: BinaryIO, on_progress: Callable[[dict[str, Any]], None] | None) -> dict[str, Any]:
    for line in lines:
        if not line.strip():
            continue
        try:
            message = json.loads(line)
        except ValueError as error:
            raise _went_away(path) from error
        if "error" in message:
            raise message_to_error(message["error"])
        if "result" in message:
            result: dict[str, Any] = message["result"]
            return result
        if on_progress is not None:
            on_progress(message.get("progress", {}))
    raise _went_away(path)


def _went_away(path: str) -> DaemonUnreachable:
    hint = f"it stopped or was killed; {DaemonUnreachable.hint_if_it_goes}"
    return DaemonUnreachable(f"the promoterd on {path} went away before it answered", hint=hint)


def _who_may(path: str) -> str:
    """Who can use the socket; root where this user may not even see it."""
    try:
        status = os.stat(path)
    except OSError:
        return "root"
    return f"root, or the group {group_name(status.st_gid)}" if status.st_mode & 0o020 else "root"
