"""The metadata layer: directories kept locally between upper and the server."""

from promoterd.backends.layer.backend import LayerBackend

__all__ = ["LayerBackend"]
