"""Work on several directories side by side, never on one directory in two threads."""

import contextvars
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence

from promoterd import threads

Piece = tuple[bytes, list[tuple[str, int]]]
"""A directory, and some of its entries with their modes."""


def steps(pieces: Iterable[Piece], most: Callable[[], int]) -> Iterator[list[Piece]]:
    """Pieces in portions of about ``most`` entries, which may change meanwhile (pure)."""
    step: list[Piece] = []
    size = 0
    for piece in pieces:
        if step and size + len(piece[1]) > most():
            yield step
            step, size = [], 0
        step.append(piece)
        size += len(piece[1])
    if step:
        yield step


def spread(step: Sequence[Piece], lanes: int) -> list[list[Piece]]:
    """The pieces of a step on at most so many lanes of about the same length; a directory stays on one lane (pure)."""
    whole: defaultdict[bytes, list[Piece]] = defaultdict(list)
    for piece in step:
        whole[piece[0]].append(piece)
    filled: list[list[Piece]] = [[] for _ in range(lanes)]
    sizes = [0] * lanes
    for directory in sorted(whole.values(), key=_size, reverse=True):
        shortest = sizes.index(min(sizes))
        filled[shortest] += directory
        sizes[shortest] += _size(directory)
    return [lane for lane in filled if lane]


def _size(pieces: Sequence[Piece]) -> int:
    return sum(len(entries) for _, entries in pieces)


def side_by_side(calls: Sequence[Callable[[], None]]) -> None:
    """Make all calls at once, the first in this thread, and wait for all; raises the first one's error, in order.

    The other threads are daemons: one that a dead server holds must not keep the process from ending.
    """
    errors: list[BaseException | None] = [None] * len(calls)

    def run(number: int) -> None:
        try:
            calls[number]()
        except BaseException as error:  # noqa: BLE001 - raised again below, in the caller's thread
            errors[number] = error

    others = [
        threads.start(contextvars.copy_context().run, run, number, name="lane") for number in range(1, len(calls))
    ]
    if calls:
        run(0)
    for thread in others:
        thread.join()
    for error in errors:
        if error is not None:
            raise error
