"""How fast the server may be asked: as fast as it answers in its usual time (pure).

Additive increase, multiplicative decrease. What the NFS client counts of its own requests, everybody's on this machine,
tells how long the server takes: longer than usual means that others want it more. What is usual is learned for each
operation and size of reply, and forgotten after minutes.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from promoterd.overlay.rpcstats import Calls, Counted

LEAST = 20.0
"""Requests per second that are made in any case: work comes to an end even on a server that is always busy."""
FIRST = 50.0
"""Requests per second to begin with, and after a pause."""
STEP = 20.0
"""By so many requests per second the rate grows each second."""
CUT = 0.5
"""What is left of the rate when the server is slow."""
CALM = 5.0
"""Seconds after a cut in which the rate does not grow."""
FACTOR, FLOOR = 1.15, 0.00005
"""The server is slow when an answer takes so many times as long as usual, and so many seconds longer."""
SHARE = 0.5
"""Of the time, in which one request of ours waits for its answer: the rate goes no further, however fast they come."""
ENOUGH = 20
"""Answers that tell something together; fewer are kept until there are more."""
REMEMBERED = 600.0
"""Seconds for which a time is remembered."""
PAUSE = 60.0
"""Seconds without a look after which the rate tells nothing any more."""
_KEPT = 10.0
_SMOOTH = 0.25
"""What one look counts beside those before it; for what differs is mostly chance."""
_LOW = 0.2
"""Usual is a time that so many of those remembered are below."""

Class = tuple[bytes, str, int]
"""Requests that take about as long: of one mount and operation, with replies of about the same size."""


@dataclass(frozen=True, slots=True)
class Look:
    """What one look came to: seconds that an answer took, and would usually take; whether that slows us down."""

    took: float
    usually: float
    is_slow: bool


class Usual:
    """Of one class of requests: what an answer takes of late, and what it usually takes."""

    def __init__(self) -> None:
        self.of_late = 0.0
        """Seconds, smoothed."""
        self._times: deque[tuple[float, float]] = deque()

    def learn(self, seconds: float, now: float) -> None:
        """A mean of some answers."""
        while self._times and self._times[0][0] < now - REMEMBERED:
            self._times.popleft()
        self.of_late = self.of_late + _SMOOTH * (seconds - self.of_late) if self._times else seconds
        self._times.append((now, self.of_late))

    @property
    def seconds(self) -> float:
        """What is usual: low, but not the lowest by chance."""
        times = sorted(seconds for _, seconds in self._times)
        return times[int(_LOW * len(times))]


class Limiter:
    """The rate between ``least`` and ``most`` requests per second; None for ``most``: as policy sets none."""

    def __init__(self, most: float | None) -> None:
        self.most = most
        self.least = LEAST if most is None else min(LEAST, most)
        self.rate = FIRST if most is None else min(FIRST, most)
        self.cuts = 0
        """How often the rate was cut."""
        self.last: Look | None = None
        self._usual: dict[Class, Usual] = {}
        self._kept: list[Counted] = []
        self._kept_since = 0.0
        self._looked_at: float | None = None
        self._settling = False
        self._grows_from = 0.0

    def look(self, counted: Counted, asked: float, now: float) -> Look | None:
        """Take note of what was counted since the last look, and adapt the rate; None where that tells too little.

        ``asked``: requests that we made meanwhile. A rate that was not made use of does not grow. ``now``: seconds of a
        clock that is never set back.
        """
        elapsed = 1.0 if self._looked_at is None else now - self._looked_at
        if self._looked_at is None or elapsed > PAUSE:
            self.rate = min(self.rate, FIRST if self.most is None else min(FIRST, self.most))
        self._looked_at = now
        if sum(calls.timeouts + max(0, calls.sent - calls.done) for calls in counted.values()):
            self._cut(now)
            return self.last
        found = self._judge(counted, now)
        if found is not None:
            self.last = found
        if found is not None and found.is_slow:
            self._cut(now)
        else:
            self._settling = False
            if asked >= self.rate * elapsed / 2 and now >= self._grows_from:
                self.rate += STEP * min(elapsed, 2.0)
        self._stay_within()
        return found

    def _stay_within(self) -> None:
        if self.last is not None and self.last.took > 0:  # the kernel counts whole milliseconds: it may be none
            self.rate = min(self.rate, max(self.least, SHARE / self.last.took))
        if self.most is not None:
            self.rate = min(self.rate, self.most)

    def _cut(self, now: float) -> None:
        """Once, and again when the server had the time to notice."""
        if self._settling:
            self._settling = False
            return
        self._settling = True
        self._grows_from = now + CALM
        self.cuts += 1
        self.rate = max(self.least, self.rate * CUT)

    def _judge(self, counted: Counted, now: float) -> Look | None:
        if not self._kept or now - self._kept_since > _KEPT:
            self._kept, self._kept_since = [], now
        self._kept.append(counted)
        answers = sum(calls.done for part in self._kept for calls in part.values())
        if answers < ENOUGH:
            return None
        took = usually = 0.0
        for key, calls in _classes(self._kept):
            seconds = (calls.queued_ms + calls.rtt_ms) / 1000
            usual = self._usual.setdefault(key, Usual())
            usual.learn(seconds / calls.done, now)
            took += usual.of_late * calls.done
            usually += usual.seconds * calls.done
        self._kept = []
        excess = (took - usually) / answers
        is_slow = excess > FLOOR and took > FACTOR * usually
        return Look(took / answers, usually / answers, is_slow)


def _classes(parts: list[Counted]) -> Iterator[tuple[Class, Calls]]:
    total: dict[tuple[bytes, str], Calls] = {}
    for part in parts:
        for key, calls in part.items():
            total[key] = total[key] + calls if key in total else calls
    for (mountpoint, operation), calls in total.items():
        yield (mountpoint, operation, (calls.received // calls.done).bit_length()), calls
