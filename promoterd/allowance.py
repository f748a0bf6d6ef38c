"""So many requests in so much time (pure)."""

from collections import deque

_PARTS = 60


class Allowance:
    """At most ``requests`` in any ``window`` seconds, counted in sixtieths of it; more may be spent than is left."""

    def __init__(self, requests: float, window: float) -> None:
        self.requests = requests
        self.window = window
        self._part = window / _PARTS
        self._spent: deque[list[float]] = deque()
        """Parts of the window, each with its beginning and what was spent in it."""

    def spend(self, requests: float, now: float) -> None:
        """So many were made now."""
        if not requests:
            return
        self._forget(now)
        if not self._spent or now >= self._spent[-1][0] + self._part:
            self._spent.append([now, 0.0])
        self._spent[-1][1] += requests

    def left(self, now: float) -> float:
        """How many may be made; never less than none."""
        self._forget(now)
        return max(0.0, self.requests - self._total())

    def more_at(self, now: float) -> float:
        """When there will be some left again; now, where there are."""
        self._forget(now)
        total = self._total()
        for begun, spent in self._spent:
            if total < self.requests:
                break
            total -= spent
            now = begun + self.window + self._part
        return now

    def _total(self) -> float:
        return sum(spent for _, spent in self._spent)

    def _forget(self, now: float) -> None:
        for part in self._spent:
            part[0] = min(part[0], now)  # the clock was set back: what was spent counts from now on
        while self._spent and self._spent[0][0] + self._part + self.window <= now:
            self._spent.popleft()
