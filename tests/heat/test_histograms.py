from pathlib import Path

import pytest

from promoterd.heat.attribution import Inode
from promoterd.heat.base import Kind
from promoterd.heat.histograms import Growth, Histogram, clearing, parse
from promoterd.heat.lookups import LOOKUP, Reading
from promoterd.heat.tracepoints import (
    EXIT,
    MISS_FIELDS,
    Meaning,
    Trigger,
    has_field,
    joined,
    kernel_device,
    together,
    told_apart,
)

SAMPLES = Path(__file__).parent / "samples"
OURS = [31]


def sample(name: str) -> bytes:
    """What a kernel of that series showed: the same seven lookups, three of them of names that do not exist."""
    return (SAMPLES / name).read_bytes()


def read(reading: Reading, triggers: list[Trigger], *shown: bytes) -> dict[tuple[Inode, str], int]:
    found = [histogram for text in shown for histogram in parse(text)]
    pairs = [(trigger, histogram) for histogram in found for trigger in triggers if trigger.is_in(histogram.trigger)]
    return dict(reading.take(pairs).uses)


def test_what_linux_6_12_shows() -> None:
    missed, found = parse(sample("lookup_exit-6.12"))
    assert (missed.rows, missed.hits, missed.entries, missed.dropped) == ({(31, 4705, 0): 3}, 3, 1, 0)
    assert found.rows == {(31, 4703, 0): 1, (31, 4704, 0): 1, (31, 4705, 0): 4}
    uses = read(Reading(None), told_apart(OURS, 4096), sample("lookup_exit-6.12"))
    assert uses == {
        (Inode(31, 4705), Kind.MISS): 3,
        (Inode(31, 4705), Kind.FOUND): 4,
        (Inode(31, 4703), Kind.FOUND): 1,
        (Inode(31, 4704), Kind.FOUND): 1,
    }


def test_what_linux_6_1_shows() -> None:
    triggers = [*together([29], 4096), *joined([29], [3], 4096, "ours")]
    uses = read(Reading(Kind.FOUND), triggers, sample("miss-6.1"), sample("lookup_exit-6.1"))
    above = {(Inode(29, number), Kind.FOUND): 1 for number in (4703, 4704)}
    assert uses == {(Inode(29, 4705), Kind.MISS): 3, (Inode(29, 4705), Kind.FOUND): 4, **above}
    untold = read(Reading(LOOKUP), together([29], 4096), sample("lookup_exit-6.1"))
    assert untold == {(Inode(29, 4705), LOOKUP): 7, **{(inode, LOOKUP): 1 for inode, _ in above}}


def test_nonsense_is_left_out() -> None:
    assert parse(b"") == []
    assert parse(b"# event histogram\n#\n# trigger info: hist:keys=dev [active]\n#\n") == []
    assert parse(sample("lookup_exit-6.12")[:200]) == []


def histogram(rows: dict[tuple[int, ...], int], dropped: int = 0) -> Histogram:
    return Histogram("hist:keys=dev,dir", rows, sum(rows.values()) + dropped, len(rows), dropped)


def test_only_what_a_histogram_gained_counts() -> None:
    growth = Growth()
    assert growth.gained(histogram({(1, 2): 3})) == {(1, 2): 3}
    assert growth.gained(histogram({(1, 2): 3})) == {}
    assert growth.gained(histogram({(1, 2): 5, (1, 3): 1})) == {(1, 2): 2, (1, 3): 1}
    assert [growth.dropped(histogram({}, dropped)) for dropped in (4, 4, 9)] == [4, 0, 5]
    growth.cleared()
    assert growth.gained(histogram({(1, 2): 1})) == {(1, 2): 1}
    assert growth.dropped(histogram({}, 2)) == 2


def lookups(missed: int, both: int, dropped: int = 0) -> list[tuple[Trigger, Histogram]]:
    all_of, _ = together(OURS, 128)
    misses = joined(OURS, [4], 128, "ours")[-1]
    return [(misses, histogram({(31, 5, 2): missed})), (all_of, histogram({(31, 5, 0): both}, dropped))]


def test_a_miss_that_is_read_before_it_is_in_both_is_taken_off_later() -> None:
    reading, seen = Reading(Kind.FOUND), Inode(31, 5)
    assert reading.take(lookups(4, 3)).uses == {(seen, Kind.MISS): 4}
    assert reading.take(lookups(4, 6)).uses == {(seen, Kind.FOUND): 2}
    assert reading.take(lookups(4, 6)).events == 0


