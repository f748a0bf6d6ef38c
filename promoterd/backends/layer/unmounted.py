"""Reopening in a metadata layer whose overlay is not mounted: nothing can refer to what is taken out."""

from collections.abc import Sequence

from promoterd.backends.layer import graveyard
from promoterd.backends.layer.home import Home, empty, layer_xattr
from promoterd.backends.layer.lower import lower_attributes
from promoterd.overlay import xattrs
from promoterd.overlay.listing import Layers
from promoterd.paths import ancestors, parent


def take_out_unmounted(layers: Layers, paths: Sequence[bytes], marked: Sequence[bytes]) -> None:
    """Remove directories with everything below them, and ancestors that were there for their sake alone.

    ``marked``: what has provenance of ours in the layer and is to stay. Raises OSError.
    """
    with Home(layers) as home:
        for path in paths:
            stub = None
            if layer_xattr(layers, parent(path), xattrs.OPAQUE) is not None:
                stub = lower_attributes(layers, path)
            graveyard.take_out(home, path, mounting="", stub=stub)
            for ancestor in reversed(ancestors(path)):
                if any(ancestor in (*ancestors(other), other) for other in marked):
                    break
                graveyard.take_out(home, ancestor, mounting="")
        empty(home.graveyard)
        empty(home.stage)
