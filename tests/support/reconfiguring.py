"""What happens just before or after a reconfigure, which no timing would hit."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from promoterd.overlay import activation


@contextmanager
def on_reconfigure(
    monkeypatch: pytest.MonkeyPatch, *actions: Callable[[], None], after: bool = False
) -> Iterator[None]:
    """Act in the window: the n-th action just before (or after) the n-th reconfigure."""
    reconfigure, left = activation.reconfigure, list(actions)

    def acting(overlay: Any) -> None:
        if left and not after:
            left.pop(0)()
        reconfigure(overlay)
        if left and after:
            left.pop(0)()

    with monkeypatch.context() as patch:
        patch.setattr(activation, "reconfigure", acting)
        yield
    assert not left
