"""Nothing is reported that was seen once: somebody may be changing things while they are looked at."""

import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from itertools import islice

from promoterd.fsck.findings import MOST, Area, Finding, Kind

_TRIES = 5
_PAUSE = 0.1
_ENOUGH = 1000
"""Findings of one directory that are compared with those of another look."""


@dataclass(frozen=True, slots=True)
class Found:
    """What was found in one directory: the first of it, and how many errors there are besides."""

    findings: list[Finding] = field(default_factory=list)
    more: int = 0

    @property
    def has_errors(self) -> bool:
        """Whether any of it is more than information."""
        return any(finding.is_error for finding in self.findings)


def looked_at_twice(
    area: Area,
    path: bytes,
    state: Callable[[], tuple[object, ...]],
    problems: Callable[[Collection[str]], Iterator[Finding]],
) -> Found:
    """What is wrong with a directory, each error seen in two looks, during the last of which nobody changed it.

    ``state`` differs if anybody did; ``problems`` is given the names that were found before. A directory that is in
    order costs one look. Where it keeps changing, that is the finding.
    """
    before, _ = _look(problems, set())
    if not any(finding.is_error for finding in before):
        return Found(before)
    for _ in range(_TRIES):
        then = state()
        found, more = _look(problems, {finding.name for finding in before if finding.name is not None})
        if state() == then:
            seen = set(before)
            alike = [finding for finding in found if finding in seen]
            if alike or not found:
                return Found(alike[:MOST], more + len(alike[MOST:]))
        before = found
        time.sleep(_PAUSE)
    return Found([Finding(area, path, Kind.CHANGING, "somebody keeps changing it: check it again")])


def _look(
    problems: Callable[[Collection[str]], Iterator[Finding]], names: Collection[str]
) -> tuple[list[Finding], int]:
    stream = problems(names)
    return list(islice(stream, _ENOUGH)), sum(1 for _ in stream)
