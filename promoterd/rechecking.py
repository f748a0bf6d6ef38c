"""When what is compared with the server: complete directories, growing ones, and those that only follow."""

import asyncio
from collections.abc import Callable, Iterable

from promoterd.errors import Refused, TripWire
from promoterd.finding import Finder
from promoterd.localdata import refill
from promoterd.mounted import Mounted
from promoterd.paths import ancestors, show
from promoterd.promotion import promote
from promoterd.reopen import reopen_deferred
from promoterd.spread import around
from promoterd.staleness import follow, recheck
from promoterd.states import MARKED, State

WITHOUT_RULE = 600.0
"""Seconds between two looks at a directory that no rule of the policy governs."""
_SHARE = 0.25
_BOUNDS = (0.5, 30.0)


class Rechecker:
    """Looks at everything when it is due. ``activate`` is called when the overlay is to forget what it knows."""

    def __init__(self, mount: Mounted, finder: Finder, activate: Callable[[], None]) -> None:
        self.mount = mount
        self.finder = finder
        self._activate = activate
        self._looked_at: dict[bytes, float] = {}
        self._verified_at: dict[bytes, float] = {}

    async def run(self) -> None:
        """Recheck, until cancelled. Raises MountGone."""
        shortest = min((rule.recheck for rule in self.mount.policy.rules), default=WITHOUT_RULE)
        least, most = _BOUNDS
        while True:
            await asyncio.sleep(min(most, max(least, shortest * _SHARE)))
            try:
                await self._look(self.mount.clock())
            except OSError as error:
                self.mount.log.warning("recheck_failed", reason=str(error))

    async def _look(self, now: float) -> None:
        mount = self.mount
        due = [
            record.path
            for record in mount.book.in_states(MARKED)
            if not 0
            <= now - (record.last_checked or 0.0)
            < self._interval_of(record.path)  # also: the clock was set back
            and now >= mount.begins_at(b"recheck/" + record.path)
        ]
        if due:
            for path in await recheck(mount, due, self._to_verify(due, now)):
                self.finder.look_below(path)
        # while something changes, it may be an activation, and what waits a part of it
        if (mount.book.in_states({State.COMPLETE}) or mount.unsettled) and not mount.changing.locked():
            mount.unsettled = False
            self._activate()
        await self._complete_chains(now)
        await refill(mount)
        if mount.backend.marks:
            await mount.run(mount.free_space_lack)
        await self._look_at_growing(now)
        await self._look_at_followed(now)
        if mount.overlay.read_only:
            await reopen_deferred(mount)

    async def _complete_chains(self, now: float) -> None:
        """Ancestors that were too young, or else not fit, when a directory below them was completed."""
        mount = self.mount
        if not mount.backend.resyncs or mount.paused is not None or mount.hold is not None:
            return
        above = {path for record in mount.book.in_states(MARKED) for path in ancestors(record.path)}
        for path in sorted(above, reverse=True):
            record, rule = mount.book.get(path), mount.policy.rule_for(path)
            waits = record is not None and record.retry_at is not None and record.retry_at > now
            if rule is None or not (rule.may_promote and rule.chain) or mount.book.is_marked(path) or waits:
                continue
            try:
                done = await promote(mount, path, alone=True)
            except (Refused, TripWire) as error:
                mount.log.debug("chain_waits", path=show(path), reason=error.message)
            else:
                mount.unsettled |= bool(done.directories)

    def _to_verify(self, paths: Iterable[bytes], now: float) -> set[bytes]:
        """Those whose files are to be compared as well; the completion counts as the first time."""
        due = set()
        for path in paths:
            record, rule = self.mount.book.get(path), self.mount.policy.rule_for(path)
            last = self._verified_at.setdefault(path, now if record is None else record.marked_at or now)
            if rule is not None and now >= last + around(self.mount.host, path, rule.verify):
                due.add(path)
                self._verified_at[path] = now
        return due

    async def _look_at_growing(self, now: float) -> None:
        """A growing directory that changed brings new releases: find them, and drop negative dentries (R14)."""
        for path in self._due(self.finder.growing, now):
            try:
                changed = await self.finder.changed(path)
            except (Refused, OSError) as error:
                self.mount.log.warning("recheck_failed", path=show(path), reason=str(error))
                continue
            if changed:
                self.mount.log.info("growing_changed", path=show(path), reason="the server changed it")
                await follow(self.mount, [*ancestors(path), path])
                self._activate()
                self.finder.look_below(path)

    async def _look_at_followed(self, now: float) -> None:
        """What was copied up, and has nothing complete in it any more, follows lower all the same (R2)."""
        marked = [record.path for record in self.mount.book.in_states(MARKED)]
        cared_for = {directory for path in marked for directory in (*ancestors(path), path)}
        await follow(self.mount, self._due(self.mount.followed - cared_for, now))

    def _due(self, paths: Iterable[bytes], now: float) -> list[bytes]:
        begins_at = self.mount.begins_at
        due = [
            path
            for path in paths
            if now >= self._looked_at.get(path, 0.0) + self._interval_of(path) and now >= begins_at(b"recheck/" + path)
        ]
        self._looked_at.update(dict.fromkeys(due, now))
        return sorted(due)

    def _interval_of(self, path: bytes) -> float:
        rule = self.mount.policy.rule_for(path)
        return around(self.mount.host, path, WITHOUT_RULE if rule is None else rule.recheck)
