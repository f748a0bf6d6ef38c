from promoterd.overlay.rpcstats import Calls, counted, since

MOUNTSTATS = b"""\
device rootfs mounted on / with fstype rootfs
device server:/a mounted on /mnt/a\\040b with fstype nfs4 statvers=1.1
\topts:\trw,vers=4.2
\txprt:\ttcp 0 0 1 0 0 1000 1000 0 1000 0 2 0 0
\tper-op statistics
\t        READ: 9 9 0 1 1 1 1 1 0
\t      LOOKUP: 700 702 1 123 456 7 8 9 650
\t     GETATTR: 0 0 0 0 0 0 0 0 0
device proc mounted on /proc with fstype proc
device server:/b mounted on /mnt/b with fstype nfs statvers=1.0
\tper-op statistics
\t READDIRPLUS: 10 10 0 1 50000 3 20 25
device server:/c mounted on /mnt/c with fstype nfs statvers=1.1
\tper-op statistics
\t      ACCESS: 1 1 0 1 1 1 1 1 0
"""


def test_metadata_operations_of_the_mounts_that_are_meant() -> None:
    assert counted(MOUNTSTATS, {b"/mnt/a b", b"/mnt/b"}) == {
        (b"/mnt/a b", "LOOKUP"): Calls(700, 702, 1, 456, 7, 8),
        (b"/mnt/b", "READDIRPLUS"): Calls(10, 10, 0, 50_000, 3, 20),
    }
    assert counted(b"", {b"/mnt/b"}) == {}


def test_of_two_mounts_in_one_place_the_upper_one_counts() -> None:
    again = (
        MOUNTSTATS
        + b"""\
device server:/d mounted on /mnt/b with fstype nfs statvers=1.1
\tper-op statistics
\t     GETATTR: 3 3 0 1 6 1 2 3 0
"""
    )
    assert counted(again, {b"/mnt/b"}) == {(b"/mnt/b", "GETATTR"): Calls(3, 3, 0, 6, 1, 2)}


def test_what_was_counted_meanwhile() -> None:
    before = {(b"/b", "LOOKUP"): Calls(10, 10, 0, 1000, 1, 20), (b"/b", "ACCESS"): Calls(5, 5, 0, 5, 5, 5)}
    after = {
        (b"/b", "LOOKUP"): Calls(15, 16, 1, 1500, 2, 60),
        (b"/b", "ACCESS"): Calls(5, 5, 0, 5, 5, 5),
        (b"/b", "OPEN"): Calls(1, 1, 0, 1, 0, 3),
    }
    assert since(before, after) == {
        (b"/b", "LOOKUP"): Calls(5, 6, 1, 500, 1, 40),
        (b"/b", "OPEN"): Calls(1, 1, 0, 1, 0, 3),
    }
    assert since(after, before) == {}, "the mount was made anew, and counts from nothing"


def test_a_mount_made_anew_that_has_been_asked_more_by_now() -> None:
    before = {(b"/b", "LOOKUP"): Calls(10, 18, 8, 1000, 1, 20)}
    assert since(before, {(b"/b", "LOOKUP"): Calls(50, 50, 0, 5000, 1, 60)}) == {}
