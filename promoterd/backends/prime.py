"""``prime``: marks nothing; keeps what the NFS client knows of a hot directory's entries from expiring.

For mounts that can have nothing better. Names that exist are then looked up and looked at without the server; names
that do not exist ask it as before.
"""

import time
from collections.abc import Iterator

from promoterd.backends.base import Plan, PlannedDirectory, Terms
from promoterd.backends.denied import refused_where_denied
from promoterd.backends.unmarked import UnmarkedBackend
from promoterd.errors import Refused
from promoterd.overlay.findings import info, refuse
from promoterd.overlay.fitness import Facts, Finding
from promoterd.overlay.fitness_of_mounts import reading_findings
from promoterd.overlay.listing import Layers, LowerListing
from promoterd.overlay.mounts import Overlay
from promoterd.overlay.nfs import Lifetimes, shortest_lifetimes
from promoterd.overlay.refresh import read_anew
from promoterd.paths import ancestors, display, show
from promoterd.payback import PRIMED, Prices

NO_NFS = Lifetimes(60.0, 60.0)
"""What is taken for the lifetime of attributes where no option of the mount tells it."""
_SHARE = 0.75
"""Of the longest lifetime, after which everything is read again: the reading takes time as well."""
_EXPIRED = 0.5
"""Seconds after which attributes have surely expired: a client counts in ticks, and from when it asked."""


class PrimeBackend(UnmarkedBackend):
    """Reads a hot directory and looks at each entry, again and again, before the client's attributes expire."""

    name = "prime"

    def __init__(self, overlay: Overlay, *, scratch: bytes, batch: int = 512, lanes: int = 2) -> None:
        """As any backend."""
        super().__init__(overlay, scratch=scratch, batch=batch, lanes=lanes)
        self._asked: dict[tuple[int, bytes], float] = {}
        """When a directory above one that is primed was asked for: many have the same ones above them."""

    @classmethod
    def findings(cls, overlay: Overlay, facts: Facts) -> list[Finding]:
        """A layer that is not what its path shows, and mounts on which nothing is known for any time."""
        mountpoint = display(overlay.mountpoint)
        found = list(reading_findings(overlay, facts))
        found += [
            refuse(
                one.keeps_nothing,
                f"the lower layer {display(one.layer)} of the overlay at {mountpoint} is mounted with "
                f"{one.keeps_nothing}, so that its client asks again what was read in advance",
                f"mount {display(one.layer)} without it",
            )
            for one in facts.nfs
            if one.keeps_nothing is not None
        ]
        if not facts.nfs:
            found.append(
                info(
                    "lowerdir",
                    f"no lower layer of the overlay at {mountpoint} is known to be NFS: nothing says how long what was "
                    f"read there is believed, so `prime` takes it for {NO_NFS.most:g} s",
                    "use another backend there, unless the file system caches attributes as NFS does",
                )
            )
        return found

    def plan(self, layers: Layers, path: bytes, terms: Terms) -> Plan:
        """The directory alone, not listed yet. Raises Refused where policy forbids it, or no lower layer has it."""
        forbidden = terms.of(path).forbidden
        if forbidden is not None:
            raise Refused(path=show(path), reason=forbidden)
        with refused_where_denied(path):
            contributing = layers.contributing(path)
        if not contributing:
            raise Refused(
                path=show(path),
                reason="no lower layer has such a directory, so there is nothing to keep known",
                hint="it was made or renamed on this machine; its entries are local already",
            )
        return Plan(path, [PlannedDirectory(path, contributing, LowerListing(()))], max_entries=terms.max_entries)

    def shadow(self, plan: Plan) -> Iterator[int]:
        """Read the directory. How large a batch is is known only when it has been looked at, so that comes first."""
        seen = 0
        for directory in plan.directories:
            for index in directory.layers:
                with refused_where_denied(plan.path):
                    above = self._to_ask(index, directory.path)
                    for size in read_anew(self.overlay.lowers[index], directory.path, self.batch, above):
                        seen += size
                        if plan.max_entries is not None and seen > plan.max_entries:
                            raise Refused(
                                path=show(plan.path),
                                reason=f"it has more than max_entries = {plan.max_entries} entries",
                                hint="raise `max_entries` in its rule",
                            )
                        yield size

    def prices(self, *, with_data: bool) -> Prices:
        """As :meth:`Backend.prices`."""
        del with_data
        return PRIMED

    def lasts(self, times: int) -> float | None:
        """As the mount options of the lower layers say.

        As long as lifetimes grow it is read again just after they end, since they do not grow otherwise; when they have
        grown to the longest, before they end.
        """
        known = self._lifetimes()
        life = known.after(times - 1)
        return life + _EXPIRED if life < known.most else known.most * _SHARE

    def _lifetimes(self) -> Lifetimes:
        return shortest_lifetimes(self.overlay.lowers) or NO_NFS

    def _to_ask(self, index: int, path: bytes) -> list[bytes]:
        """The directories above ``path`` whose attributes nobody asked for lately."""
        now = time.monotonic()
        since = now - self._lifetimes().most * (1 - _SHARE)
        self._asked = {key: at for key, at in self._asked.items() if at > since}
        wanted = [above for above in (b"", *ancestors(path)) if (index, above) not in self._asked and above != path]
        self._asked.update(((index, above), now) for above in wanted)
        return wanted
