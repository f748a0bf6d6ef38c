"""Whether a mount is fit for the layer backend. Decides only."""

from promoterd.overlay.facts import Facts
from promoterd.overlay.findings import Finding, refuse
from promoterd.overlay.mounts import Overlay
from promoterd.paths import display


def layer_findings(overlay: Overlay, facts: Facts) -> list[Finding]:
    """What stands against the layer backend."""
    if not overlay.metadata:
        return [
            refuse(
                "lowerdir", f"the overlay at {display(overlay.mountpoint)} has no metadata layer", "promoterd layout"
            )
        ]
    return []
