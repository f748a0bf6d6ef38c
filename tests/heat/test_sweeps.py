"""Walks over a tree are told from use, on recordings of both (``record_traces.py`` made them, on a real overlay)."""

import math
from collections import Counter
from collections.abc import Callable, Collection, Mapping

import pytest

from promoterd.heat.sweeps import LISTS_MOST, Sweeps
from promoterd.heat.waves import FEWEST
from promoterd.paths import parent

from .replaying import HALF_LIFE, SETTLE, Replayed, Told, as_lookups, directories, heard, together, total, trace

ROOT = b""
SWEEPS = (
    *("find", "find-ls", "find-twice", "find-parallel", "find-slow", "find-of-one-tree", "tar", "tar-twice", "grep"),
    *("du", "ls", "cp", "walk", "compileall"),
)
USES = ("launch", "launches", "imports")


@pytest.mark.parametrize("slower", [1, 5, 20])
@pytest.mark.parametrize("name", SWEEPS)
def test_a_sweep_is_no_heat(name: str, slower: float) -> None:
    told = trace(name, slower=slower)
    assert sum(total(told).values()) >= 140, "there is something to be told"
    replayed = Replayed(told)
    replayed.heat.pop(ROOT, None)  # where each find of a parallel one begins and ends
    assert replayed.heat == {}
    assert len(replayed.walks) >= 1
    assert replayed.sweeps.swept >= sum(total(told).values()) - 15
    assert len(replayed.sweeps) == 0, "nothing is held for ever"


@pytest.mark.parametrize("slower", [1, 5, 20])
@pytest.mark.parametrize("name", USES)
def test_use_is_heat_all_of_it(name: str, slower: float) -> None:
    told = trace(name, slower=slower)
    replayed = Replayed(told)
    assert replayed.heat == total(told)
    assert replayed.walks == []
    assert len(replayed.sweeps) == 0


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", [*SWEEPS, *USES])
def test_the_order_within_one_reading_says_nothing(name: str, seed: int) -> None:
    """A source that counts in the kernel has none."""
    told = trace(name, slower=5)
    heat = Replayed(told, shuffled=seed).heat
    heat.pop(ROOT, None)
    assert heat == ({path: heat for path, heat in total(told).items() if path} if name in USES else {})


@pytest.mark.parametrize(
    ("name", "lists"),
    [
        *((name, True) for name in ("find", "find-ls", "walk", "tar", "grep", "cp")),
        *((name, False) for name in ("tar", "grep", "cp")),  # others look nothing up in directories without children
    ],
)
def test_a_sweep_that_is_heard_by_its_lookups_is_no_heat(name: str, lists: bool) -> None:
    told = as_lookups(trace(name, slower=5), missed=0, lists=lists)
    replayed = Replayed(told, shuffled=1)
    assert {path: heat for path, heat in replayed.heat.items() if path} == {}
    assert len(replayed.walks) >= 1


@pytest.mark.parametrize("lists", [True, False])
@pytest.mark.parametrize("name", ["launch", "launches"])
def test_a_launch_that_is_heard_by_its_lookups_is_heat(name: str, lists: bool) -> None:
    told = as_lookups(trace(name), missed=9, lists=lists)
    replayed = Replayed(told, shuffled=1)
    assert replayed.heat == total(told)
    assert replayed.walks == []


@pytest.mark.parametrize("unknown", [1, 3, 10])
def test_what_has_to_be_found_out_first_is_waited_for(unknown: int) -> None:
    """A source that hears everything knows of no directory before it is used."""
    assert set(Replayed(trace("tar", slower=5), unknown=unknown).heat) <= {ROOT}
    assert Replayed(trace("imports"), unknown=unknown).heat == total(trace("imports"))


def test_what_is_never_found_out_is_use() -> None:
    assert Replayed(trace("find"), unknown=10**9, settle=1.0, after=60).heat == total(trace("find"))


def test_opens_without_a_listing_are_heat_at_once() -> None:
    told = trace("launch")
    libraries = {path: heat for path, heat in total(told).items() if path.endswith(b"/lib")}
    assert len(libraries) == 24
    assert {path: heat for path, heat in Replayed(told).then.items() if path.endswith(b"/lib")} == libraries


