"""Who gets how much of the budget for data, and who loses it."""

import random

from promoterd.backends.data import Holding
from promoterd.budget import MARGIN, Budget, Victim

HEAT = {b"cold": 1.0, b"warm": 5.0, b"hot": 50.0}


def heat(path: bytes) -> float:
    return HEAT.get(path, 0.0)


def anybody(_path: bytes) -> bool:
    return True


def holding(size: int, **more: int) -> Holding:
    return Holding(files=1, held=size, **more)


def budget(limit: int, **holds: int) -> Budget:
    made = Budget(limit)
    for name, size in holds.items():
        made.note(name.encode(), holding(size))
    return made


def test_what_fits_is_granted_besides_what_is_there() -> None:
    made = budget(100, cold=30, hot=20)
    assert made.reserve(b"hot", 40) == 20
    assert made.reserve(b"warm", 100) == 30, "what another has reserved counts as if it were there"
    assert made.reserve(b"last", 1) == 0
    made.note(b"warm", holding(5))
    made.release([b"hot"])
    assert made.held == 55
    assert made.reserve(b"last", 100) == 45


def test_what_is_held_is_known_again_after_every_look() -> None:
    made = budget(100, cold=30, hot=20)
    made.note(b"cold", Holding())
    assert (made.held, made.files, made.of(b"cold")) == (20, 1, Holding())
    made.keep_only(lambda path: path != b"hot")
    assert made.held == 0


def test_the_coldest_makes_room_and_only_for_what_is_hotter() -> None:
    made = budget(100, cold=30, warm=50, hot=20)
    assert made.victim(b"hot", 20, heat, anybody) is None, "it fits"
    assert made.victim(b"hot", 25, heat, anybody) == Victim(b"cold", 5)
    assert made.victim(b"hot", 25, heat, lambda path: path != b"cold") == Victim(b"warm", 5)
    assert made.victim(b"hot", 25, heat, lambda _: False) is None
    assert made.victim(b"warm", 90, heat, anybody) == Victim(b"cold", 40)
    assert made.victim(b"cold", 90, heat, anybody) is None
    assert made.victim(b"unheard of", 90, heat, anybody) is None


def test_a_little_hotter_is_not_hot_enough() -> None:
    made = budget(100, cold=100)
    for factor, expected in ((MARGIN, None), (MARGIN * 1.01, Victim(b"cold", 1))):
        assert made.victim(b"other", 1, lambda path: 1.0 if path == b"cold" else factor, anybody) == expected  # noqa: B023


def test_a_smaller_budget_costs_the_coldest_first() -> None:
    made = budget(60, cold=30, warm=50, hot=20)
    assert made.coldest(heat, anybody) == Victim(b"cold", 40)
    made.note(b"cold", Holding())
    assert made.coldest(heat, anybody) == Victim(b"warm", 10)
    made.note(b"warm", holding(40))
    assert made.excess == 0
    assert made.coldest(heat, anybody) is None


def test_what_is_to_be_done_is_found() -> None:
    made = Budget(100)
    made.note(b"b", holding(1, unwanted=1))
    made.note(b"a", Holding(lacking=2))
    made.note(b"c", holding(1))
    assert made.unwanted() == [b"b"]
    assert made.lacking() == [b"a"]


def test_whatever_is_asked_the_limit_holds() -> None:
    chance = random.Random(7)
    paths = [b"d%d" % number for number in range(12)]
    made, heats = Budget(1000), {path: chance.random() * 100 for path in paths}
    for _ in range(3000):
        path, wanted = chance.choice(paths), chance.randrange(400)
        heats[path] += chance.random() * 30
        while (victim := made.victim(path, wanted, heats.__getitem__, anybody)) is not None:
            assert heats[victim.path] < heats[path]
            left = made.of(victim.path).held - min(made.of(victim.path).held, victim.size)
            made.note(victim.path, holding(left) if left else Holding())
        room = made.reserve(path, wanted)
        total = made.of(path).held + room
        if chance.random() < 0.8:
            made.note(path, holding(total) if total else Holding())
        else:
            made.release([path])
        assert made.held <= 1000
    made.release(paths)
    held = made.held
    assert made.reserve(b"another", 1000) == 1000 - held
