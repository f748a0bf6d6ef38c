"""``opaque``: copy-up through the live overlay and one ``trusted.overlay.opaque=y`` on each upper directory.

For stock kernels. The only thing that is written behind overlayfs' back is that one attribute, and our provenance
beside it. It needs a redirect, written by the kernel itself, on every regular file, and child directories that are
complete already.
"""

import os
import stat
from collections.abc import Iterator

from promoterd.backends.base import Busy, Plan, PlannedDirectory, Terms
from promoterd.backends.closure import plan_closure
from promoterd.backends.upper import UpperBackend
from promoterd.overlay import beneath, xattrs
from promoterd.overlay.findings import info
from promoterd.overlay.fitness import Facts, Finding, marking_findings
from promoterd.overlay.gate import UpperGate
from promoterd.overlay.listing import Layers, UpperEntry
from promoterd.overlay.mounts import Overlay
from promoterd.overlay.shadows import leaning_files
from promoterd.paths import display, join, show


class OpaqueBackend(UpperBackend):
    """Marks upper directories opaque; see ``docs/backends.md`` for when it helps and when it hurts."""

    name = "opaque"
    mark_value = xattrs.OPAQUE_YES

    @classmethod
    def findings(cls, overlay: Overlay, facts: Facts) -> list[Finding]:
        """What speaks against marking upper directories on this mount."""
        return [*marking_findings(overlay, facts), *_price_on_nfs(facts)]

    def plan(self, layers: Layers, path: bytes, terms: Terms) -> Plan:
        """The directory with every child directory that is not complete yet."""
        return plan_closure(layers, path, terms, needs_redirects=True)

    def _unshadowed(
        self, layers: Layers, directory: PlannedDirectory, upper: dict[str, UpperEntry]
    ) -> list[tuple[str, int]]:
        """Lower names without an upper entry, and upper files that would look for their data beside themselves."""
        work = super()._unshadowed(layers, directory, upper)
        if upper:
            with beneath.opened(layers.upper, directory.path) as opened:
                work.extend(leaning_files(opened, upper).items())
        return work

    def _check_children(
        self, layers: Layers, plan: Plan, directory: PlannedDirectory, upper: dict[str, UpperEntry]
    ) -> None:
        closure = plan.paths
        for name, entry in upper.items():
            child = join(directory.path, os.fsencode(name))
            if (
                stat.S_ISDIR(entry.mode)
                and child not in closure
                and layers.upper_xattr(child, xattrs.OPAQUE) is None
                and (
                    stat.S_ISDIR(directory.listing.entries.get(name, 0))
                    or layers.upper_xattr(child, xattrs.REDIRECT) is not None
                )
            ):
                raise Busy(path=show(directory.path), reason=f"the child directory {show(child)} appeared in it")

    def _mark(self, layers: Layers, plan: Plan, gate: UpperGate) -> None:
        depth = None
        for directory in sorted(plan.directories, key=lambda planned: -planned.path.count(b"/")):
            level = directory.path.count(b"/")
            if depth is not None and level != depth:
                layers.sync_upper()
            depth = level
            with gate.opened(directory.path) as opened:
                xattrs.put(xattrs.descriptor(opened), xattrs.OPAQUE, self.mark_value)
        layers.sync_upper()


def _price_on_nfs(facts: Facts) -> Iterator[Finding]:
    """What it costs a server, and what is known of what it would save."""
    for one in facts.nfs:
        asked = (
            f"; of {one.lookups.asked} lookups since it was mounted, {one.lookups.missed} found no such name"
            if one.lookups is not None and one.lookups.asked
            else ""
        )
        yield info(
            "lowerdir",
            f"the lower layer {display(one.layer)} is on NFS, where `opaque` costs up to 7 requests for each entry, "
            f"and one more for each cold lookup of a name that exists{asked}",
            "take it where names that do not exist are looked up far more often: say how often with `expect`, or "
            "`backend: opaque`",
        )
