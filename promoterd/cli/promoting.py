"""``promoterd promote``: through the daemon, or without one."""

import asyncio
import os
from dataclasses import asdict
from typing import Any

from promoterd.activating import activate
from promoterd.cli import render
from promoterd.cli.asking import Daemon
from promoterd.cli.direct import work_on
from promoterd.cli.output import say_json, say_rich
from promoterd.cli.privilege import require_privilege
from promoterd.cli.progress import Advance, progress_bar
from promoterd.cli.settings import mount_for, policy_for_acting
from promoterd.cli.typed import absolute
from promoterd.control.protocol import Request
from promoterd.errors import Interrupted, Refused
from promoterd.handlers import promotion_result
from promoterd.mounted import Mounted
from promoterd.overlay import pins
from promoterd.paths import display, is_below, join, show
from promoterd.wanted import promote_wanted

_ACTIVATIONS = 5
"""How often it is tried to bring a mark into effect before the directory counts as pinned."""
_FIRST_PAUSE = 0.1


def promote_path(daemon: Daemon, typed: str, *, recursive: bool, as_json: bool) -> int:
    """Promote a directory, or what policy allows below it; 0 if anything was promoted. Raises PromoterdError."""
    path = absolute(typed)
    with progress_bar(display(path), wanted=not as_json) as advance:
        if daemon.runs:
            asked = Request(command="promote", path=path, recursive=recursive)
            answer = daemon.ask(asked, lambda said: advance(said.get("done", 0), said.get("of", 0)))
        else:
            answer = _directly(daemon, path, recursive=recursive, advance=advance)
    if as_json:
        say_json(answer)
    else:
        say_rich(*render.promotion(answer))
    good = any(one["outcome"] in ("marked", "observed", "primed") for one in answer["promotions"])
    return 0 if good else Refused.exit_code


def _directly(daemon: Daemon, path: bytes, *, recursive: bool, advance: Advance) -> dict[str, Any]:
    require_privilege()
    policy = policy_for_acting(daemon.config)
    configured, inside = mount_for(policy, path)

    async def work(mount: Mounted) -> dict[str, Any]:
        done = await promote_wanted(mount, inside, recursive=recursive, progress=advance)
        marked = [directory for one in done for directory in one.directories if mount.backend.marks]
        if mount.stopping and not marked:
            raise Interrupted(
                what=f"{display(path)} is not complete",
                hint="no reader sees a difference; the same command goes on from here",
            )
        answer = promotion_result(inside, done)
        if marked:
            answer |= await activate_marked(mount, marked)
        return answer

    os.chdir("/")  # our own working directory must not be what pins it
    return work_on(policy, configured, work)


async def activate_marked(mount: Mounted, marked: list[bytes]) -> dict[str, Any]:
    """Bring marks into effect; which of the directories are ``active``, and who holds those that are ``pinned``."""
    pause = _FIRST_PAUSE
    for attempt in range(_ACTIVATIONS):
        if attempt:
            await asyncio.sleep(pause)
            pause *= 2
        async with mount.changing:
            done = await activate(mount)
        pinned = [directory for directory in done.pinned if directory in marked]
        if not pinned or mount.stopping:
            break
    return await _effect(mount, marked, pinned)


async def _effect(mount: Mounted, marked: list[bytes], pinned: list[bytes]) -> dict[str, Any]:
    """Which directories are active, and who holds the others: one that holds a directory holds those above it."""
    tops = [path for path in pinned if not any(path != other and is_below(path, other) for other in pinned)]
    held = []
    for path in tops:
        found = await mount.run(pins.holders, join(mount.overlay.mountpoint.rstrip(b"/"), path))
        held.append({"path": show(path), "holders": [asdict(holder) for holder in found]})
    return {"active": [show(path) for path in marked if path not in pinned], "pinned": held}
