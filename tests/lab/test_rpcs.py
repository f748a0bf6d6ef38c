"""Counting from mountstats."""

from lab.guest import rpcs

MOUNTSTATS = """\
device rootfs mounted on / with fstype rootfs
device 127.0.0.1:/share mounted on /mnt/nfs with fstype nfs4 statvers=1.1
        opts:        rw,vers=4.2
        per-op statistics
                NULL: 1 1 0 44 24 0 0 0 0
                READ: 0 0 0 0 0 0 0 0 0
                OPEN: 7 7 0 100 200 1 2 3 2
         OPEN_NOATTR: 3 3 0 100 200 1 2 3 1
             GETATTR: 12 12 0 100 200 1 2 3 5
              LOOKUP: 40 41 0 100 200 1 2 3 30

device 127.0.0.1:/share mounted on /mnt/data with fstype nfs statvers=1.1
              LOOKUP: 2 2 0 100 200 1 2 3 1
"""


def test_all_mounts_count_and_failed_lookups_and_opens_are_missing_names() -> None:
    counts = rpcs.parse(MOUNTSTATS)
    assert counts.operations["LOOKUP"] == 42
    assert counts.operations["GETATTR"] == 12
    assert counts.total == 1 + 7 + 3 + 12 + 42
    assert counts.missing == 2 + 1 + 31, "GETATTR asks for no name"
    counts.operations["READLINK"] = 2
    assert counts.missing == 1 + 31, "two of the opens that failed were of symlinks"
    counts.operations["READLINK"] = 9
    assert counts.missing == 31, "symlinks that nobody opened"
