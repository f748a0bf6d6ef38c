"""What the NFS client counts of each operation of a mount: calls, their times, and those that were lost."""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields
from typing import Self

from promoterd.overlay.escapes import unescape_octal

_MOUNTSTATS = "/proc/self/mountstats"
DATA = frozenset({"READ", "READ_PLUS", "WRITE", "COMMIT", "COPY", "CLONE", "ALLOCATE", "DEALLOCATE"})
"""Operations that take as long as the data that they carry."""
_BLOCK = re.compile(rb"^device ", re.MULTILINE)
_DEVICE = re.compile(rb"\S+ mounted on (\S+) with fstype nfs4? ")
# ops, transmissions, timeouts, bytes sent and received, then in ms: queue, round trip, execution: rpc_print_iostats(),
# net/sunrpc/stats.c
_OPERATION = re.compile(rb"^\s+([A-Z][A-Z0-9_]*): (\d+) (\d+) (\d+) \d+ (\d+) (\d+) (\d+) \d+(?: \d+)?$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Calls:
    """Of one operation: calls, transmissions of them, major timeouts, bytes of replies, and milliseconds in all.

    ``queued_ms`` were spent waiting to be sent, ``rtt_ms`` from there to the reply.
    """

    done: int = 0
    sent: int = 0
    timeouts: int = 0
    received: int = 0
    queued_ms: int = 0
    rtt_ms: int = 0

    @property
    def is_backward(self) -> bool:
        """Whether a difference shows that the later numbers are no continuation of the earlier ones."""
        return any(getattr(self, one.name) < 0 for one in fields(self))

    def __sub__(self, before: Self) -> Self:
        return type(self)(*(getattr(self, one.name) - getattr(before, one.name) for one in fields(self)))

    def __add__(self, other: Self) -> Self:
        return type(self)(*(getattr(self, one.name) + getattr(other, one.name) for one in fields(self)))


Counted = Mapping[tuple[bytes, str], Calls]
"""By mount point and operation."""


def by_mountpoint(mountstats: bytes) -> dict[bytes, bytes]:
    """What mountstats says of each NFS mount; of the last one at a mount point, which covers the others."""
    matches = ((_DEVICE.match(block), block) for block in _BLOCK.split(mountstats))
    return {unescape_octal(device[1]): block for device, block in matches if device is not None}


def counted(mountstats: bytes, mountpoints: Collection[bytes]) -> Counted:
    """What was counted since these mounts were made, but for operations that carry data, or were never called."""
    found: dict[tuple[bytes, str], Calls] = {}
    for mountpoint, block in by_mountpoint(mountstats).items():
        if mountpoint not in mountpoints:
            continue
        for name, *numbers in _OPERATION.findall(block):
            operation = name.decode("ascii")
            calls = Calls(*map(int, numbers))
            if calls.done and operation not in DATA:
                found[mountpoint, operation] = calls
    return found


def since(before: Counted, after: Counted) -> Counted:
    """What was counted meanwhile; nothing of a mount that was made anew."""
    changes = {key: calls - before.get(key, Calls()) for key, calls in after.items()}
    return {key: calls for key, calls in changes.items() if calls.done > 0 and not calls.is_backward}


def now(mountpoints: Collection[bytes]) -> Counted:
    """What is counted now. Asks no server. Raises OSError."""
    return counted(read(), mountpoints)


def read() -> bytes:
    """All of mountstats. Raises OSError."""
    with open(_MOUNTSTATS, "rb") as file:
        return file.read()
