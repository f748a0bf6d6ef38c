"""The lists that a mount's policy warms from, as directories for the daemon's queue: read, looked at, counted."""

import asyncio
import os
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from promoterd.errors import HeatListError
from promoterd.heatlist import HeatList, read_list
from promoterd.heatlist.files import lists_of
from promoterd.ledger import DirectoryRecord
from promoterd.mounted import Mounted
from promoterd.policy import WarmPolicy
from promoterd.pool import Pool
from promoterd.queueing import is_due
from promoterd.states import State
from promoterd.warming import Warmth, is_warm, judge

LOOK_EVERY: Final = 60.0
"""Seconds after which it is looked whether a list has changed, and whether something has to be promoted once more."""
AHEAD: Final = 64
"""Directories that are seen to be there before their turn comes."""
_TURN: Final = 256
"""Directories that are passed over before others get their turn."""


class Progress(StrEnum):
    """How far a directory of the lists is."""

    COMPLETE = "complete"
    WAITING = "waiting"
    FAILED = "failed"
    """Refused or failed, and tried again when that is due."""
    GONE = "gone"
    FORBIDDEN = "forbidden"


_FINAL: Final = {
    Warmth.ALREADY: Progress.COMPLETE,
    Warmth.GONE: Progress.GONE,
    Warmth.FORBIDDEN: Progress.FORBIDDEN,
}


@dataclass(frozen=True, slots=True)
class Lists:
    """What was read of lists: a mount's directories, the most used first, and what was wrong with some lists."""

    wanted: tuple[bytes, ...] = ()
    runs: int = 0
    problems: tuple[str, ...] = ()
    found: tuple[object, ...] = ()
    """By this it can be told whether something has changed."""


def read(policy: WarmPolicy, mountpoint: bytes, before: Lists) -> Lists:
    """Read every list that there is; ``before`` itself where nothing has changed since. Never raises."""
    files: list[str] = []
    missing: list[str] = []
    for name in policy.lists:
        try:
            files += lists_of(name)
        except HeatListError as error:
            missing.append(error.message)
    files = list(dict.fromkeys(files))
    found = (*missing, *map(_stamp, files))
    if found == before.found:
        return before
    heat, problems = HeatList(), missing
    for file in files:
        try:
            heat.merge(read_list([file]))
        except HeatListError as error:
            problems.append(error.message)
    wanted = heat.cut(min_count=policy.min_count).hottest(mountpoint)
    return Lists(tuple(wanted), heat.runs, tuple(problems), found)


def _stamp(file: str) -> tuple[object, ...]:
    try:
        status = os.stat(file)
    except (OSError, ValueError) as error:
        return (file, str(error))
    return (file, status.st_mtime_ns, status.st_size, status.st_ino)


