import threading
import time

import pytest

from promoterd.backends.lanes import Piece, side_by_side, spread, steps


def piece(path: bytes, size: int) -> Piece:
    return path, [(f"{number}", 0) for number in range(size)]


def sizes(pieces: list[Piece]) -> list[tuple[bytes, int]]:
    return [(path, len(entries)) for path, entries in pieces]


def test_steps_keep_the_order_and_stay_below_the_limit_where_pieces_allow_it() -> None:
    given = [piece(b"a", 3), piece(b"a", 2), piece(b"b", 4), piece(b"c", 9), piece(b"d", 1)]

    assert [sizes(step) for step in steps(given, lambda: 6)] == [
        [(b"a", 3), (b"a", 2)],
        [(b"b", 4)],
        [(b"c", 9)],
        [(b"d", 1)],
    ]
    assert list(steps([], lambda: 6)) == []


def test_a_directory_is_never_on_two_lanes() -> None:
    step = [piece(b"a", 3), piece(b"b", 5), piece(b"a", 3), piece(b"c", 2)]

    assert [sizes(lane) for lane in spread(step, 2)] == [[(b"a", 3), (b"a", 3)], [(b"b", 5), (b"c", 2)]]
    assert [sizes(lane) for lane in spread(step[:1], 4)] == [[(b"a", 3)]]


def test_calls_run_at_once_and_all_end_before_an_error_is_raised() -> None:
    meeting = threading.Barrier(3, timeout=5)
    ended: list[int] = []

    def call(number: int) -> None:
        meeting.wait()
        time.sleep(0.01 * number)
        ended.append(number)
        if number:
            raise OSError(number, "broken")

    with pytest.raises(OSError, match="broken") as caught:
        side_by_side([lambda number=number: call(number) for number in range(3)])  # type: ignore[misc]
    assert caught.value.errno == 1
    assert sorted(ended) == [0, 1, 2]
    side_by_side([])
