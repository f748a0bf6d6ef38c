from promoterd import spread


def test_intervals_differ_by_path_and_by_machine_and_stay_what_they_are() -> None:
    intervals = [spread.around(b"node1", b"lib/%d" % number, 600.0) for number in range(1000)]
    assert 540 <= min(intervals) < 545
    assert 655 < max(intervals) <= 660
    assert abs(sum(intervals) / 1000 - 600) < 5
    assert spread.around(b"node1", b"lib/7", 600.0) == intervals[7]
    assert spread.around(b"node2", b"lib/7", 600.0) != intervals[7]


def test_delays_fill_their_time_evenly() -> None:
    delays = sorted(spread.delay(b"node%d" % number, b"warm", 300.0) for number in range(5000))
    assert delays[0] >= 0
    assert delays[-1] < 300
    for tenth in range(10):
        assert 430 < sum(30 * tenth <= delay < 30 * (tenth + 1) for delay in delays) < 570
    assert spread.delay(b"node1", b"warm", 0.0) == 0


def test_what_is_joined_is_not_confused() -> None:
    assert spread.share(b"ab", b"c") != spread.share(b"a", b"bc")
