from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from promoterd.heat.base import Armed
from promoterd.units import Amount, Share
from support.hearing import HALF, TREE, Heard, Listen
from support.overlays import MountedOverlay


@pytest.fixture
def overlay(make_overlay: Callable[..., MountedOverlay]) -> MountedOverlay:
    return make_overlay(TREE)


@pytest.fixture
def listen(overlay: MountedOverlay) -> Iterator[Listen]:
    with ExitStack() as stack:

        def make(*paths: bytes, on: MountedOverlay = overlay, max_watches: Share | Amount = HALF) -> Heard:
            heard = Heard(on, max_watches)
            stack.callback(heard.source.close)
            assert heard.source.arm(paths) == Armed()
            return heard

        yield make