@pytest.mark.parametrize("name", ["find", "find-ls", "tar", "grep", "du", "ls", "cp", "walk"])
def test_every_night_the_same_sweep_stays_one(name: str) -> None:
    nights = together(*(trace(name, at=night * 86_400.0) for night in range(3)))
    replayed = Replayed(nights)
    assert replayed.heat == {}
    assert len(replayed.walks) == 3


def test_different_sweeps_one_after_the_other_and_at_once() -> None:
    told = together(trace("find"), trace("tar", slower=10), trace("du", at=1.5), trace("grep", at=4, slower=20))
    replayed = Replayed(told)
    assert replayed.heat.keys() <= {ROOT}
    assert len(replayed.walks) >= 1


@pytest.mark.parametrize(("slower", "apart"), [(5, 8), (20, 1), (20, 4)])
def test_launches_beside_a_sweep_are_heat_and_the_sweep_is_not(slower: float, apart: float) -> None:
    launches = trace("launches", at=5, slower=apart)
    told = together(launches, trace("find-slow", slower=slower))
    launched, replayed = total(launches), Replayed(told)
    cold = {path: heat for path, heat in replayed.heat.items() if path not in launched}
    assert set(cold.values()) <= {1.0}
    assert len(cold) <= 5, "where both come by within one reading of the source"
    # a launch that comes by where the sweep just was counts as part of it: one in three here, at most
    assert all(replayed.heat.get(path, 0.0) >= heat / 3 for path, heat in launched.items())
    assert math.fsum(replayed.heat.values()) >= math.fsum(launched.values()) * 2 / 3


def test_launches_that_were_recorded_beside_a_sweep() -> None:
    launched, replayed = total(trace("launches")), Replayed(trace("launches-beside-find", slower=20))
    assert all(replayed.heat.get(path, 0.0) >= heat * 2 / 3 for path, heat in launched.items())
    assert sum(heat for path, heat in replayed.heat.items() if path not in launched) <= 3


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
@pytest.mark.parametrize("name", ["find-ls", "tar", "grep"])
def test_a_sweep_that_is_broken_off_is_no_heat_either(name: str, share: float) -> None:
    whole = trace(name, slower=10)
    replayed = Replayed(whole[: int(len(whole) * share)])
    assert replayed.heat == {}


def test_a_walk_through_a_few_directories_is_use() -> None:
    few = {path for path in directories() if path.startswith(b"apps/atlas")}
    assert 10 <= len(few) < FEWEST
    told = [line for line in trace("tar") if line[1] in few]
    assert Replayed(told).heat == total(told)


class Scripted:
    """Sweeps over directories that a test makes up."""

    def __init__(self, *paths: bytes, is_heard: Callable[[bytes], bool] | None = None, capacity: int = 50_000) -> None:
        self.heat: dict[bytes, float] = {}
        self.times: list[float] = []
        self.asked = 0
        self.paths = paths
        self.sweeps = Sweeps(
            SETTLE, HALF_LIFE, self._count, is_heard or set(paths).__contains__, self._could, capacity=capacity
        )

    def _could(self, heads: Collection[bytes]) -> Mapping[bytes, int]:
        self.asked += 1
        return Counter(parent(path) for path in self.paths if path and parent(path) in heads)

    def _count(self, path: bytes, weight: float, kind: str, at: float) -> None:
        del kind
        self.heat[path] = self.heat.get(path, 0.0) + weight
        self.times.append(at)


def test_what_is_looked_up_in_vain_is_no_walk() -> None:
    scripted = Scripted(b"lib")
    scripted.sweeps.touched(b"lib", 1, "list", 0)
    scripted.sweeps.touched(b"lib", 4, "found", 0)
    assert scripted.heat == {}
    scripted.sweeps.touched(b"lib", 3, "miss", 1)
    scripted.sweeps.touched(b"lib", 2, "found", 1)
    assert scripted.heat == {b"lib": 10}


def test_lookups_that_succeed_may_be_those_of_a_walk() -> None:
    """As a source tells them that hears lookups, and no listings."""
    paths = [b"top", *(b"top/%d" % number for number in range(30))]
    scripted = Scripted(*paths)
    for number, path in enumerate(paths):
        scripted.sweeps.touched(path, 20, "found", float(number))
    scripted.sweeps.settled(100)
    assert scripted.heat == {}
    assert scripted.sweeps.walks == 1


