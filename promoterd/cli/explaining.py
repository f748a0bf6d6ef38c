"""``promoterd explain``: asked of the daemon, or found out without one."""

from typing import Any

from promoterd.cli import render
from promoterd.cli.asking import Daemon
from promoterd.cli.direct import look_at
from promoterd.cli.output import say_json, say_rich
from promoterd.cli.settings import mount_for, policy_for_acting
from promoterd.cli.typed import absolute
from promoterd.control.protocol import Request
from promoterd.explain import explain
from promoterd.mounted import Mounted


def explain_path(daemon: Daemon, typed: str, *, as_json: bool) -> None:
    """Print all that is known of a directory. Raises PromoterdError."""
    path = absolute(typed)
    answer = daemon.ask(Request(command="explain", path=path)) if daemon.runs else _directly(daemon, path)
    if as_json:
        say_json(answer)
    else:
        say_rich(*render.explanation(answer))


def _directly(daemon: Daemon, path: bytes) -> dict[str, Any]:
    policy = policy_for_acting(daemon.config)
    configured, inside = mount_for(policy, path)

    async def work(mount: Mounted) -> dict[str, Any]:
        return await explain(mount, inside, 0.0) | {"heat": None}

    return look_at(policy, configured, work)
