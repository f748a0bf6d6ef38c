"""What another client of the server notices while the daemon promotes 20,000 entries: its operations per second.

The server is a small one, made so by delays of its answers: one queue for both clients, see
:func:`lab.guest.server.be_small`. So it is the server that both want, and not the one processor of this machine, for
which the daemon is of the lowest priority (SCHED_IDLE): a neighbour is another machine.
"""

import argparse
import mmap
import os
import statistics
import struct
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from typing import Self

from lab.guest import rpcs, server
from lab.guest.measure import say
from lab.guest.stack import Nfs, cool, layered_on, mounted_nfs, upper_home
from support.daemons import RunningDaemon, moment, mount_policy, wait_for
from support.trees import build, files

LEAST_WITH, MOST_WITHOUT = 0.95, 0.9
"""The neighbour's operations/s, relative to those without the daemon: with limiter at least, without one at most."""
DIRECTORIES, ENTRIES = 40, 500
ROUND_TRIP_MS, ANSWERS_PER_SECOND, BYTES_PER_SECOND = 20.0, 200.0, 10e6
_QUIET = 20.0
_PATIENCE = 1500.0
_TREE = server.EXPORT + b"/neighbour"


class Neighbour:
    """A process that looks names up, one after the other, over a mount of its own; a context manager."""

    def __init__(self, directory: bytes) -> None:
        self._directory = directory
        self._done = mmap.mmap(-1, 8)
        self._pid = 0

    def __enter__(self) -> Self:
        self._pid = os.fork()
        if not self._pid:
            self._work()
        return self

    def __exit__(self, *_: object) -> None:
        os.kill(self._pid, 9)
        os.waitpid(self._pid, 0)

    def _work(self) -> None:
        try:
            for number in count():
                os.path.lexists(self._directory + b"/no%d" % number)
                self._done[:] = struct.pack("q", number)
        finally:
            os._exit(1)

    @property
    def done(self) -> int:
        (number,) = struct.unpack("q", self._done[:])
        return int(number)


@dataclass(frozen=True)
class Period:
    """What the neighbour did in some time, and what the daemon asked of the server meanwhile."""

    operations: int
    seconds: float
    asked: int = 0
    cuts: float = 0.0

    @property
    def rate(self) -> float:
        return self.operations / self.seconds


@contextmanager
def least_important() -> Iterator[None]:
    """What is started within the block runs when nothing else wants to."""
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    try:
        yield
    finally:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


def quiet(neighbour: Neighbour) -> Period:
    """Without the daemon."""
    before, begun = neighbour.done, time.monotonic()
    time.sleep(_QUIET)
    return Period(neighbour.done - before, time.monotonic() - begun)


def promoting(neighbour: Neighbour, home: bytes, *, adaptive: bool) -> Period:
    """While the daemon promotes everything on an overlay of its own, from its first request to its last mark."""
    with layered_on(Nfs("4.2", "actimeo=600"), home, directories=[_TREE]) as overlay:
        cool(overlay)
        policy = mount_policy(
            overlay,
            [{"path": "lib*", "promote": "always", "recheck": "1h"}],
            backend="layer",
            limits={"entries_per_second": 5000, "concurrency": 8, "max_outstanding": 16, "adaptive": adaptive},
            activation_interval="1h",
        )
        with RunningDaemon(b"/tmp/neighbour-" + str(time.monotonic_ns()).encode(), policy) as daemon:
            with least_important():
                daemon.launch()
            wait_for(lambda: daemon.find("directory", state="hot"), _PATIENCE, poll=0.1)  # the start is processor time
            with rpcs.counted() as counts:
                before, begun = neighbour.done, time.monotonic()
                wait_for(lambda: len(daemon.find("promoted")) == DIRECTORIES, _PATIENCE, poll=1.0)
                operations, seconds = neighbour.done - before, time.monotonic() - begun
            cuts = daemon.metric("promoterd_rate_cuts_total")
            took = moment(daemon.find("promoted")[-1]) - moment(daemon.find("directory", state="shadowing")[0])
            say(f"neighbour: {DIRECTORIES * ENTRIES:,} entries promoted within {took:.0f} s, adaptive: {adaptive}")
    return Period(operations, seconds, counts.total - counts.operations["LOOKUP"], cuts)


def main() -> int:
    """Run it; 1 where the neighbour loses more than it may with the limiter, or not enough without it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    server.start("/dev/vdb")
    build(_TREE, {f"lib{number:02}": files(ENTRIES) for number in range(DIRECTORIES)})
    ratios: dict[bool, list[float]] = {True: [], False: []}
    with (
        mounted_nfs(Nfs("3", "actimeo=600", address="127.0.0.2"), at=b"/mnt/neighbour") as share,
        Neighbour(share) as neighbour,
    ):
        server.be_small(ROUND_TRIP_MS, ANSWERS_PER_SECOND, BYTES_PER_SECOND)
        quiet(neighbour)
        before = quiet(neighbour)
        for _ in range(arguments.repeats):
            for adaptive in (True, False):
                with upper_home("tmpfs") as home:
                    period = promoting(neighbour, home, adaptive=adaptive)
                after = quiet(neighbour)
                ratio = period.rate / statistics.mean([before.rate, after.rate])
                ratios[adaptive].append(ratio)
                say(
                    f"neighbour: {before.rate:.1f} and {after.rate:.1f} operations/s without the daemon, "
                    f"{period.rate:.1f} with it for {period.seconds:.0f} s ({ratio:.1%}), adaptive: {adaptive}, "
                    f"{period.asked} requests of others than LOOKUP, {period.cuts:.0f} cuts"
                )
                before = after
    kept, lost = statistics.median(ratios[True]), statistics.median(ratios[False])
    say(f"neighbour: keeps {kept:.1%} of its operations/s with the limiter, {lost:.1%} without it")
    return 0 if kept >= LEAST_WITH and lost <= MOST_WITHOUT else 1


if __name__ == "__main__":
    sys.exit(main())