def test_a_listing_alone_counts_when_it_has_settled_and_as_of_then() -> None:
    scripted = Scripted(b"lib")
    scripted.sweeps.touched(b"lib", 1, "list", 5)
    assert scripted.sweeps.settled(SETTLE + 5) == []
    assert scripted.heat == {}
    scripted.sweeps.settled(SETTLE + 5.1)
    assert (scripted.heat, scripted.times) == ({b"lib": 1}, [5])


def test_listed_again_and_again_is_use() -> None:
    scripted = Scripted(b"lib")
    scripted.sweeps.touched(b"lib", LISTS_MOST, "list", 0)
    assert scripted.heat == {}
    scripted.sweeps.touched(b"lib", 1, "list", 1)
    assert scripted.heat == {b"lib": LISTS_MOST + 1}


def test_who_stays_in_a_directory_uses_it() -> None:
    scripted, uses = Scripted(b"lib"), 0
    for second in range(200):
        scripted.sweeps.touched(b"lib", 1, "list" if second % 2 else "found", float(second))
        scripted.sweeps.settled(float(second))
        uses += 1
    assert uses - 3 * SETTLE - 2 <= scripted.heat[b"lib"] <= uses


def test_nothing_is_held_where_the_policy_says_so() -> None:
    counted: list[bytes] = []
    sweeps = Sweeps(
        0,
        HALF_LIFE,
        lambda path, *_: counted.append(path),
        heard().__contains__,
        lambda _heads: {},
    )
    for _, path, kind, weight in trace("find"):
        sweeps.touched(path, weight, kind, 0)
    assert len(counted) == len(trace("find"))
    assert len(sweeps) == 0


def leaves(path: bytes) -> bool:
    """A policy that names search directories alone, so that nobody hears what is above them."""
    return path.endswith((b"/python", b"/plugins"))


def test_where_nothing_above_is_heard_a_second_visit_decides() -> None:
    once = Replayed(trace("launch"), is_heard=leaves)
    assert once.heat == {}, "it may have been a walk"
    again: Told = together(trace("launch"), trace("launch", at=120))
    assert sum(Replayed(again, is_heard=leaves).heat.values()) == 2 * sum(
        weight for _, path, _, weight in trace("launch") if leaves(path)
    )
    tomorrow = together(trace("tar"), trace("tar", at=86_400))
    assert Replayed(tomorrow, is_heard=leaves).heat == {}


def test_what_vanishes_is_not_held_any_more() -> None:
    scripted = Scripted(b"lib", b"bin")
    for path in (b"lib", b"bin"):
        scripted.sweeps.touched(path, 1, "list", 0)
    scripted.sweeps.vanished(b"lib")
    scripted.sweeps.vanished(b"never seen")
    scripted.sweeps.settled(100)
    assert scripted.heat == {b"bin": 1}
    assert len(scripted.sweeps) == 0


@pytest.mark.parametrize("at_once", [True, False])
def test_a_walk_over_very_many_directories_takes_no_more_room_than_allowed(at_once: bool) -> None:
    paths = [b"top", *(b"top/%d" % number for number in range(20_000))]
    scripted = Scripted(*paths, capacity=1000)
    most = 0
    for number, path in enumerate(paths):
        now = 0.0 if at_once else number / 1000
        scripted.sweeps.touched(path, 1, "list", now)
        scripted.sweeps.touched(path, 50, "open", now)
        most = max(most, len(scripted.sweeps))
    scripted.sweeps.settled(1000)
    assert most <= 1001
    assert scripted.heat == {}
    assert (scripted.sweeps.walks, scripted.sweeps.swept) == (1, 51 * 20_001)
    assert scripted.asked <= math.log2(20_000 / FEWEST) + 2, "all directories are looked at seldom"


def test_very_many_small_waves_take_no_more_room_either() -> None:
    scripted = Scripted(is_heard=lambda _path: True, capacity=1000)
    most = 0
    for number in range(5000):
        scripted.sweeps.touched(b"apps/%d/lib" % number, 1, "list", 0.0)
        most = max(most, len(scripted.sweeps))
    assert most <= 1001
    scripted.sweeps.settled(100)
    assert math.fsum(scripted.heat.values()) == 5000
