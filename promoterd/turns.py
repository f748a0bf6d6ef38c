"""How the mounts of one daemon share what their promotions compete for: this machine's processors, disk and ledger.

Each mount has threads, a rate and bounds of its own, so that none waits for another's server. A bound on promotions for
all of them together must not change that. Therefore a mount's first promotion never waits: one hot directory on a quiet
mount is promoted at once, however many wait elsewhere. What the bound leaves for more goes to the mount that has the
fewest, and among those to the one where most waiting for the server is saved. A mount whose server does not answer
costs the others nothing: its promotions do not count.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

FORGOTTEN_AFTER: Final = 10.0
"""Seconds after which a mount that was refused a place, and did not ask again, wants none."""


@dataclass(slots=True, eq=False)
class Member:
    """A mount: how to tell it that a place is free, and whether its server does not answer."""

    wake: Callable[[], None]
    is_stuck: Callable[[], bool]
    running: int = 0
    worth: float = 0.0
    asked: float | None = None
    """When it was refused a place, if it wants one."""


class Turns:
    """At most ``places`` promotions at once, but one for each mount in any case; None: as many as mounts allow."""

    def __init__(self, places: int | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self.places = places
        self._clock = clock
        self._members: dict[Member, None] = {}

    def take(self, member: Member, worth: float) -> bool:
        """Whether the mount may begin one more promotion now, which is worth so many seconds of waiting a second.

        If not, it is woken when it may.
        """
        member.asked = None
        if member.running == 0 or self._may_have_more(member, worth):
            member.running += 1
            self._members[member] = None
            return True
        member.asked, member.worth = self._clock(), worth
        return False

    def give_back(self, member: Member) -> None:
        """One promotion of the mount is over."""
        member.running -= 1
        if not member.running:
            self._members.pop(member, None)
        others = [other for other in self._waiting() if other is not member]
        if others:
            min(others, key=_order).wake()

    @property
    def running(self) -> int:
        """Promotions that count."""
        return sum(member.running for member in self._members if not member.is_stuck())

    def _may_have_more(self, member: Member, worth: float) -> bool:
        if self.places is None:
            return True
        if self.running >= self.places:
            return False
        mine = (member.running, -worth)
        return not any(_order(other) < mine for other in self._waiting() if other is not member)

    def _waiting(self) -> list[Member]:
        since = self._clock() - FORGOTTEN_AFTER
        return [member for member in self._members if member.asked is not None and member.asked >= since]


def _order(member: Member) -> tuple[int, float]:
    return member.running, -member.worth
