"""A mount's heat over restarts: it is written down now and then and at the end, and read in when work begins."""

import asyncio
from typing import Final

from promoterd.errors import LedgerError
from promoterd.heat.tracker import HeatTracker
from promoterd.ledger import HeatRecord
from promoterd.mounted import Mounted

SAVED_MOST: Final = 10_000
"""Directories whose heat is kept."""
SAVE_EVERY: Final = 60.0
"""Seconds after which heat is written down at the latest: what a kill may lose."""
_OF_HALF_LIFE: Final = 0.25


class Remembering:
    """Keeps what a tracker knows in the ledger, by kind of use."""

    def __init__(self, mount: Mounted, tracker: HeatTracker) -> None:
        self.mount = mount
        self.tracker = tracker
        self.every = min(SAVE_EVERY, tracker.half_life * _OF_HALF_LIFE)
        """Seconds between two writings: in a quarter of its half-life heat changes by a sixth."""

    async def load(self) -> None:
        """Read it in; each record was true at a moment of its own, and what passed since has cooled it."""
        now = self.mount.clock()  # earlier than a record where the clock was set back meanwhile
        for record in await self.mount.run(self.mount.upper_ledger.load_heat):
            self.tracker.add(record.path, record.heat, min(record.at, now), record.kind)

    async def run(self) -> None:
        """Write it down now and then, until cancelled."""
        while True:
            await asyncio.sleep(self.every)
            # not in the mount's own threads, which a server that is gone may hold, one and all
            try:
                await asyncio.to_thread(self.mount.upper_ledger.save_heat, self._records())
            except LedgerError as error:
                self.mount.log.error("ledger_behind", reason=error.message)  # noqa: TRY400 - it is expected, and said

    def save(self) -> None:
        """Write it down now; asks nothing of the mount. Raises LedgerError."""
        self.mount.upper_ledger.save_heat(self._records())

    def _records(self) -> list[HeatRecord]:
        now = self.mount.clock()
        return [
            HeatRecord(path, heat, now, kind)
            for path, _ in self.tracker.hottest(SAVED_MOST, now)
            for kind, heat in self.tracker.kinds(path, now).items()
        ]
