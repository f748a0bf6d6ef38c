import math
import random
import tracemalloc

import pytest

from promoterd.heat.tracker import HeatTracker

HOUR = 3600.0
YEAR = 365 * 24 * HOUR
ACTIONS = ("add", "forget", "above", "hottest", "prune")


class Naive:
    """What the tracker means: every weight is kept, and decayed one by one when asked."""

    def __init__(self, half_life: float) -> None:
        self.half_life = half_life
        self.added: dict[bytes, list[tuple[float, float]]] = {}

    def add(self, path: bytes, weight: float, now: float) -> None:
        self.added.setdefault(path, []).append((weight, now))

    def heat(self, path: bytes, now: float) -> float:
        return math.fsum(
            weight * math.exp2(-(now - then) / self.half_life) for weight, then in self.added.get(path, ())
        )

    def ranking(self, now: float) -> list[tuple[bytes, float]]:
        heats = [(path, self.heat(path, now)) for path in self.added]
        return sorted(heats, key=lambda item: (-item[1], item[0]))


def test_half_of_it_is_left_after_a_half_life() -> None:
    tracker = HeatTracker(half_life=10)
    tracker.add(b"lib", 8.0, 100)
    assert [tracker.heat(b"lib", now) for now in (100, 110, 120, 105)] == [8, 4, 2, pytest.approx(8 / math.sqrt(2))]
    tracker.add(b"lib", 1.0, 130)
    assert tracker.heat(b"lib", 130) == 2


def test_what_heat_consists_of_decays_and_goes_with_it() -> None:
    tracker = HeatTracker(half_life=10, capacity=4)
    tracker.add(b"lib", 4.0, 0, "miss")
    tracker.add(b"lib", 2.0, 10, "open")
    tracker.add(b"lib", 1.0, 10, "miss")
    assert tracker.kinds(b"lib", 20) == {"miss": 1.5, "open": 1.0}
    assert sum(tracker.kinds(b"lib", 20).values()) == tracker.heat(b"lib", 20)
    tracker.add(b"other", 1.0, 20, "open")
    tracker.prune(2.0, 20)
    assert tracker.kinds(b"other", 20) == {}
    tracker.add(b"far", 1000.0, 5200, "found")  # the landmark moves, and what is as good as cold goes
    assert tracker.kinds(b"lib", 5200) == {}
    tracker.add(b"far", 1.0, 5200, "list")
    assert tracker.kinds(b"far", 5210) == {"found": 500.0, "list": 0.5}
    tracker.forget(b"far")
    assert tracker.kinds(b"far", 5210) == {}
    for number in range(9):
        tracker.add(b"%d" % number, 1.0 + number, 5200, "miss")
    assert set(tracker.paths()) == {path for path, _ in tracker.dump(5200)}
    assert {path for path in map(b"%d".__mod__, range(9)) if tracker.kinds(path, 5200)} == set(tracker.paths())


def test_an_unknown_directory_is_cold() -> None:
    tracker = HeatTracker(half_life=10)
    assert tracker.heat(b"lib", 0) == 0
    assert b"lib" not in tracker
    assert tracker.hottest(3, 0) == tracker.above(0, 0) == tracker.dump(0) == []


@pytest.mark.parametrize("seed", range(20))
def test_it_agrees_with_a_model_that_keeps_everything(seed: int) -> None:
    rng = random.Random(seed)
    half_life = rng.choice([0.5, 60.0, 6 * HOUR])
    tracker, model = HeatTracker(half_life), Naive(half_life)
    paths = [b"opt/%d" % number for number in range(rng.randint(1, 40))]
    now = rng.uniform(-1e6, 1e9)
    for _ in range(400):
        # mostly moments, sometimes many half-lives: the landmark moves several times in a run
        now += rng.expovariate(1) * half_life * rng.choice([0.01, 0.3, 100])
        path = rng.choice(paths)
        match rng.choices(ACTIONS, (70, 5, 10, 10, 5))[0]:
            case "add":
                late = rng.uniform(0, half_life) if rng.random() < 0.1 else 0
                weight = rng.choice([1.0, 0.25, rng.uniform(0.01, 50)])
                tracker.add(path, weight, now - late)
                model.add(path, weight, now - late)
            case "forget":
                tracker.forget(path)
                model.added.pop(path, None)
            case "above":
                threshold = rng.uniform(0.01, 5)
                expected = [(path, heat) for path, heat in model.ranking(now) if heat >= threshold]
                assert_ranked_alike(tracker.above(threshold, now), expected)
            case "hottest":
                count = rng.randint(0, 50)
                expected = [(path, heat) for path, heat in model.ranking(now)[:count] if heat >= 1e-3]
                assert_ranked_alike([item for item in tracker.hottest(count, now) if item[1] >= 1e-3], expected)
            case "prune":
                floor = rng.uniform(0.001, 0.1)
                tracker.prune(floor, now)
                model.added = {path: added for path, added in model.added.items() if model.heat(path, now) >= floor}
        assert tracker.heat(path, now) == pytest.approx(model.heat(path, now), rel=1e-6, abs=1e-5)
    assert {path for path, heat in model.ranking(now) if heat > 1e-3} <= {path for path, _ in tracker.dump(now)}


