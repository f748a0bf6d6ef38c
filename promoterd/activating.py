"""From marked to active: one reconfigure for all that wait, and a proof for each (R13, R14)."""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from promoterd.backends.base import MarkState
from promoterd.errors import Refused
from promoterd.mounted import Mounted
from promoterd.overlay import activation
from promoterd.paths import ancestors, show
from promoterd.staleness import Verdict, examine
from promoterd.states import State

BACKOFF_MOST = 3600.0
"""Seconds between two reconfigures while only pinned directories wait."""
UNPROVEN = "effect unproven: this upper file system does not count links of directories"
_READINGS, _PAUSE = 3, 0.1
_LOOKS_IN = 3
"""How many reconfigures one activation takes where somebody looks into a directory, often one far above the others,
that has to be made anew first: all below it would have to wait for the next one."""
_SAMPLE = 8
"""How many entries of a newly active directory are read back, besides its listing."""


@dataclass(frozen=True, slots=True)
class Activated:
    """What one reconfigure achieved."""

    active: tuple[bytes, ...]
    pinned: tuple[bytes, ...]
    kept: int = 0
    """What was taken out and something may still refer to, and what something holds that has to be heard anew."""


async def activate(mount: Mounted) -> Activated:
    """Reconfigure once, and see which of the marked directories have taken effect; the caller holds ``changing``.

    A directory that reads back wrongly trips the wire (R15). Raises MountGone, OSError.
    """
    waiting = [record.path for record in mount.book.in_states({State.COMPLETE, State.PINNED})]
    started = mount.clock()
    active: list[bytes] = []
    pinned: list[bytes] = []
    renewing = sorted(mount.renewing)
    # a watch keeps an overlay inode with the layers that it was made of, so that one of ours would also keep what was
    # opened from asking lower (ovl_get_inode, fs/overlayfs/inode.c)
    opened = [record.path for record in mount.book.in_states({State.STALE})] if mount.backend.resyncs else []
    mount.rehearing = frozenset([*waiting, *opened, *renewing])
    mount.renewing.clear()  # who wants one renewed from here on means the next time
    left = set(renewing)
    try:
        await mount.quiet([*mount.rehearing])
        known = sorted({*waiting, *renewing})  # a parent before what is in it
        before = await _inodes(mount, known)
        for _ in range(_LOOKS_IN):
            await mount.run(activation.reconfigure, mount.overlay)
            after = await _inodes(mount, known)
            held = _held(known, before, after)
            left = held.intersection(renewing)
            if not left:
                break
        for path in waiting:
            is_new = path in before and path in after and path not in held
            await _judge(mount, path, active, pinned, is_new=is_new)
        kept = await mount.with_layers(mount.backend.sweep)
    finally:
        mount.renewing |= left
        await mount.hear([*mount.rehearing.difference(pinned)])
        mount.rehearing = frozenset()
    mount.metrics.activated(len(active), len(pinned), mount.clock() - started)
    if waiting:
        mount.log.info("activation", active=len(active), pinned=len(pinned))
    return Activated(tuple(active), tuple(pinned), kept + len(mount.renewing))


def _held(paths: Iterable[bytes], before: Mapping[bytes, int], after: Mapping[bytes, int]) -> set[bytes]:
    """Which directories the overlay knows as it did: by the same inode, or by another one below such a directory.

    What is looked up below a directory is looked up in that one's layers (ovl_lookup(), fs/overlayfs/namei.c): below
    one that was not made anew it has another number after any reconfigure, and is in no layer that came since.
    ``paths``: each directory before what is in it.
    """
    held: set[bytes] = set()
    for path in paths:
        if (path in before and before[path] == after.get(path)) or not held.isdisjoint(ancestors(path)):
            held.add(path)
    return held


async def _inodes(mount: Mounted, paths: Sequence[bytes]) -> dict[bytes, int]:
    """What the overlay shows as the directories' inodes, for a backend that goes by that."""
    if not mount.backend.effect_shows_in_inode:
        return {}
    return await mount.with_layers(partial(activation.inodes, paths=paths))


async def _judge(mount: Mounted, path: bytes, active: list[bytes], pinned: list[bytes], *, is_new: bool) -> None:
    """Bring the book in line with what one marked directory is now.

    ``is_new``: the overlay has made its inode anew, with the mark on disk before that.
    """
    found = await mount.with_layers(partial(mount.backend.on_disk, path=path))
    now = mount.clock()
    if found.mark is not MarkState.OURS:
        mount.book.forget([path], reason="its mark is gone")
        return
    in_effect = found.in_effect
    if mount.backend.effect_shows_in_inode and in_effect is None:
        in_effect = is_new
    if in_effect is False:
        pinned.append(path)
        mount.book.move(path, State.PINNED, now=now, reason="a process holds it, or something in it")
        return
    broken = await _wrong_with(mount, path)
    if broken is not None and not await _has_changed(mount, path):
        mount.trip(f"{show(path)} does not read back as it should: {broken}")
    active.append(path)
    mount.book.move(path, State.ACTIVE, now=now, reason=None if in_effect else UNPROVEN)


async def _wrong_with(mount: Mounted, path: bytes) -> str | None:
    """What is wrong with a directory however often it is read; what somebody is just changing is not."""
    broken = None
    for reading in range(_READINGS):
        await asyncio.sleep(_PAUSE if reading else 0)
        broken = await mount.with_layers(partial(mount.backend.read_back, path=path))
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
