from collections.abc import Collection

import pytest

from promoterd.ledger import DirectoryRecord
from promoterd.queueing import choose, is_due, overlaps
from promoterd.states import State

NOW = 1000.0


def record(state: State, retry_at: float | None = None) -> DirectoryRecord:
    return DirectoryRecord(b"a", state, since=0.0, retry_at=retry_at)


@pytest.mark.parametrize(
    ("found", "due"),
    [
        (None, True),
        (record(State.COLD), True),
        (record(State.HOT), True),
        (record(State.HOT, NOW + 1), False),
        (record(State.HOT, NOW), True),
        (record(State.FAILED, NOW - 1), True),
        (record(State.FAILED, NOW + 1), False),
        (record(State.REFUSED, NOW), True),
        (record(State.REFUSED, NOW + 0.1), False),
        (record(State.REFUSED, None), False),
        (record(State.FAILED, None), False),
        (record(State.PRIMED, NOW), True),
        (record(State.PRIMED, NOW + 1), False),
        (record(State.SHADOWING), False),
        (record(State.COMPLETE), False),
        (record(State.ACTIVE), False),
        (record(State.PINNED), False),
        (record(State.STALE), False),
    ],
)
def test_what_is_due(found: DirectoryRecord | None, due: bool) -> None:
    assert is_due(found, NOW) is due


@pytest.mark.parametrize(
    ("path", "others", "meets"),
    [
        (b"a/b", [b"a"], True),
        (b"a", [b"a/b"], True),
        (b"a", [b"a"], True),
        (b"a/b", [b"a/c"], False),
        (b"ab", [b"a"], False),
        (b"a", [b"ab/c"], False),
        (b"a", [], False),
        (b"a", [b"x", b"y", b"a/b/c"], True),
    ],
)
def test_whose_closures_would_meet(path: bytes, others: list[bytes], meets: bool) -> None:
    assert overlaps(path, others) is meets


def chosen(
    ranked: list[bytes], *, busy: Collection[bytes] = (), room: int = 10, **records: DirectoryRecord
) -> list[bytes]:
    return list(choose(ranked, lambda path: records.get(path.decode()), busy, room, NOW))


def test_the_most_urgent_first_as_far_as_there_is_room() -> None:
    assert chosen([b"c", b"a", b"b"], room=2) == [b"c", b"a"]
    assert chosen([b"c"], room=0) == []
    assert chosen([b"c"], room=-1) == []


def test_what_is_not_due_leaves_its_room_to_others() -> None:
    waiting = record(State.FAILED, NOW + 60)
    assert chosen([b"a", b"b"], room=1, a=waiting) == [b"b"]


def test_never_two_whose_closures_meet() -> None:
    assert chosen([b"x/y", b"x", b"x/y/z", b"v"]) == [b"x/y", b"v"]
    assert chosen([b"x/y", b"v"], busy={b"x"}) == [b"v"]
    assert chosen([b"x", b"v"], busy={b"x/y/z"}) == [b"v"]


def test_never_the_root_of_the_mount() -> None:
    assert chosen([b"", b"a"]) == [b"a"]
