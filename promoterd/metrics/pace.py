"""How fast one mount's server is asked, and what keeps it from being asked more, as metrics."""

import math

from promoterd.metrics.families import HOLDS, Families


class PaceMetrics:
    """Set by the work on one mount."""

    def __init__(self, metrics: Families, mount: str) -> None:
        self._rate = metrics.requests_per_second.labels(mount)
        self._cuts = metrics.rate_cuts.labels(mount)
        self._answers = [gauge.labels(mount) for gauge in (metrics.answer_seconds, metrics.usual_seconds)]
        self._requests = metrics.requests.labels(mount)
        self._budget_left = metrics.budget_left.labels(mount)
        for gauge in (self._rate, self._budget_left):
            gauge.set(math.inf)  # no limit until there is one
        for gauge in self._answers:
            gauge.set(math.nan)
        self._held = {reason: metrics.is_held.labels(mount, reason) for reason in HOLDS}

    def asked(self, requests: float) -> None:
        """So many requests were made."""
        self._requests.inc(requests)

    def rate(self, requests_per_second: float) -> None:
        """The rate adapted to the server."""
        self._rate.set(requests_per_second)

    def cut(self, times: int) -> None:
        """It was cut so often."""
        self._cuts.inc(times)

    def answered(self, took: float, usually: float) -> None:
        """Seconds that an answer took, and takes usually."""
        for gauge, value in zip(self._answers, (took, usually), strict=True):
            gauge.set(value)

    def budget_left(self, requests: float) -> None:
        """So many requests are left of the budget."""
        self._budget_left.set(requests)

    def held(self, reason: str | None) -> None:
        """One of HOLDS keeps the mount from promoting, or nothing does."""
        for one, gauge in self._held.items():
            gauge.set(one == reason)
