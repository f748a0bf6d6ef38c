"""``observe``: shadows nothing and marks nothing; says what would be done. The default for an unfit mount."""

from collections.abc import Iterator

from promoterd.backends.base import Plan, Terms
from promoterd.backends.closure import plan_closure
from promoterd.backends.unmarked import UnmarkedBackend
from promoterd.overlay.fitness import Facts, Finding
from promoterd.overlay.listing import Layers
from promoterd.overlay.mounts import Overlay
from promoterd.payback import LAYER, Prices


class ObserveBackend(UnmarkedBackend):
    """The dry run: plans as ``opaque`` would, and goes no further."""

    name = "observe"

    @classmethod
    def findings(cls, overlay: Overlay, facts: Facts) -> list[Finding]:
        """Nothing speaks against looking."""
        del overlay, facts
        return []

    def plan(self, layers: Layers, path: bytes, terms: Terms) -> Plan:
        """What a marking backend would have to complete, or why it would refuse."""
        return plan_closure(layers, path, terms, needs_redirects=True)

    def shadow(self, plan: Plan) -> Iterator[int]:
        """Nothing to do, in no batches."""
        del plan
        return iter(())

    def prices(self, *, with_data: bool) -> Prices:
        """Those of the backend to have: what a dry run names is what would be worth it with that."""
        del with_data
        return LAYER
