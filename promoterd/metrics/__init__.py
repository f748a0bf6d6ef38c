"""Metrics for Prometheus: families, the view of one mount, and the server."""

from promoterd.metrics.families import EFFECTS, HOLDS, OUTCOMES, REOPENS, WARMING
from promoterd.metrics.metrics import Metrics
from promoterd.metrics.mount import MountMetrics
from promoterd.metrics.server import MetricsServer

__all__ = ["EFFECTS", "HOLDS", "OUTCOMES", "REOPENS", "WARMING", "Metrics", "MetricsServer", "MountMetrics"]
