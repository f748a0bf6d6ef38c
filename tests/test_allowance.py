import pytest

from promoterd.allowance import Allowance


def test_what_was_spent_comes_back_when_the_window_has_moved_on() -> None:
    account = Allowance(100, 60.0)
    assert account.left(0.0) == 100
    account.spend(70, 0.0)
    account.spend(30, 30.0)
    assert account.left(31.0) == 0
    assert account.more_at(31.0) == 61.0, "and the sixtieth in which it was spent"
    assert account.left(60.9) == 0
    assert account.left(61.0) == 70
    assert account.left(91.0) == 100
    assert account.more_at(91.0) == 91.0


def test_more_may_be_spent_than_is_left() -> None:
    account = Allowance(100, 60.0)
    account.spend(90, 0.0)
    account.spend(90, 20.0)
    assert account.left(21.0) == 0
    assert account.more_at(21.0) == 61.0
    assert account.left(61.0) == 10


@pytest.mark.parametrize("step", [0.25, 7.0])
def test_in_no_window_more_is_granted_than_the_budget(step: float) -> None:
    account = Allowance(1000, 60.0)
    now, spent = 0.0, []
    while now < 600:
        if account.left(now) >= 10:
            account.spend(10, now)
            spent.append((now, 10))
        now += step
    for begin, _ in spent:
        assert sum(size for at, size in spent if begin <= at < begin + 60) <= 1000
    assert sum(size for _, size in spent) >= (9000 if step < 1 else 850), "and it is made use of"


def test_an_account_stays_small() -> None:
    account = Allowance(10**9, 3600.0)
    for second in range(100_000):
        account.spend(1, float(second))
    assert len(account._spent) <= 62
    assert account.left(100_000.0) == pytest.approx(10**9 - 3600, abs=61)


def test_a_clock_that_is_set_back_holds_nothing_longer_than_the_window() -> None:
    account = Allowance(100, 60.0)
    account.spend(100, 1_000_000.0)
    assert account.left(5000.0) == 0
    assert account.more_at(5000.0) == 5061.0
    account.spend(50, 5010.0)
    assert account.left(5061.0) == 50
    assert account.left(5071.0) == 100
