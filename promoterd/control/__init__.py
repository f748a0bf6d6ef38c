"""Control over a Unix socket that only root and one group can use."""

from promoterd.control.client import request
from promoterd.control.protocol import Request
from promoterd.control.server import ControlServer, Handler, Progress

__all__ = ["ControlServer", "Handler", "Progress", "Request", "request"]