class Warmer:
    """Offers directories in the order of the lists, a few at a time. Used from the event loop only.

    A directory that was completed and then reopened is offered again, as are those that failed, when they are due.
    """

    def __init__(self, mount: Mounted, look: Callable[[], None]) -> None:
        self.mount = mount
        self._policy = mount.policy.warm
        self._look = look
        self._lists = Lists()
        self._progress: dict[bytes, Progress] = {}
        """Every directory of the lists, in their order."""
        self._unseen: deque[bytes] = deque()
        self._ready: dict[bytes, None] = {}
        self._failed: dict[bytes, None] = {}
        self._counts: Counter[Progress] = Counter()
        self._wake = asyncio.Event()
        self._is_to_read = False
        self._is_told = True

    def reread(self) -> None:
        """Read the lists again, now."""
        self._is_to_read = True
        self._wake.set()

    def wants(self, path: bytes) -> bool:
        """Whether a directory is to be promoted for the lists' sake."""
        return path in self._ready or path in self._failed

    def candidates(self) -> list[bytes]:
        """The next ones, by the lists' order; those that have come to something are left behind."""
        if self._policy is None or self.mount.clock() < self.begins_at:
            return []
        now, found = self.mount.clock(), list[bytes]()
        for path in list(self._ready):
            record = self.mount.book.get(path)
            if self._settle(path, record):
                del self._ready[path]
            elif record is not None and record.state in (State.REFUSED, State.FAILED):
                del self._ready[path]
                self._failed[path] = None
                self._set(path, Progress.FAILED)
            else:
                found.append(path)
        found += self._due(now)
        if len(self._ready) < AHEAD and self._unseen:
            self._wake.set()
        self._tell()
        return found

    def _due(self, now: float) -> Iterator[bytes]:
        for path in list(self._failed):
            record = self.mount.book.get(path)
            if self._settle(path, record):
                del self._failed[path]
            elif is_due(record, now):
                yield path

    def _settle(self, path: bytes, record: DirectoryRecord | None) -> bool:
        """Whether it is complete, or has been read or looked at once where nothing ever is complete."""
        marks = self.mount.backend.marks
        done = self.mount.book.is_marked(path)
        if record is not None and not marks:
            done = record.state is State.PRIMED or (record.state is State.HOT and record.retry_at is not None)
        if done:
            self._set(path, Progress.COMPLETE)
        elif record is not None and record.state is State.HOT and record.retry_at is not None:
            # its heat alone was not worth it yet
            self.mount.book.move(path, State.HOT, now=self.mount.clock(), retry_at=None, regardless=True)
        return done

    @property
    def begins_at(self) -> float:
        """When this machine begins, if it has not: many start together."""
        return self.mount.begins_at(b"warm")

    # The loop

    async def run(self) -> None:
        """Read the lists and go through them, until cancelled; ends where policy names none. Raises MountGone."""
        if self._policy is None:
            return
        reader = Pool(f"lists of {self.mount.name}", 1)  # a list may lie on a server that hangs
        try:
            while True:
                self._wake.clear()
                before = Lists() if self._is_to_read else self._lists
                self._is_to_read = False
                lists = await reader.run(read, self._policy, self.mount.overlay.mountpoint, before)
                if lists is not self._lists:
                    self._take(lists)
                else:
                    self._again()
                await self._go_through()
        finally:
            reader.close()

    async def _go_through(self) -> None:
        """Until it is time to look at the lists again."""
        deadline = time.monotonic() + LOOK_EVERY
        while not self._is_to_read and time.monotonic() < deadline:
            if self.mount.clock() >= self.begins_at:
                await self._fill()  # not cut off: what waits for a server that hangs holds a thread as it is
            with suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
                    await self._wake.wait()
                    self._wake.clear()

    def _take(self, lists: Lists) -> None:
        mount, before = self.mount, self._lists
        self._lists = lists
        for problem in lists.problems:
            if problem not in before.problems:
                mount.log.warning("warm_list_bad", reason="; ".join(problem.split("\n")))
        wanted = lists.wanted[: mount.policy.heat.max_directories]
        self._progress = dict.fromkeys(wanted, Progress.WAITING)
        self._counts = Counter({Progress.WAITING: len(wanted)})
        self._unseen = deque(wanted)
        self._ready.clear()
        self._failed.clear()
        self._is_told = not wanted
        mount.log.info("warm_lists_read", directories=len(wanted), runs=lists.runs)
        self._count()

    def _again(self) -> None:
        """What was completed and is so no more."""
        if not self.mount.backend.marks:
            return
        for path, progress in self._progress.items():
            if progress is Progress.COMPLETE and not self.mount.book.is_marked(path):
                self._set(path, Progress.WAITING)
                self._unseen.append(path)

    async def _fill(self) -> None:
        """See to it that some directories are ready: they are there, and neither forbidden nor complete."""
        turn = 0
        while self._unseen and len(self._ready) < AHEAD and not self._is_to_read:
            path = self._unseen.popleft()
            if not is_warm(self.mount, path) and self.mount.policy.may_promote(path):
                await self.mount.rechecks.take(1)
            judged = await judge(self.mount, path)
            if judged is None or judged.warmth not in _FINAL:  # whatever is wrong there, its promotion says
                self._ready[path] = None
            else:
                self._set(path, _FINAL[judged.warmth])
            turn += 1
            if turn % _TURN == 0:
                self._count()
                await asyncio.sleep(0)
        self._count()
        self._look()

    def _tell(self) -> None:
        """Say once that all has come to something."""
        if not self._is_told and not self._unseen and not self._ready:
            self._is_told = True
            self.mount.log.info("warmed", **self._plain())
        self._count()

    # In numbers

    def _set(self, path: bytes, progress: Progress) -> None:
        before = self._progress.get(path)
        if before is not None:
            self._counts[before] -= 1
            self._counts[progress] += 1
            self._progress[path] = progress

    def _plain(self) -> dict[str, int]:
        return {progress.value: self._counts[progress] for progress in Progress}

    def _count(self) -> None:
        if self._policy is not None:
            self.mount.metrics.warming(self._plain(), len(self._lists.problems))

    def status(self) -> dict[str, Any] | None:
        """For ``status``; None where policy names no lists."""
        if self._policy is None:
            return None
        return {
            "directories": len(self._progress),
            **self._plain(),
            "problems": list(self._lists.problems),
            "begins_at": self.begins_at if self.begins_at > self.mount.clock() else None,
        }