def assert_ranked_alike(found: list[tuple[bytes, float]], expected: list[tuple[bytes, float]]) -> None:
    assert [path for path, _ in found] == [path for path, _ in expected]
    assert [heat for _, heat in found] == pytest.approx([heat for _, heat in expected], rel=1e-6)


def test_equally_hot_directories_are_ranked_by_path() -> None:
    tracker = HeatTracker(half_life=10)
    for path in (b"c", b"a", b"b", b"hot"):
        tracker.add(path, 2.0 if path == b"hot" else 1.0, 0)
    assert [path for path, _ in tracker.hottest(3, 5)] == [b"hot", b"a", b"b"]
    assert [path for path, _ in tracker.above(0.1, 5)] == [b"hot", b"a", b"b", b"c"]


def test_the_threshold_itself_is_above_it() -> None:
    tracker = HeatTracker(half_life=10)
    tracker.add(b"lib", 8.0, 0)
    assert tracker.above(4.0, 10) == [(b"lib", 4.0)]
    assert tracker.above(4.1, 10) == []


def test_years_of_running_overflow_nothing() -> None:
    tracker = HeatTracker(half_life=60)
    now = 0.0
    while now < 5 * YEAR:
        tracker.add(b"steady", 1.0, now)
        tracker.add(b"once at %d" % now, 1.0, now)
        now += 6 * HOUR
    last = now - 6 * HOUR
    assert tracker.heat(b"steady", last) == pytest.approx(1.0)
    assert len(tracker) < 10  # what is as good as cold goes with the landmark
    tracker.add(b"busy", 1e9, now)
    assert tracker.heat(b"busy", now + 60) == pytest.approx(5e8)


def test_heat_survives_a_landmark_that_moves() -> None:
    tracker = HeatTracker(half_life=1)
    tracker.add(b"old", 1.0, 0)
    tracker.add(b"lib", 1000.0, 511)
    tracker.add(b"other", 1.0, 513)
    assert tracker.heat(b"lib", 513) == pytest.approx(250)
    assert b"old" not in tracker


def test_asking_after_years_of_silence_is_cold_and_no_error() -> None:
    tracker = HeatTracker(half_life=1)
    tracker.add(b"lib", 1.0, 0)
    assert tracker.heat(b"lib", 100 * YEAR) == 0
    assert tracker.above(0.001, 100 * YEAR) == []
    tracker.add(b"lib", 1.0, 100 * YEAR)
    assert tracker.heat(b"lib", 100 * YEAR) == 1


def test_a_clock_that_goes_back_is_no_error() -> None:
    tracker = HeatTracker(half_life=1)
    tracker.add(b"lib", 1.0, 1e9)
    tracker.add(b"lib", 1.0, 0)
    assert tracker.heat(b"lib", 1e9) == pytest.approx(1)
    assert tracker.heat(b"lib", 0) == pytest.approx(1)


def test_when_full_the_coldest_go_and_are_counted() -> None:
    tracker = HeatTracker(half_life=100, capacity=32)
    for number in range(32):
        tracker.add(b"%02d" % number, 1.0 + number, 0)
    assert (len(tracker), tracker.evictions) == (32, 0)
    tracker.add(b"new", 1.0, 100)
    assert tracker.evictions == 2
    assert {b"00", b"01"}.isdisjoint(path for path, _ in tracker.dump(100))
    assert b"02" in tracker
    assert b"new" in tracker
    assert len(tracker) == 31


