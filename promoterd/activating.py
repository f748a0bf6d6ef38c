"""From marked to active: one reconfigure for all that wait, and a proof for each (R13, R14)."""

import asyncio
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from promoterd.backends.base import MarkState
from promoterd.errors import Refused
from promoterd.mounted import Mounted
from promoterd.overlay import activation, beneath
from promoterd.overlay.listing import Layers
from promoterd.paths import display, join, show
from promoterd.staleness import Verdict, examine
from promoterd.states import State

BACKOFF_MOST = 3600.0
"""Seconds between two reconfigures while only pinned directories wait."""
UNPROVEN = "effect unproven: this upper file system does not count links of directories"
_READINGS, _PAUSE = 3, 0.1
_SAMPLE = 8
"""How many entries of a newly active directory are read back, besides its listing."""


@dataclass(frozen=True, slots=True)
class Activated:
    """What one reconfigure achieved."""

    active: tuple[bytes, ...]
    pinned: tuple[bytes, ...]


async def activate(mount: Mounted) -> Activated:
    """Reconfigure once, and see which of the marked directories have taken effect.

    A directory that reads back wrongly trips the wire (R15). Raises MountGone, OSError.
    """
    async with mount.changing:
        return await _activate(mount)


async def _activate(mount: Mounted) -> Activated:
    waiting = [record.path for record in mount.book.in_states({State.COMPLETE, State.PINNED})]
    started = mount.clock()
    active: list[bytes] = []
    pinned: list[bytes] = []
    await mount.quiet(waiting)
    try:
        await mount.run(activation.reconfigure, mount.overlay)
        for path in waiting:
            await _judge(mount, path, active, pinned)
    finally:
        await mount.hear([path for path in waiting if path not in pinned])
    mount.metrics.activated(len(active), len(pinned), mount.clock() - started)
    if waiting:
        mount.log.info("activation", active=len(active), pinned=len(pinned))
    return Activated(tuple(active), tuple(pinned))


async def _judge(mount: Mounted, path: bytes, active: list[bytes], pinned: list[bytes]) -> None:
    """Bring the book in line with what one marked directory is now."""
    found = await mount.with_layers(partial(mount.backend.on_disk, path=path))
    now = mount.clock()
    if found.mark is not MarkState.OURS:
        mount.book.forget([path], reason="its mark is gone")
        return
    if found.in_effect is False:
        pinned.append(path)
        mount.book.move(path, State.PINNED, now=now, reason="a process holds it, or something in it")
        return
    broken = await _wrong_with(mount, path)
    if broken is not None and not await _has_changed(mount, path):
        mount.trip(f"{show(path)} does not read back as it should: {broken}")
    active.append(path)
    mount.book.move(path, State.ACTIVE, now=now, reason=None if found.in_effect else UNPROVEN)


async def _wrong_with(mount: Mounted, path: bytes) -> str | None:
    """What is wrong with a directory however often it is read; what somebody is just changing is not."""
    broken = None
    for reading in range(_READINGS):
        await asyncio.sleep(_PAUSE if reading else 0)
        broken = await mount.with_layers(partial(read_back, path=path))
        if broken is None:
            break
    return broken


async def _has_changed(mount: Mounted, path: bytes) -> bool:
    """Whether the server has changed or deleted it since: what reads wrong then is for the recheck to clear up."""
    try:
        found = await mount.with_layers(partial(examine, mount, path))
    except (Refused, OSError):
        return False
    return found.verdict in (Verdict.CHANGED, Verdict.VANISHED)


def read_back(layers: Layers, path: bytes) -> str | None:
    """What is wrong with a marked directory as an application sees it; None where nothing is.

    Its listing against the upper layer's, and the attributes of a few of its entries: a cold stat of every one would
    ask the server for each.
    """
    try:
        expected = {name for name, entry in layers.list_upper(path).items() if not entry.whiteout}
        seen = set(layers.list_merged(path))
        if seen != expected:
            names = sorted(seen ^ expected)[:3]
            return f"its listing differs in {', '.join(display(os.fsencode(name)) for name in names)}"
        return _sample_back(layers, path, sorted(seen))
    except OSError as error:
        return str(error)


def _sample_back(layers: Layers, path: bytes, names: Sequence[str]) -> str | None:
    with beneath.opened(layers.root, path) as merged, beneath.opened(layers.upper, path) as upper:
        for name in names[:: max(1, len(names) // _SAMPLE)]:
            ours = os.stat(name, dir_fd=upper, follow_symlinks=False)
            seen = os.stat(name, dir_fd=merged, follow_symlinks=False)
            if (stat.S_IFMT(ours.st_mode), ours.st_size) != (stat.S_IFMT(seen.st_mode), seen.st_size) and (
                not stat.S_ISDIR(seen.st_mode)
            ):
                return f"{show(join(path, os.fsencode(name)))} has another type or size than its shadow"
    return None
