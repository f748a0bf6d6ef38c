"""Commands that the running daemon answers."""

import time
from collections.abc import Callable
from functools import cached_property
from typing import Any

from promoterd.cli import render
from promoterd.cli.output import say, say_json, say_rich
from promoterd.cli.progress import sign_of_life
from promoterd.cli.settings import socket_path
from promoterd.cli.typed import absolute
from promoterd.control.client import request
from promoterd.control.peer import owner_process
from promoterd.control.protocol import Request
from promoterd.errors import Deferred, Interrupted

ShowProgress = Callable[[dict[str, Any]], None]


class Daemon:
    """The daemon that the options lead to, if it runs. Every method raises PolicyError where --config is wrong."""

    def __init__(self, config: str | None, socket: str | None) -> None:
        self.config = config
        self._socket = socket

    @cached_property
    def socket(self) -> str:
        """The path of its control socket."""
        return socket_path(self.config, self._socket)

    @property
    def runs(self) -> bool:
        """Whether somebody listens there; yes where this user may not find out, so that asking says why."""
        try:
            return owner_process(self.socket) is not None
        except NotADirectoryError:
            return False
        except OSError:
            return True

    def ask(self, asked: Request, on_progress: ShowProgress | None = None) -> dict[str, Any]:
        """The daemon's answer. Raises what :func:`promoterd.control.request` raises, and Interrupted."""
        try:
            return request(self.socket, asked, on_progress)
        except KeyboardInterrupt as error:
            raise Interrupted(
                what="the daemon was asked and goes on", hint="`promoterd status` shows what came of it"
            ) from error


def _chosen(mount: str | None) -> bytes | None:
    return None if mount is None else absolute(mount)


def status(daemon: Daemon, mount: str | None, *, as_json: bool) -> None:
    """Every mount, or one."""
    answer = daemon.ask(Request(command="status", path=_chosen(mount)))
    if as_json:
        say_json(answer)
    else:
        say_rich(*render.status(answer))


def top(daemon: Daemon, mount: str | None, *, limit: int, again: float | None, as_json: bool) -> None:
    """The hottest directories, once or every ``again`` seconds."""
    asked = Request(command="top", path=_chosen(mount), limit=limit)
    if again is not None and not as_json:
        _watch(daemon, asked, again)
        return
    while True:
        answer = daemon.ask(asked)
        if as_json:
            say_json(answer, on_one_line=again is not None)
        else:
            say_rich(*render.top(answer))
        if again is None:
            return
        _pause(again)


def _pause(seconds: float) -> None:
    try:
        time.sleep(seconds)
    except KeyboardInterrupt as error:
        raise Interrupted(what="stopped by the user") from error


def _watch(daemon: Daemon, asked: Request, again: float) -> None:
    """On the terminal until Ctrl-C, which is how this ends well."""
    from rich.console import Group
    from rich.live import Live

    with Live(auto_refresh=False, screen=True) as live:
        try:
            while True:
                live.update(Group(*render.top(request(daemon.socket, asked))), refresh=True)
                time.sleep(again)
        except KeyboardInterrupt:
            return


def pause(daemon: Daemon, mount: str | None, *, as_json: bool) -> None:
    """Promote nothing on one mount, or on any."""
    answer = daemon.ask(Request(command="pause", path=_chosen(mount)))
    _say_mounts(answer, "paused", as_json=as_json)


def resume(daemon: Daemon, mount: str | None, *, as_json: bool) -> None:
    """Go on."""
    answer = daemon.ask(Request(command="resume", path=_chosen(mount)))
    _say_mounts(answer, "resumed", as_json=as_json)


def reload(daemon: Daemon, *, as_json: bool) -> None:
    """Read the policy again."""
    _say_mounts(daemon.ask(Request(command="reload")), "mounts", as_json=as_json, word="reloaded, with")


def retire(daemon: Daemon, mount: str, *, as_json: bool) -> int:
    """Undo everything on a mount; the exit code says whether something has to wait."""
    asked = Request(command="retire", path=absolute(mount))
    with sign_of_life("retiring: waiting until nobody has written there for a while …", wanted=not as_json):
        answer = daemon.ask(asked)
    if as_json:
        say_json(answer)
    else:
        say(f"retired {answer['retired']}\n")
        say_rich(*render.reopened(answer))
    return Deferred.exit_code if answer["deferred"] else 0


def _say_mounts(answer: dict[str, Any], key: str, *, as_json: bool, word: str | None = None) -> None:
    if as_json:
        say_json(answer)
        return
    for name in answer[key] or ["no mount"]:
        say(f"{word or key} {name}\n")
