"""What reached the server, counted by the client: ``/proc/self/mountstats``.

It lists no NFSACL calls (NFS v3's GETACL): count v3 at the server as well, :func:`lab.guest.server.calls`.
"""

import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import monotonic

from lab.guest import server

MOUNTSTATS = "/proc/self/mountstats"
# "LOOKUP: ops transmissions timeouts bytes-sent bytes-received queue-ms rtt-ms execute-ms errors",
# rpc_print_iostats() in net/sunrpc/stats.c; the last one from Linux 5.3 on
_OPERATION = re.compile(r"^\s+([A-Z][A-Z0-9_]*): (\d+)(?: \d+){7} (\d+)$", re.MULTILINE)


@dataclass
class Counts:
    """RPCs by operation, those of them that ended in an error, and all that the server saw."""

    operations: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    at_server: int = 0
    seconds: float = 0.0

    @property
    def total(self) -> int:
        return self.operations.total()

    @property
    def missing(self) -> int:
        """Answers that a name does not exist, as long as the share forbids nothing.

        mountstats says how many ended in an error, not in which. NFS v4 opens and looks up at once where a program
        opens a name that is not known (nfs_atomic_open); for a symlink that fails as well, and a READLINK follows.
        """
        opens = self.errors["OPEN"] + self.errors["OPEN_NOATTR"]
        return self.errors["LOOKUP"] + max(0, opens - self.operations["READLINK"])


def parse(mountstats: str) -> Counts:
    """All NFS mounts together."""
    counts = Counts()
    for operation, done, failed in _OPERATION.findall(mountstats):
        counts.operations[operation] += int(done)
        counts.errors[operation] += int(failed)
    return counts


def so_far() -> Counts:
    """Since the mounts were made."""
    with open(MOUNTSTATS, encoding="utf-8", errors="surrogateescape") as file:
        counts = parse(file.read())
    counts.at_server = server.calls()
    return counts


@contextmanager
def counted() -> Iterator[Counts]:
    """What the block causes, filled in at its end."""
    result = Counts()
    before, begun = so_far(), monotonic()
    yield result
    result.seconds = monotonic() - begun
    after = so_far()
    result.operations = after.operations - before.operations
    result.errors = after.errors - before.errors
    result.at_server = after.at_server - before.at_server
