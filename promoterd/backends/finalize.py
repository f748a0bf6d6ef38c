"""``finalize``: the kernel marks by itself (``trusted.overlay.opaque=z``) when a readdir finds every name shadowed.

From the kernel branch ``ovl-finalize-dir`` of the linux-unionfs thread "overlayfs: NFS lowerdir changes & opaque
negative lookups" (2024); it was never merged, and the probe says so on every stock kernel.
"""

from promoterd.backends.base import Busy, Plan, Terms
from promoterd.backends.closure import plan_closure
from promoterd.backends.upper import UpperBackend
from promoterd.overlay import xattrs
from promoterd.overlay.fitness import Facts, Finding, finalize_findings
from promoterd.overlay.gate import UpperGate
from promoterd.overlay.listing import Layers
from promoterd.overlay.mounts import Overlay
from promoterd.paths import show


class FinalizeBackend(UpperBackend):
    """Copies up, reads the directory, and finds the kernel's own mark."""

    name = "finalize"
    mark_value = xattrs.OPAQUE_FINALIZED

    @classmethod
    def findings(cls, overlay: Overlay, facts: Facts) -> list[Finding]:
        """What speaks against it on this mount: on stock kernels, the kernel."""
        return finalize_findings(overlay, facts)

    def plan(self, layers: Layers, path: bytes, terms: Terms) -> Plan:
        """The directory alone: lower is still looked up for its entries, so no child and no redirect is needed."""
        return plan_closure(layers, path, terms, needs_redirects=False, alone=True)

    def _mark(self, layers: Layers, plan: Plan, gate: UpperGate) -> None:
        del gate
        for directory in plan.directories:
            layers.list_merged(directory.path)
            if layers.upper_xattr(directory.path, xattrs.OPAQUE) != self.mark_value:
                raise Busy(path=show(directory.path), reason="the kernel has not marked it after a complete readdir")
        layers.sync_upper()

    def _in_effect(self, layers: Layers, path: bytes) -> bool | None:
        """The directory stays merged, and no attribute tells whether the kernel acts on its mark already."""
        del layers, path
        return None
