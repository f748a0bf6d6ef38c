"""What was seen once is not reported."""

from collections.abc import Collection, Iterator

import pytest

from promoterd.fsck import twice
from promoterd.fsck.findings import Area, Finding, Kind
from promoterd.fsck.twice import Found, looked_at_twice


def finding(name: str, kind: Kind = Kind.SIZE) -> Finding:
    return Finding(Area.LAYER, b"d", kind, "detail", name)


class Directory:
    """One that finds what it is told to, look by look, and whose state is as told, too."""

    def __init__(self, looks: list[list[Finding]], states: list[int] | None = None) -> None:
        self.looks = looks
        self.states = states
        self.asked: list[set[str]] = []

    def state(self) -> tuple[object, ...]:
        return (self.states.pop(0) if self.states else 0,)

    def problems(self, names: Collection[str]) -> Iterator[Finding]:
        self.asked.append(set(names))
        yield from self.looks.pop(0) if len(self.looks) > 1 else self.looks[0]

    def look(self) -> Found:
        return looked_at_twice(Area.LAYER, b"d", self.state, self.problems)


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(twice, "_PAUSE", 0)


def test_a_directory_in_order_is_looked_at_once() -> None:
    directory = Directory([[]])
    assert directory.look() == Found()
    assert len(directory.asked) == 1
    known = finding("x", Kind.OPEN)
    assert Directory([[known]]).look() == Found([known])


def test_what_both_looks_saw() -> None:
    directory = Directory([[finding("a"), finding("b")], [finding("b"), finding("c")]])
    assert directory.look() == Found([finding("b")])
    assert directory.asked == [set(), {"a", "b"}], "what was found is asked of the server anew"


def test_what_was_put_right_meanwhile_is_no_finding() -> None:
    assert Directory([[finding("a")], []]).look() == Found()


def test_a_look_during_which_it_changed_counts_for_nothing() -> None:
    directory = Directory([[finding("a")], [finding("a")], []], states=[1, 2, 3, 3])
    assert directory.look() == Found()
    assert len(directory.asked) == 3


def test_what_keeps_changing_is_told_so() -> None:
    found = Directory([[finding("a")]], states=list(range(100))).look()
    assert [one.kind for one in found.findings] == [Kind.CHANGING]
    assert not found.has_errors


def test_many_are_counted() -> None:
    many = [finding(str(number)) for number in range(5000)]
    found = Directory([many]).look()
    assert (len(found.findings), found.more) == (50, 4950)
