"""The life of a directory, as a user sees it in ``status``, in metrics and in ``explain``."""

from enum import StrEnum


class State(StrEnum):
    """What a directory is; there is no hidden state."""

    COLD = "cold"
    HOT = "hot"
    PRIMED = "primed"
    SHADOWING = "shadowing"
    COMPLETE = "complete"
    ACTIVE = "active"
    PINNED = "pinned"
    STALE = "stale"
    FAILED = "failed"
    REFUSED = "refused"


MARKED = frozenset({State.COMPLETE, State.ACTIVE, State.PINNED, State.STALE})
"""States in which a mark is on disk; from the mark on a directory counts as active (R10)."""

_NEXT: dict[State, frozenset[State]] = {
    State.COLD: frozenset({State.HOT, State.SHADOWING, State.REFUSED, State.FAILED, State.COMPLETE}),
    State.HOT: frozenset({State.COLD, State.PRIMED, State.SHADOWING, State.REFUSED, State.FAILED}),
    State.PRIMED: frozenset({State.COLD, State.HOT, State.SHADOWING, State.REFUSED, State.FAILED, State.COMPLETE}),
    State.SHADOWING: frozenset({State.COMPLETE, State.COLD, State.HOT, State.FAILED, State.REFUSED}),
    State.COMPLETE: frozenset({State.ACTIVE, State.PINNED, State.STALE, State.COLD}),
    State.PINNED: frozenset({State.ACTIVE, State.STALE, State.COLD}),
    State.ACTIVE: frozenset({State.STALE, State.COLD, State.PINNED}),
    State.STALE: frozenset({State.COLD, State.ACTIVE, State.COMPLETE, State.PINNED}),
    State.FAILED: frozenset({State.HOT, State.PRIMED, State.COLD, State.SHADOWING, State.REFUSED, State.COMPLETE}),
    State.REFUSED: frozenset({State.HOT, State.PRIMED, State.COLD, State.SHADOWING, State.FAILED, State.COMPLETE}),
}


def may_follow(before: State, after: State) -> bool:
    """Whether a directory may go from one state to the other in one step."""
    return before is after or after in _NEXT[before]
