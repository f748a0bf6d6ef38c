"""What the NFS client believes for how long, and what it asked so far: mountinfo and mountstats (nfs(5))."""

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from promoterd.overlay import rpcstats
from promoterd.overlay.holding import mounts_holding
from promoterd.overlay.mountinfo import MountEntry

FSTYPES = ("nfs", "nfs4")
# NFS_DEF_ACREGMIN and NFS_DEF_ACREGMAX, include/linux/nfs_fs.h; mountinfo shows what differs from them
_LEAST, _MOST = 3.0, 60.0
# ops, transmissions, timeouts, bytes sent and received, three times in ms, errors: rpc_print_iostats(), net/sunrpc
_LOOKUPS = re.compile(rb"^\s+LOOKUP: (\d+)(?: \d+){7} (\d+)$", re.MULTILINE)
_SMALL = ("LOOKUP", "GETATTR", "ACCESS")
_ENOUGH = 100
"""Requests from which on their time says something: it is counted in whole milliseconds for all of them together."""


@dataclass(frozen=True, slots=True)
class Lifetimes:
    """For how many seconds the attributes of a file are believed: ``least`` at first, ``most`` in the end."""

    least: float = _LEAST
    most: float = _MOST

    def after(self, times: int) -> float:
        """How long they are believed when they were found unchanged so many times, each after they had expired.

        The lifetime is doubled then, and only then; one that is renewed before it ends stays as long as it was
        (nfs_update_inode(), fs/nfs/inode.c).
        """
        life = self.least
        for _ in range(times):
            if life >= self.most:
                break
            life *= 2
        return min(life, self.most)


@dataclass(frozen=True, slots=True)
class Lookups:
    """LOOKUP requests since the mount was made, and those of them that failed: names that do not exist, nearly all."""

    asked: int
    missed: int


@dataclass(frozen=True, slots=True)
class NfsLayer:
    """A lower layer that lies on NFS. ``lookups`` are those of its whole mount; None where the kernel counts none.

    ``keeps_nothing`` is the mount option because of which what was read in advance is asked again all the same.
    """

    layer: bytes
    lifetimes: Lifetimes
    keeps_nothing: str | None = None
    lookups: Lookups | None = None


def lifetimes(entry: MountEntry) -> Lifetimes:
    """Those of an NFS mount, from its options."""
    shown = dict(_options(entry.super_options))
    return Lifetimes(_seconds(shown.get(b"acregmin"), _LEAST), _seconds(shown.get(b"acregmax"), _MOST))


def keeps_nothing(entry: MountEntry) -> str | None:
    """The option of an NFS mount that lets its client believe nothing that a readdir told it; None where none does."""
    shown = dict(_options(entry.super_options))
    known = lifetimes(entry)
    if b"noac" in shown or not (known.least and known.most):
        return "noac" if b"noac" in shown else "actimeo=0" if not known.most else "acregmin=0"
    if b"nordirplus" in shown:
        return "nordirplus"
    return "lookupcache=none" if shown.get(b"lookupcache") == b"none" else None


def lookups(mountstats: bytes, mountpoint: bytes) -> Lookups | None:
    """What mountstats says of the mount at ``mountpoint``."""
    counts = _LOOKUPS.search(rpcstats.by_mountpoint(mountstats).get(mountpoint, b""))
    return None if counts is None else Lookups(int(counts[1]), int(counts[2]))


def round_trip(mountstats: bytes, mountpoint: bytes) -> float | None:
    """How many seconds a small request to the server of a mount took, on average; None where there were too few."""
    counted = rpcstats.counted(mountstats, {mountpoint})
    calls = [counted[mountpoint, operation] for operation in _SMALL if (mountpoint, operation) in counted]
    requests = sum(one.done for one in calls)
    return sum(one.rtt_ms for one in calls) / requests / 1000 if requests >= _ENOUGH else None


def longest_round_trip(mountpoints: Collection[bytes]) -> float | None:
    """Of these NFS mounts, the longest; None where that cannot be told of any. Asks no server. Raises OSError."""
    mountstats = rpcstats.read()
    return max((took for at in mountpoints if (took := round_trip(mountstats, at)) is not None), default=None)


def nfs_layers(layers: Sequence[bytes]) -> tuple[NfsLayer, ...]:
    """Those of the layers that lie on NFS. Raises OSError."""
    found = _on_nfs(layers)
    if not found:
        return ()
    counted = rpcstats.read()
    return tuple(
        NfsLayer(layer, lifetimes(entry), keeps_nothing(entry), lookups(counted, entry.mountpoint))
        for layer, entry in found
    )


def shortest_lifetimes(layers: Sequence[bytes]) -> Lifetimes | None:
    """What holds for all of the layers that lie on NFS; None without any."""
    known = [lifetimes(entry) for _, entry in _on_nfs(layers)]
    return Lifetimes(min(one.least for one in known), min(one.most for one in known)) if known else None


def mountpoints(layers: Sequence[bytes]) -> frozenset[bytes]:
    """Of the NFS mounts that layers lie on. Raises OSError."""
    return frozenset(entry.mountpoint for _, entry in _on_nfs(layers))


def _on_nfs(layers: Sequence[bytes]) -> list[tuple[bytes, MountEntry]]:
    found = zip(layers, mounts_holding(layers), strict=True)
    return [(layer, entry) for layer, entry in found if entry is not None and entry.fstype in FSTYPES]


def _options(super_options: bytes) -> Iterator[tuple[bytes, bytes]]:
    for option in super_options.split(b","):
        name, _, value = option.partition(b"=")
        yield name, value


def _seconds(value: bytes | None, default: float) -> float:
    return float(value) if value is not None and value.isdigit() else default