def test_a_miss_of_which_the_lookup_found_no_place_is_not_owed_for_ever() -> None:
    reading, seen = Reading(Kind.FOUND), Inode(31, 5)
    assert reading.take(lookups(1, 1)).uses == {(seen, Kind.MISS): 1}
    assert reading.take(lookups(3, 1, dropped=2)).uses == {(seen, Kind.MISS): 2}
    assert reading.take(lookups(4, 1, dropped=2)).uses == {(seen, Kind.MISS): 1}, "the last of these, read later"
    assert reading.take(lookups(4, 2, dropped=2)).uses == {(seen, Kind.FOUND): 1}
    assert reading.take(lookups(5, 2, dropped=2)).uses == {(seen, Kind.MISS): 1}
    assert reading.take(lookups(5, 4, dropped=2)).uses == {(seen, Kind.FOUND): 1}, "in order again"


def test_a_miss_of_which_the_lookup_was_cleared_away_is_not_owed_for_ever() -> None:
    reading, seen = Reading(Kind.FOUND), Inode(31, 5)
    assert reading.take(lookups(1, 1)).uses == {(seen, Kind.MISS): 1}
    reading.cleared(lookups(0, 0)[1][0])
    assert reading.take(lookups(2, 0)).uses == {(seen, Kind.MISS): 1}
    assert reading.take(lookups(2, 1)).uses == {(seen, Kind.FOUND): 1}


def test_other_errors_are_counted_and_are_no_use() -> None:
    missed, _, elsewhere = told_apart(OURS, 128)
    rows: dict[tuple[int, ...], int] = {(31, 5, 0): 2, (31, 5, 13): 3, (31, 6, 116): 4}
    taken = Reading(None).take([(missed, histogram(rows, dropped=6)), (elsewhere, histogram({(31,): 8}))])
    assert taken.uses == {(Inode(31, 5), Kind.MISS): 2}
    assert (taken.failed, taken.dropped, taken.elsewhere, taken.events) == (7, 6, 8, 2 + 7 + 6 + 8)


def test_commands() -> None:
    missed, found, elsewhere = told_apart([31, 47], 4096)
    condition = '(dev == 31 || dev == 47) && flags == 0 && fileid == 0 && !(comm ~ "promoterd*")'
    assert missed.command == f"hist:keys=dev,dir,error:size=4096 if {condition}"
    assert clearing(missed.command) == f"hist:keys=dev,dir,error:size=4096:clear if {condition}"
    assert clearing("hist:keys=dev:size=128") == "hist:keys=dev:size=128:clear"
    assert "fileid != 0" in found.condition
    assert (elsewhere.meaning, elsewhere.command.count("flags != 0")) == (Meaning.ELSEWHERE, 1)


def test_what_we_do_ourselves_is_counted_nowhere() -> None:
    told = told_apart(OURS, 128)
    joining = joined(OURS, [3, 4], 128, "ours")
    asked = [trigger for trigger in joining if trigger.event in ("nfs/nfs_xdr_status", "nfs4/nfs4_lookup")]
    assert len(asked) == 2  # what these leave out is handed on to no other
    for trigger in (*told, *together(OURS, 128), *asked):
        assert trigger.condition.endswith(' && !(comm ~ "promoterd*")')


def test_the_join_takes_its_misses_from_the_protocol_in_use() -> None:
    v3, hand_on, misses = joined(OURS, [3, 3], 1024, "ours")
    assert v3.event == "nfs/nfs_xdr_status"
    assert (hand_on.event, misses.event) == (EXIT, "synthetic/ours")
    assert hand_on.command == (
        "hist:keys=common_pid:m3=$v3+0,d3=dev,i3=dir,f3=flags"
        ":onmatch(nfs.nfs_xdr_status).trace(ours,$d3,$i3,$f3,$m3):size=1024"
    )
    assert [field.split()[1] for field in MISS_FIELDS.split("; ")] == ["dev", "dir", "flags", "missed"]
    assert [trigger.event for trigger in joined(OURS, [4, 3], 128, "ours")] == [
        *("nfs/nfs_xdr_status", "nfs4/nfs4_lookup", EXIT, EXIT, "synthetic/ours")
    ]


@pytest.mark.parametrize(("name", "there"), [("fileid", True), ("dir", True), ("file", False), ("error", False)])
def test_fields_of_an_event(name: str, there: bool) -> None:
    layout = (
        "name: nfs_lookup_exit\nID: 1\nformat:\n\tfield:unsigned short common_type;\toffset:0;\n\n"
        '\tfield:u64 dir;\toffset:32;\n\tfield:u64 fileid;\toffset:40;\n\nprint fmt: "error=%ld", REC->error\n'
    )
    assert has_field(layout, name) is there


def test_a_device_as_the_kernel_keeps_it() -> None:
    assert [kernel_device(device) for device in ((0, 31), (8, 1), (0, 1 << 19))] == [31, (8 << 20) + 1, 1 << 19]
