"""Mounts share the places for promotions: nobody waits for somebody else's first, and the rest is shared evenly."""

from collections.abc import Callable

import pytest

from promoterd.turns import FORGOTTEN_AFTER, Member, Turns


class Mount:
    """A mount with directories to promote, each taking so many rounds, which begins as many as it may."""

    def __init__(self, turns: Turns, hot: int, concurrency: int, worth: float = 1.0, lasts: int = 3) -> None:
        self.turns, self.hot, self.concurrency, self.worth, self.lasts = turns, hot, concurrency, worth, lasts
        self.is_stuck = False
        self.woken = 0
        self.member = Member(self._wake, lambda: self.is_stuck)
        self.ends: list[int] = []
        self.done = 0
        self.most = 0

    def _wake(self) -> None:
        self.woken += 1

    def step(self, now: int) -> None:
        while self.ends and self.ends[0] <= now and not self.is_stuck:
            self.ends.pop(0)
            self.done += 1
            self.turns.give_back(self.member)
        while self.hot and len(self.ends) < self.concurrency and self.turns.take(self.member, self.worth):
            self.hot -= 1
            self.ends.append(now + self.lasts)
        self.most = max(self.most, len(self.ends))


def run(mounts: list[Mount], rounds: int, each: Callable[[int], None] = lambda _now: None) -> None:
    for now in range(rounds):
        for mount in mounts:
            mount.step(now)
        each(now)


def test_one_hot_directory_does_not_wait_for_ten_thousand_elsewhere() -> None:
    turns = Turns(4)
    crowded, quiet = Mount(turns, hot=10_000, concurrency=64), Mount(turns, hot=0, concurrency=2)
    run([crowded], 50)
    assert crowded.most == 4
    quiet.hot = 1
    quiet.step(50)
    assert (quiet.hot, len(quiet.ends)) == (0, 1), "at once"


def test_what_is_left_is_shared_evenly() -> None:
    turns = Turns(6)
    mounts = [Mount(turns, hot=10_000, concurrency=64) for _ in range(3)]
    run(mounts, 10)
    assert max(mount.most for mount in mounts) == 6, "who comes first may have all, but for the others' first"
    most: list[int] = []
    run(mounts, 600, lambda _now: most.append(turns.running))
    done = [mount.done for mount in mounts]
    assert max(most[10:]) == 6
    assert sum(done) > 1100
    assert max(done) - min(done) <= 0.02 * sum(done), done


def test_of_two_that_have_as_much_who_saves_more_waiting_is_first() -> None:
    turns = Turns(3)
    near, far, other = (Mount(turns, hot=0, concurrency=4, worth=worth) for worth in (0.1, 9.0, 1.0))
    for mount in (near, far, other):
        mount.hot = 5
        assert turns.take(mount.member, mount.worth)
    assert not turns.take(near.member, near.worth)
    assert not turns.take(far.member, far.worth)
    turns.give_back(other.member)
    assert (near.woken, far.woken) == (0, 1)
    assert not turns.take(near.member, near.worth), "it is the other's turn"
    assert turns.take(far.member, far.worth)
    turns.give_back(far.member)
    assert near.woken == 1
    assert turns.take(near.member, near.worth)


def test_who_does_not_come_when_it_is_woken_holds_up_nobody() -> None:
    now = [0.0]
    turns = Turns(2, clock=lambda: now[0])
    idle, busy = (Mount(turns, hot=0, concurrency=4, worth=worth) for worth in (9.0, 1.0))
    for mount in (idle, busy):
        assert turns.take(mount.member, mount.worth)
    assert not turns.take(idle.member, idle.worth)
    turns.places = 3
    assert not turns.take(busy.member, busy.worth)
    now[0] += FORGOTTEN_AFTER + 1
    assert turns.take(busy.member, busy.worth)


def test_a_server_that_does_not_answer_takes_no_places_from_others() -> None:
    turns = Turns(4)
    dead, alive = Mount(turns, hot=100, concurrency=4), Mount(turns, hot=100, concurrency=4)
    dead.step(0)
    assert len(dead.ends) == 4
    dead.is_stuck = True
    run([dead, alive], 30)
    assert (dead.done, alive.most) == (0, 4)
    assert alive.done >= 30


@pytest.mark.parametrize("mounts", [1, 5])
def test_without_a_bound_everybody_has_what_it_wants(mounts: int) -> None:
    turns = Turns()
    all_of_them = [Mount(turns, hot=100, concurrency=7) for _ in range(mounts)]
    run(all_of_them, 3)
    assert [mount.most for mount in all_of_them] == [7] * mounts


def test_every_mount_gets_one_also_where_there_are_more_mounts_than_places() -> None:
    turns = Turns(2)
    members: list[Member] = [Member(lambda: None, lambda: False) for _ in range(9)]
    assert all(turns.take(member, 1.0) for member in members)
    assert not any(turns.take(member, 1.0) for member in members)
