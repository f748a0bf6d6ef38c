import pytest

from promoterd.overlay.mountinfo import MountEntry, parse
from promoterd.overlay.nfs import (
    Lifetimes,
    Lookups,
    keeps_nothing,
    lifetimes,
    longest_round_trip,
    lookups,
    nfs_layers,
    round_trip,
    shortest_lifetimes,
)

MOUNTSTATS = b"""\
device rootfs mounted on / with fstype rootfs
device server:/a mounted on /mnt/a\\040b with fstype nfs4 statvers=1.1
\topts:\trw,vers=4.2
\tper-op statistics
\t        READ: 9 9 0 1 1 1 1 1 0
\t      LOOKUP: 700 700 0 123 456 7 8 9 650
\t    SETATTR: 0 0 0 0 0 0 0 0 0
device proc mounted on /proc with fstype proc
device server:/b mounted on /mnt/b with fstype nfs statvers=1.1
\tper-op statistics
\t      LOOKUP: 10 11 0 1 1 1 1 1 1
device server:/old mounted on /mnt/old with fstype nfs statvers=1.0
\tper-op statistics
\t      LOOKUP: 10 11 0 1 1 1 1 1
device server:/c mounted on /mnt/b with fstype nfs statvers=1.1
\tper-op statistics
\t      LOOKUP: 20 20 0 1 1 1 1 1 2
"""


def entry(options: bytes) -> MountEntry:
    return parse(b"33 21 0:33 / /nfs rw - nfs4 server:/export rw,vers=4.2" + options)[0]


@pytest.mark.parametrize(
    ("options", "found"),
    [
        (b"", Lifetimes(3, 60)),
        (b",acregmin=600,acregmax=600,acdirmin=600,acdirmax=600", Lifetimes(600, 600)),
        (b",acregmin=10", Lifetimes(10, 60)),
        (b",acregmax=7,hard", Lifetimes(3, 7)),
        (b",acregmin=0,acregmax=0,acdirmin=0,acdirmax=0,noac", Lifetimes(0, 0)),
        (b",acregmin=odd", Lifetimes(3, 60)),
    ],
)
def test_lifetimes_as_mountinfo_shows_them(options: bytes, found: Lifetimes) -> None:
    assert lifetimes(entry(options)) == found


@pytest.mark.parametrize(
    ("options", "found"),
    [
        (b"", None),
        (b",lookupcache=pos", None),
        (b",lookupcache=none", "lookupcache=none"),
        (b",nordirplus", "nordirplus"),
        (b",acregmin=0,acregmax=0", "actimeo=0"),
        (b",acregmin=0", "acregmin=0"),
        (b",acregmin=0,acregmax=0,noac", "noac"),
    ],
)
def test_options_that_let_nothing_be_kept(options: bytes, found: str | None) -> None:
    assert keeps_nothing(entry(options)) == found


def test_lifetimes_double_up_to_the_longest() -> None:
    assert [Lifetimes().after(times) for times in range(7)] == [3, 6, 12, 24, 48, 60, 60]
    assert Lifetimes(600, 600).after(0) == Lifetimes(600, 600).after(10**9) == 600
    assert Lifetimes(70, 60).after(0) == 60, "the longest is the longest"


def test_lookups_of_the_mount_on_top() -> None:
    assert lookups(MOUNTSTATS, b"/mnt/a b") == Lookups(700, 650)
    assert lookups(MOUNTSTATS, b"/mnt/b") == Lookups(20, 2)
    assert lookups(MOUNTSTATS, b"/mnt/old") is None, "older kernels count no errors"
    assert lookups(MOUNTSTATS, b"/proc") is None
    assert lookups(b"", b"/mnt/b") is None


def test_what_is_local_is_not_on_nfs(tmp_path: object) -> None:
    layers = [str(tmp_path).encode(), b"relative", b"/proc"]
    assert nfs_layers(layers) == ()
    assert shortest_lifetimes(layers) is None


def test_the_round_trip_is_that_of_small_requests_and_of_enough_of_them() -> None:
    counted = (
        MOUNTSTATS
        + b"""\
device server:/far mounted on /mnt/far with fstype nfs4 statvers=1.1
\tper-op statistics
\t        READ: 900 900 0 1 1 9 99999 99999 0
\t     GETATTR: 50 50 0 1 1 700 5000 5900 0
\t      LOOKUP: 100 101 0 1 1 900 9900 11000 90
\t      ACCESS: 10 10 0 1 1 0 1100 1200 0
"""
    )
    assert round_trip(counted, b"/mnt/far") == pytest.approx(0.1)
    assert round_trip(counted, b"/mnt/a b") == pytest.approx(0.008 / 700)
    assert round_trip(counted, b"/mnt/b") is None, "20 requests are too few"
    assert round_trip(counted, b"/nowhere") is None
    assert longest_round_trip((b"/tmp", b"not absolute")) is None
