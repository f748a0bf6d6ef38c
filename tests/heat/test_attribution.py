import pytest

from promoterd.heat import attribution
from promoterd.heat.attribution import (
    CONFIRMED_FOR,
    HELD_FOR,
    SEARCH_EVERY,
    SEARCH_FROM,
    Attribution,
    Inode,
)

LIB, BIN, NEW = Inode(31, 10), Inode(31, 11), Inode(31, 99)
SAME_NUMBER = Inode(32, 10)


@pytest.fixture
def known() -> Attribution:
    made = Attribution(100, 0.0)
    made.confirm(b"lib", [LIB], [], 0.0)
    made.confirm(b"bin", [BIN], [], 0.0)
    return made


def test_events_belong_to_the_directory_with_that_inode(known: Attribution) -> None:
    known.hear(LIB, "miss", 3, 1.0)
    known.hear(LIB, "found", 2, 1.0)
    known.hear(BIN, "miss", 1, 1.0)
    assert known.settle(1.0) == {(b"lib", "miss"): 3, (b"lib", "found"): 2, (b"bin", "miss"): 1}
    assert known.settle(2.0) == {}
    assert known.unattributed == 0


def test_an_inode_number_belongs_to_its_device(known: Attribution) -> None:
    known.hear(SAME_NUMBER, "miss", 4, 1.0)
    assert known.settle(1.0) == {}
    known.confirm(b"other", [SAME_NUMBER], [], 1.0)
    assert known.settle(1.0) == {(b"other", "miss"): 4}


def test_what_was_seen_long_ago_is_confirmed_first(known: Attribution) -> None:
    late = CONFIRMED_FOR + 1
    known.hear(LIB, "miss", 3, late)
    assert known.settle(late) == {}
    assert known.doubtful(10) == [b"lib"]
    known.confirm(b"lib", [LIB], [], late + 1)
    assert known.doubtful(10) == []
    assert known.settle(late + 1) == {(b"lib", "miss"): 3}


def test_a_renamed_directory_gets_nothing_under_its_old_path(known: Attribution) -> None:
    late = CONFIRMED_FOR + 1
    known.hear(LIB, "miss", 3, late)
    known.forget(b"lib")
    assert known.settle(late) == {}
    known.confirm(b"moved", [LIB], [], late + 5)
    assert known.settle(late + 5) == {(b"moved", "miss"): 3}


def test_a_reused_inode_number_is_no_longer_the_old_directory(known: Attribution) -> None:
    late = CONFIRMED_FOR + 1
    known.hear(LIB, "miss", 3, late)
    known.confirm(b"lib", [NEW], [], late)
    assert known.settle(late) == {}
    assert known.settle(late + HELD_FOR + 1) == {}
    assert known.unattributed == 3


def test_two_claimants_get_nothing_until_one_of_them_is_gone(known: Attribution) -> None:
    late = CONFIRMED_FOR + 1
    known.confirm(b"moved", [LIB], [], late)
    known.hear(LIB, "miss", 3, late + 1)
    assert known.settle(late + 1) == {}
    assert known.doubtful(10) == [b"lib", b"moved"]
    known.forget(b"lib")
    assert known.settle(late + 1) == {(b"moved", "miss"): 3}
    known.confirm(b"twin", [LIB], [], late + 2)
    known.hear(LIB, "miss", 5, late + 2)
    assert known.settle(late + 2) == {}
    assert known.unattributed == 5


def test_what_another_overlay_shows_is_nobodys() -> None:
    known = Attribution(100, 0.0)
    known.confirm(b"lib", [LIB, BIN], [LIB], 0.0)
    known.hear(LIB, "miss", 3, 1.0)
    known.hear(BIN, "miss", 2, 1.0)
    assert known.settle(1.0) == {(b"lib", "miss"): 2}
    assert known.unattributed == 3


def test_unknown_inodes_are_counted_in_the_end(known: Attribution) -> None:
    known.hear(NEW, "miss", 3, 1.0)
    assert known.settle(1.0) == {}
    assert known.unattributed == 0
    known.hear(NEW, "found", 1, 30.0)
    assert known.settle(HELD_FOR + 2) == {}
    assert known.unattributed == 4


def test_unknown_inodes_are_searched_for_once_and_rarely(known: Attribution) -> None:
    assert not known.wants_search(SEARCH_EVERY + 1), "nothing is unknown"
    for number in range(SEARCH_FROM):
        known.hear(Inode(31, 1000 + number), "miss", 1, 1.0)
    known.settle(HELD_FOR + 2)
    assert not known.wants_search(SEARCH_EVERY - 1)
    assert known.wants_search(SEARCH_EVERY + 1)
    assert not known.wants_search(SEARCH_EVERY + 2)
    later = 100 * SEARCH_EVERY
    for number in range(SEARCH_FROM):
        known.hear(Inode(31, 1000 + number), "miss", 1, later)
    assert known.unattributed == 2 * SEARCH_FROM, "those were searched for, and are not ours"
    known.settle(later + HELD_FOR + 1)
    assert not known.wants_search(2 * later)
    known.confirm(b"late", [Inode(31, 1000)], [], later)
    known.hear(Inode(31, 1000), "miss", 1, later)
    assert known.settle(later) == {(b"late", "miss"): 1}


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attribution, "MOST_HELD", 10)
    monkeypatch.setattr(attribution, "MOST_FOREIGN", 10)
    known = Attribution(5, 0.0)
    for number in range(20):
        known.confirm(b"d%d" % number, [Inode(1, number)], [], float(number))
    assert known.paths() == [b"d15", b"d16", b"d17", b"d18", b"d19"]
    known.hear(Inode(1, 3), "miss", 1, 20.0)
    assert known.settle(20.0) == {}
    for number in range(1000, 1050):
        known.hear(Inode(1, number), "miss", 3, 20.0)
    assert known.unattributed == 3 * (50 - 9)
    known.settle(21.0 + HELD_FOR)
    assert known.unattributed == 3 * 50 + 1
    assert known.wants_search(SEARCH_EVERY + 1)
    for number in range(1000, 1050):
        known.hear(Inode(1, number), "miss", 3, 200.0)
    known.settle(201.0 + HELD_FOR)
    assert known.wants_search(10 * SEARCH_EVERY)
    assert len(known._foreign) == 10
    assert (len(known._held), len(known._strangers)) == (0, 0)


def test_no_more_are_doubted_at_once_than_asked_for(known: Attribution) -> None:
    late = CONFIRMED_FOR + 1
    known.hear(LIB, "miss", 1, late)
    known.hear(BIN, "miss", 1, late)
    assert known.doubtful(1) == [b"lib"]
    assert b"lib" in known
    assert len(known) == 2
