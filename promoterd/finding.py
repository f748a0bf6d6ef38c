"""Finding the directories of one mount: those to be heard, those to be promoted in any case, and those that grow."""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

from promoterd.errors import Refused
from promoterd.heat.discovery import Walk
from promoterd.mounted import Mounted
from promoterd.overlay.listing import Layers, Stamp
from promoterd.paths import is_below, parent, show
from promoterd.states import MARKED, State

if TYPE_CHECKING:
    from promoterd.heat.base import HeatSource

AGAIN_AFTER = 30.0
"""Seconds after which a search that the server cut short is begun anew."""
ARM_AGAIN_EVERY = 600.0
"""Seconds after which directories that got no watch for want of watches are tried again."""
_WAITING = (State.COMPLETE, State.PINNED)
_PAUSE = 0.05
_BATCH = 256


class Finder:
    """Walks the layers when there is reason to. ``found`` is called after every batch of directories."""

    def __init__(self, mount: Mounted, found: Callable[[], None]) -> None:
        self.mount = mount
        self.source: HeatSource | None = None
        self.always: set[bytes] = set()
        """Directories that policy promotes without waiting for heat."""
        self.growing: dict[bytes, tuple[Stamp, ...]] = {}
        """Directories in which new ones appear on the server, with their stamps when they were looked at last."""
        self._found = found
        self._starts: set[bytes] = {b""}
        self._lost_events = False
        self._wanted = asyncio.Event()
        self._wanted.set()

    def look_below(self, path: bytes) -> None:
        """There may be new directories below this one."""
        self._starts = {known for known in self._starts if not is_below(known, path)} | {path}
        self._wanted.set()

    def events_were_lost(self) -> None:
        """Any watch may be on a renamed directory, and any directory new."""
        self._lost_events = True
        self.look_below(b"")

    async def run(self) -> None:
        """Find, until cancelled. Raises MountGone."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(ARM_AGAIN_EVERY):
                    await self._wanted.wait()
            self._wanted.clear()
            starts, self._starts = self._starts, set()
            try:
                await self._arm_again()
            except OSError as error:
                self._failed(error, starts)
                continue
            for start in sorted(starts) if self._has_to_look else ():
                try:
                    await self._find_below(start)
                except OSError as error:
                    self._failed(error, {start}, path=show(start))

    @property
    def _has_to_look(self) -> bool:
        """Not where the source needs no directory to be found, and no rule does: a walk asks the server."""
        wanted = self.source is not None and self.source.wants_directories
        return wanted or any(rule.growing or rule.promote == "always" for rule in self.mount.policy.rules)

    def _failed(self, error: OSError, starts: set[bytes], **fields: str) -> None:
        self.mount.log.warning("discovery_failed", reason=str(error), **fields)
        self._starts |= starts
        asyncio.get_running_loop().call_later(AGAIN_AFTER, self._wanted.set)

    async def changed(self, path: bytes) -> bool:
        """Whether a growing directory is another on the server than last time. Raises Refused, OSError, MountGone."""
        stamps = await self.mount.with_layers(partial(_stamps, path))
        if stamps == self.growing[path]:
            return False
        self.growing[path] = stamps
        return True

    async def _arm_again(self) -> None:
        """After an overflow every watch may be on a renamed directory; for want of watches some may be missing."""
        source = self.source
        if source is None:
            return
        if self._lost_events:
            self._lost_events = False
            for paths in _batches(source.paths()):
                await self.mount.run(source.rearm, paths)
        for paths in _batches(source.refused()):
            await self.mount.run(source.arm, paths)

    async def _find_below(self, start: bytes) -> None:
        mount, policy = self.mount, self.mount.policy
        walk = Walk(
            mount.overlay.walked,
            lambda path: policy.may_promote(path) or policy.is_growing(path),
            policy.may_promote_below,
            max_directories=policy.heat.max_directories,
        )
        batches = walk.batches(start)
        always: list[bytes] = []
        try:
            while (batch := await mount.run(next, batches, None)) is not None:
                # not sooner: two that list a directory at once spoil it for one another, as the walk asks for names
                # alone, and who looks at entries has to ask for each that is on the walk's pages (fs/nfs/dir.c)
                self._promote_always(always)
                await mount.pace.settle()
                walk.batch = min(_BATCH, mount.backend.batch)
                for path in batch:
                    if policy.is_growing(path) and path not in self.growing:
                        self.growing[path] = await self._stamps_of(path)
                promotable = [path for path in batch if policy.may_promote(path)]
                always = [path for path in promotable if self._is_always(path)]
                if self.source is not None and self.source.wants_directories:
                    await self._arm(self.source, promotable)
                await asyncio.sleep(_PAUSE)
        finally:
            self._promote_always(always)
        if walk.truncated:
            mount.log.warning("discovery_truncated", path=show(start), reason="heat.max_directories is reached")

    def _promote_always(self, paths: Sequence[bytes]) -> None:
        self.always.update(paths)
        self._found()

    async def _arm(self, source: "HeatSource", paths: Sequence[bytes]) -> None:
        """Hear directories; those that are made anew meanwhile, or are going to be with the one above, once more."""
        state = self.mount.book.state
        settled = {path for path in paths if state(parent(path)) is State.ACTIVE}
        await self.mount.run(source.arm, [path for path in paths if state(path) not in _WAITING])
        if self.mount.backend.effect_shows_in_inode:
            self.mount.renew(
                [path for path in paths if path not in settled and state(parent(path)) in (State.SHADOWING, *MARKED)]
            )

    async def _stamps_of(self, path: bytes) -> tuple[Stamp, ...]:
        """What a growing directory looks like now; none where that cannot be told, so that it has changed once it can.

        Raises MountGone.
        """
        try:
            return await self.mount.with_layers(partial(_stamps, path))
        except (Refused, OSError) as error:
            self.mount.log.warning("discovery_failed", path=show(path), reason=str(error))
            return ()

    def _is_always(self, path: bytes) -> bool:
        rule = self.mount.policy.rule_for(path)
        return rule is not None and rule.promote == "always"


def _batches(paths: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
    for start in range(0, len(paths), _BATCH):
        yield paths[start : start + _BATCH]


def _stamps(path: bytes, layers: Layers) -> tuple[Stamp, ...]:
    return layers.stamps(path, layers.contributing(path))
