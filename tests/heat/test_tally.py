from promoterd.heat.base import Kind
from promoterd.heat.tally import Tally


def test_uses_are_summed_up_until_they_are_taken() -> None:
    tally = Tally(enough=10, most=10)
    for kind in (Kind.OPEN, Kind.OPEN, Kind.LIST):
        assert not tally.add(b"a", kind)
    assert tally.take() == ({(b"a", Kind.OPEN): 2.0, (b"a", Kind.LIST): 1.0}, False)
    assert tally.take() == ({}, False)


def test_enough_is_said_once_for_as_many_opens() -> None:
    tally = Tally(enough=3, most=10)
    assert [tally.add(b"a", Kind.OPEN) for _ in range(7)] == [False, False, True, False, False, True, False]
    assert tally.sampled == 6
    assert not tally.add(b"b", Kind.OPEN)
    tally.take()
    assert [tally.add(b"a", Kind.OPEN) for _ in range(2)] == [False, True], "taking does not begin a period"


def test_a_new_period_begins_anew() -> None:
    tally = Tally(enough=2, most=10)
    tally.add(b"a", Kind.OPEN)
    tally.new_period()
    assert not tally.add(b"a", Kind.OPEN)


def test_listings_are_never_enough() -> None:
    tally = Tally(enough=1, most=10)
    assert not any(tally.add(b"a", Kind.LIST) for _ in range(5))


def test_memory_is_bounded_and_what_is_left_out_is_said() -> None:
    tally = Tally(enough=100, most=3)
    for number in range(50):
        tally.add(b"%d" % number, Kind.OPEN)
    tally.add(b"1", Kind.OPEN)
    touched, left_out = tally.take()
    assert touched == {(b"0", Kind.OPEN): 1.0, (b"1", Kind.OPEN): 2.0, (b"2", Kind.OPEN): 1.0}
    assert left_out
    assert len(tally._in_period) <= 3
    assert tally.take() == ({}, False)