def test_the_tracker_never_holds_more_than_its_capacity() -> None:
    tracker = HeatTracker(half_life=100, capacity=50)
    for number in range(5000):
        tracker.add(b"%d" % (number * 7919 % 977), 1.0, number)
        assert len(tracker) <= 50
    assert tracker.evictions > 0


def test_a_hot_directory_is_not_washed_away_by_a_walk_over_everything() -> None:
    tracker = HeatTracker(half_life=100, capacity=100)
    for _ in range(50):
        tracker.add(b"lib", 1.0, 0)
    for number in range(10_000):
        tracker.add(b"walked/%d" % number, 1.0, 1)
    assert tracker.hottest(1, 1)[0][0] == b"lib"


def test_a_capacity_of_one_works() -> None:
    tracker = HeatTracker(half_life=1, capacity=1)
    tracker.add(b"a", 1.0, 0)
    tracker.add(b"b", 1.0, 0)
    assert tracker.dump(0) == [(b"b", 1.0)]


def test_pruning_forgets_what_is_colder_than_the_floor() -> None:
    tracker = HeatTracker(half_life=10)
    tracker.add(b"warm", 4.0, 0)
    tracker.add(b"cold", 1.0, 0)
    assert tracker.prune(1.0, 10) == 1
    assert tracker.dump(10) == [(b"warm", 2.0)]
    assert tracker.prune(1.0, 10) == 0


def test_forgetting_is_for_one_directory_alone() -> None:
    tracker = HeatTracker(half_life=10)
    for path in (b"a", b"a/b"):
        tracker.add(path, 1.0, 0)
    tracker.forget(b"a")
    tracker.forget(b"never seen")
    assert tracker.dump(0) == [(b"a/b", 1.0)]


def test_a_dump_can_be_loaded_under_another_half_life_and_clock() -> None:
    tracker = HeatTracker(half_life=10)
    tracker.add(b"a\xff", 4.0, 1000)
    tracker.add(b"b", 1.0, 1010)
    dumped = tracker.dump(1010)
    assert dumped == [(b"a\xff", 2.0), (b"b", 1.0)]
    other = HeatTracker(half_life=20)
    other.load([*dumped, (b"as good as cold", 1e-9)], 5)
    assert other.dump(5) == dumped
    assert other.heat(b"a\xff", 25) == 1.0


def test_loading_more_than_fits_keeps_the_hottest() -> None:
    tracker = HeatTracker(half_life=10, capacity=4)
    tracker.load([(b"%d" % number, 10.0 - number) for number in range(9)], 0)
    assert {b"0", b"1", b"2"} <= {path for path, _ in tracker.dump(0)}


@pytest.mark.parametrize(
    ("weight", "now"), [(0, 0), (-1, 0), (math.nan, 0), (math.inf, 0), (1, math.nan), (1, math.inf)]
)
def test_senseless_numbers_are_refused(weight: float, now: float) -> None:
    tracker = HeatTracker(half_life=10)
    with pytest.raises(ValueError, match="finite"):
        tracker.add(b"lib", weight, now)


@pytest.mark.parametrize(("half_life", "capacity"), [(0, 1), (-1, 1), (math.inf, 1), (math.nan, 1), (1, 0)])
def test_a_senseless_tracker_is_refused(half_life: float, capacity: int) -> None:
    with pytest.raises(ValueError, match="positive"):
        HeatTracker(half_life, capacity)


def test_a_hundred_thousand_directories_stay_under_fifty_megabytes() -> None:
    def path(number: int) -> bytes:
        return b"software/vendor-%05d/release-2024.%d.%d/lib/python3.11/site-packages" % (number, number % 12, number)

    tracemalloc.start()
    try:
        tracker = HeatTracker(half_life=6 * HOUR, capacity=100_000)
        for number in range(120_000):
            tracker.add(path(number), 1.0 + number % 7, number / 100)
        tracker.above(1.0, 1200)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(tracker) > 90_000
    assert peak < 50_000_000
