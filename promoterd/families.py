"""How many directories there are in a directory, as far as they are heard: what a sweep over it would list."""

import asyncio
import os
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Final

from promoterd.errors import MountGone, PromoterdError
from promoterd.mounted import Mounted
from promoterd.overlay import beneath
from promoterd.overlay.listing import Layers
from promoterd.paths import join, parent

if TYPE_CHECKING:
    from promoterd.heat.base import HeatSource

KNOWN_FOR: Final = 3600.0
"""Seconds for which it is believed how many there are."""
KNOWN_MOST: Final = 65_536


class Families:
    """Known from the source where that is armed at each directory; listed, in lower, where it hears everything."""

    def __init__(self, mount: Mounted, may_promote: Callable[[bytes], bool]) -> None:
        self.mount = mount
        self.source: HeatSource | None = None
        self._may_promote = may_promote
        self._known: dict[bytes, tuple[float, int]] = {}
        self._wanted: dict[bytes, None] = {}
        self._look = asyncio.Event()

    def counts(self, heads: Collection[bytes]) -> Mapping[bytes, int] | None:
        """How many directories each has; None where that has to be found out first: ask again a little later."""
        if self.source is not None and self.source.arms:
            return Counter(head for path in self.source.paths() if path and (head := parent(path)) in heads)
        since = self.mount.clock() - KNOWN_FOR
        known = {head: found[1] for head in heads if (found := self._known.get(head)) and found[0] >= since}
        missing = [head for head in heads if head not in known]
        if not missing:
            return known
        self._wanted.update(dict.fromkeys(missing))
        self._look.set()
        return None

    async def run(self) -> None:
        """Find out what was asked for, until cancelled. Raises MountGone."""
        while True:
            await self._look.wait()
            self._look.clear()
            wanted, self._wanted = list(self._wanted), {}
            await self.mount.rechecks.take(len(wanted))
            try:
                found = await self.mount.with_layers(partial(_count_all, wanted, self._may_promote))
            except OSError as error:  # whoever still wants to know asks again
                self.mount.log.debug("not_counted", reason=str(error))
                continue
            now = self.mount.clock()
            for head, count in found.items():
                self._known.pop(head, None)
                self._known[head] = (now, count)
            for head in list(self._known)[: max(0, len(self._known) - KNOWN_MOST)]:
                del self._known[head]


def _count_all(heads: Iterable[bytes], may_promote: Callable[[bytes], bool], layers: Layers) -> dict[bytes, int]:
    """What cannot be listed, as it is gone perhaps, has none. Raises MountGone."""
    counts = {}
    for head in heads:
        try:
            names = _directories_in(layers, head)
        except MountGone:
            raise
        except (PromoterdError, OSError):
            names = set()
        counts[head] = sum(may_promote(join(head, os.fsencode(name))) for name in names)
    return counts


def _directories_in(layers: Layers, head: bytes) -> set[str]:
    """From what the client remembers, as whoever listed them has just made it read them."""
    names: set[str] = set()
    for index in layers.contributing(head):
        with beneath.opened(layers.lowers[index], head, beneath.READ_DIRECTORY) as opened, os.scandir(opened) as found:
            names.update(entry.name for entry in found if entry.is_dir(follow_symlinks=False))
    return names
