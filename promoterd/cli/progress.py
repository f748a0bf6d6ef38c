"""A progress bar, or a sign of life, on a terminal; nothing anywhere else."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Advance = Callable[[int, int], None]
"""Called with the entries, or whatever is counted, that are done, and all there are."""


@contextmanager
def progress_bar(title: str, *, wanted: bool, unit: str = "entries") -> Iterator[Advance]:
    """A bar on standard error for the length of a ``with`` block, gone after it."""
    if not wanted or not sys.stderr.isatty():
        yield lambda _done, _of: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    with Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit, markup=False),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    ) as progress:
        task = progress.add_task(title, total=None)
        yield lambda done, of: progress.update(task, completed=done, total=of)


@contextmanager
def sign_of_life(text: str, *, wanted: bool) -> Iterator[None]:
    """For work whose end is not known, such as waiting until nobody has written for a while; gone after it."""
    if not wanted or not sys.stderr.isatty():
        yield
        return
    from rich.console import Console
    from rich.text import Text

    with Console(stderr=True).status(Text(text)):
        yield
