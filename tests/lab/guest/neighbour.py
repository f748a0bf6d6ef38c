"""What another client of the server notices while the daemon promotes 20,000 entries: its operations per second.

The server is a small one, made so by delays of its answers: one queue for both clients, see
:func:`lab.guest.server.be_small`. Both clients are on the one processor of this machine besides, and that is not meant:
so every few seconds the neighbour gets a queue of its own, and its operations with the shared queue are compared with
those. The daemon is of the lowest priority (SCHED_IDLE).
"""

import argparse
import mmap
import os
import statistics
import struct
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from typing import Self

from lab.guest import rpcs, server
from lab.guest.measure import say
from lab.guest.stack import Nfs, cool, layered_on, mounted_nfs, upper_home
from support.daemons import RunningDaemon, moment, mount_policy, wait_for
from support.trees import build, files

LEAST_WITH = MOST_WITHOUT = 0.95
"""The neighbour's operations/s, relative to those without the daemon: with limiter at least, without one at most."""
PLAIN, WITH_XATTRS, ENTRIES = 28, 12, 500
"""Directories, and names in each; in some the server is asked for each entry's extended attributes."""
ROUND_TRIP_MS, ANSWERS_PER_SECOND, BYTES_PER_SECOND = 6.0, 300.0, 10e6
_QUIET, _SLICE, _SETTLING = 20.0, 5.0, 0.5
_PATIENCE = 1500.0
_TREE = server.EXPORT + b"/neighbour"
_ADDRESS = "127.0.0.2"


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


@dataclass
class Rates:
    """The neighbour's operations per second, slice by slice, in the queue of both clients and in one of its own."""

    shared: list[float] = field(default_factory=list)
    apart: list[float] = field(default_factory=list)

    @property
    def kept(self) -> float:
        """What it keeps of its operations in spite of the daemon's requests."""
        return statistics.mean(self.shared) / statistics.mean(self.apart)


@contextmanager
def least_important() -> Iterator[None]:
    """What is started within the block runs when nothing else wants to."""
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    try:
        yield
    finally:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


def rate(neighbour: Neighbour, seconds: float) -> float:
    """Operations per second for so long."""
    before, begun = neighbour.done, time.monotonic()
    time.sleep(seconds)
    return (neighbour.done - before) / (time.monotonic() - begun)


def alternate(neighbour: Neighbour, is_over: Callable[[], object]) -> Rates:
    """One slice shared and one apart, until it is over; the first of each that were begun count."""
    rates = Rates()
    while not is_over():
        for found, on in ((rates.shared, False), (rates.apart, True)):
            if on:
                server.set_apart(_ADDRESS, on=True)
            time.sleep(_SETTLING)
            found.append(rate(neighbour, _SLICE))
            if on:
                server.set_apart(_ADDRESS, on=False)
    return rates


def promoting(neighbour: Neighbour, home: bytes, *, adaptive: bool) -> float:
    """What the neighbour keeps while the daemon promotes everything on an overlay of its own, to the last mark."""
    with layered_on(Nfs("4.2", "actimeo=600"), home, directories=[_TREE]) as overlay:
        cool(overlay)
        rules = [
            {"path": path, "promote": "always", "recheck": "1h", "xattrs": xattrs}
            for path, xattrs in (("plain*", "skip"), ("xattr*", "copy"))
        ]
        limits = {"entries_per_second": 5000, "concurrency": 8, "max_outstanding": 16, "adaptive": adaptive}
        policy = mount_policy(overlay, rules, backend="layer", limits=limits, activation_interval="1h")
        with RunningDaemon(b"/tmp/neighbour-%d" % time.monotonic_ns(), policy) as daemon:
            with least_important():
                daemon.launch()
            wait_for(lambda: daemon.find("directory", state="hot"), _PATIENCE, poll=0.1)  # the start is processor time
            begun = time.monotonic()

            def is_over() -> bool:
                assert time.monotonic() - begun < _PATIENCE, daemon.tail()
                return len(daemon.find("promoted")) == PLAIN + WITH_XATTRS

            with rpcs.counted() as counts:
                before = neighbour.done
                rates = alternate(neighbour, is_over)
                theirs = neighbour.done - before
            took = moment(daemon.find("promoted")[-1]) - moment(daemon.find("directory", state="hot")[0])
            asked = counts.total - theirs
            cuts = daemon.metric("promoterd_rate_cuts_total")
            reckoned = daemon.metric("promoterd_requests_total")
    say(
        f"neighbour: adaptive: {adaptive}: {(PLAIN + WITH_XATTRS) * ENTRIES:,} entries promoted in {took:.0f} s with "
        f"{asked:,} requests ({reckoned:,.0f} reckoned), {cuts:.0f} cuts; operations/s "
        f"{statistics.mean(rates.shared):.1f} in the same queue, {statistics.mean(rates.apart):.1f} in another, "
        f"{rates.kept:.1%}, {len(rates.shared)} pairs"
    )
    return rates.kept


def main() -> int:
    """Run it; 1 where the neighbour loses more than it may with the limiter, or not enough without it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    server.start("/dev/vdb")
    build(_TREE, {f"plain{number:02}": files(ENTRIES) for number in range(PLAIN)})
    build(_TREE, {f"xattr{number:02}": files(ENTRIES) for number in range(WITH_XATTRS)})
    kept: dict[bool, list[float]] = {True: [], False: []}
    with (
        mounted_nfs(Nfs("3", "actimeo=600", address=_ADDRESS), at=b"/mnt/neighbour") as share,
        Neighbour(share) as neighbour,
    ):
        server.be_small(ROUND_TRIP_MS, ANSWERS_PER_SECOND, BYTES_PER_SECOND)
        for _ in range(arguments.repeats):
            say(f"neighbour: {rate(neighbour, _QUIET):.1f} operations/s without the daemon")
            for adaptive in (True, False):
                with upper_home("tmpfs") as home:
                    kept[adaptive].append(promoting(neighbour, home, adaptive=adaptive))
        say(f"neighbour: {rate(neighbour, _QUIET):.1f} operations/s without the daemon")
    with_limiter, without = statistics.median(kept[True]), statistics.median(kept[False])
    say(f"neighbour: keeps {with_limiter:.1%} of its operations/s with the limiter, {without:.1%} without it")
    return 0 if with_limiter >= LEAST_WITH and without <= MOST_WITHOUT else 1


if __name__ == "__main__":
    sys.exit(main())
