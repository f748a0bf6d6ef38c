"""What backends have in common that mark nothing: there is nothing on disk, and nothing to undo."""

from collections.abc import Callable, Sequence

from promoterd.backends.base import Backend, MarkState, OnDisk, Plan
from promoterd.overlay.listing import Layers


class UnmarkedBackend(Backend):
    """A backend that never changes anything. What it plans and reads is up to its subclass."""

    marks = False

    def complete(self, plan: Plan) -> list[bytes]:
        """Marks nothing."""
        del plan
        return []

    def on_disk(self, layers: Layers, path: bytes) -> OnDisk:
        """It never marked anything."""
        del layers, path
        return OnDisk(MarkState.NONE)

    def reopen(self, paths: Sequence[bytes], *, check_quiet: Callable[[], None]) -> None:
        """Nothing to undo."""
        del paths, check_quiet
