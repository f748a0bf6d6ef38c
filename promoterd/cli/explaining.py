"""``promoterd explain``: asked of the daemon, or found out without one."""

import math
from typing import Any

from promoterd.cli import render
from promoterd.cli.asking import Daemon
from promoterd.cli.direct import look_at
from promoterd.cli.output import say_json, say_rich
from promoterd.cli.privilege import require_privilege
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
    require_privilege()
    policy = policy_for_acting(daemon.config)
    configured, inside = mount_for(policy, path)

    async def work(mount: Mounted) -> dict[str, Any]:
        found = await explain(mount, inside, math.inf) | {"heat": None}
        if found["blocked_by"] is None and found["state"] in ("cold", "hot") and found["threshold"] is not None:
            found["blocked_by"] = "nothing but its heat, which only the daemon knows"
        return found

    return look_at(policy, configured, work)
