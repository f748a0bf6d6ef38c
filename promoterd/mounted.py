"""What belongs to one mount while it is worked on: everything that promotion, activation and recheck share."""

import asyncio
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ParamSpec, TypeVar

import structlog

from promoterd import spread
from promoterd.allowance import Allowance
from promoterd.backends.base import Backend
from promoterd.book import Book
from promoterd.budget import Budget
from promoterd.errors import TripWire
from promoterd.ledger import Ledger, UpperLedger
from promoterd.metrics import MountMetrics
from promoterd.overlay.listing import Layers
from promoterd.overlay.mounts import Overlay
from promoterd.pacing import Pace
from promoterd.paths import display
from promoterd.policy import MountPolicy
from promoterd.pool import Pool, PoolClosed, Throttle

if TYPE_CHECKING:
    from promoterd.holding import Hold

P = ParamSpec("P")
T = TypeVar("T")


RETIRED = "it is retired"
"""Why nothing is promoted on a mount whose completions were all undone."""


_TRIPPED = "trip wire: "


def _cold(_path: bytes) -> float:
    """Nobody knows of any heat."""
    return 0.0


def _nothing(_paths: Sequence[bytes]) -> None:
    """No heat source: nothing to disarm."""


def _nobody() -> Sequence[bytes]:
    """No heat source: nothing is heard."""
    return ()


@dataclass
class Mounted:
    """One overlay with its policy, backend, book, pool and metrics.

    ``disarm`` and ``rearm`` tell the heat source which directories are being worked on, so that the daemon's own reads
    are no heat and its own watches neither pin nor go dead (I8, R11). ``changing`` is held by whoever brings marks into
    effect, undoes them or removes ghosts, so that none of them judges what another is in the middle of; promotions,
    which are ``busy`` with their directories, need it not.
    """

    overlay: Overlay
    policy: MountPolicy
    backend: Backend
    backend_reason: str
    ledger: Ledger
    book: Book
    pool: Pool
    throttle: Throttle
    rechecks: Throttle
    """The rate of what is asked of the server to stay true to it."""
    metrics: MountMetrics
    log: structlog.typing.FilteringBoundLogger
    clock: Callable[[], float]
    pace: Pace = field(default_factory=Pace)
    """The rate of all that is asked of the server."""
    on_nfs: frozenset[bytes] = frozenset()
    """Mount points of NFS that lower layers lie on."""
    host: bytes = b""
    """What tells this machine from others."""
    opened_at: float = 0.0
    allowance: Allowance | None = None
    """How many requests promotion may make, if policy sets a budget."""
    _accounted: float = 0.0
    taking: dict[bytes, tuple[int, int]] = field(default_factory=dict)
    """How many entries and directories each promotion that is under way will complete."""
    hold: "Hold | None" = None
    """What keeps the whole mount from promoting anything by itself."""
    disarm: Callable[[Sequence[bytes]], None] = _nothing
    rearm: Callable[[Sequence[bytes]], object] = _nothing
    heard: Callable[[], Sequence[bytes]] = _nobody
    """The directories that are heard now."""
    renewing: set[bytes] = field(default_factory=set)
    """Directories that the overlay will know by other inodes, so that they have to be heard anew when it does."""
    rehearing: frozenset[bytes] = frozenset()
    """Directories that are not heard for the time of an activation."""
    heat_of: Callable[[bytes], float] = _cold
    round_trip: float | None = None
    """Seconds that a request to the server takes; None where that is not known."""
    budget: Budget = field(default_factory=lambda: Budget(0))
    """What the copies of data may take up, and do."""
    paused: str | None = None
    stopping: bool = False
    busy: set[bytes] = field(default_factory=set)
    changing: asyncio.Lock = field(default_factory=asyncio.Lock)
    followed: set[bytes] = field(default_factory=set)
    """Directories in upper that are to look as their lower ones do (R2)."""
    doubted: frozenset[bytes] = frozenset()
    """Directories that vanished from the server together and tripped the wire; ``resume`` says that they are gone."""
    believed: frozenset[bytes] = frozenset()
    unsettled: bool = False
    """Whether the overlay remembers what is not so any more, and has to be made to forget it (R14)."""
    primed: dict[bytes, int] = field(default_factory=dict)
    """How many times in a row each primed directory was read."""
    rewritten: set[bytes] = field(default_factory=set)
    """Stale directories whose stamps do not tell so: a file in them was rewritten in place."""

    @property
    def upper_ledger(self) -> UpperLedger:
        """The part of the ledger that is about this upper layer."""
        return self.book.ledger

    @property
    def name(self) -> str:
        """The mount point, for messages, labels and log events."""
        return display(self.overlay.mountpoint)

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a blocking function in this mount's pool; what it asks of the server is reckoned."""

        def call() -> T:
            with self.pace.kept():
                return function(*args, **kwargs)

        return await self.pool.run(call, what=getattr(function, "__qualname__", None))

    def stop(self) -> None:
        """The work ends: nobody waits for the pace any more."""
        self.stopping = True
        self.pace.end(PoolClosed(self.pool.name))

    def account(self, now: float) -> Allowance | None:
        """The budget of requests, if policy sets one, with all that was asked so far."""
        if self.allowance is not None:
            self.allowance.spend(self.pace.reckoned - self._accounted, now)
            self._accounted = self.pace.reckoned
        return self.allowance

    def begins_at(self, purpose: bytes) -> float:
        """When this machine begins with what all machines do at their start; see :mod:`promoterd.spread`.

        At once where no lower layer is on NFS: there is no server then that other machines ask as well.
        """
        within = self.policy.limits.start_spread if self.on_nfs else 0.0
        return self.opened_at + spread.delay(self.host, purpose, within)

    async def with_layers(self, function: Callable[[Layers], T]) -> T:
        """Call a blocking function with the layers opened for that call alone (R16)."""

        def call() -> T:
            with Layers(self.overlay) as layers:
                return function(layers)

        return await self.run(call)

    async def quiet(self, paths: Sequence[bytes]) -> None:
        """Do not hear these directories until :meth:`hear`: what we read there ourselves is no heat (I8)."""
        await self.run(self.disarm, paths)

    def renew(self, paths: Sequence[bytes]) -> None:
        """Hear these directories anew once the overlay knows them by another inode: a watch would keep the old one."""
        if paths:
            self.renewing.update(paths)
            self.unsettled = True

    def to_be_heard(self) -> set[bytes]:
        """The directories that are heard, or will be again when an activation has ended."""
        return {*self.heard(), *self.renewing, *self.rehearing}

    async def hear(self, paths: Sequence[bytes]) -> None:
        """Hear these directories anew; a watch on one that became active had gone dead."""
        await self.run(self.rearm, paths)

    @property
    def tripped(self) -> bool:
        """Whether it was the trip wire that stopped the marking."""
        return self.paused is not None and self.paused.startswith(_TRIPPED)

    def show_paused(self) -> None:
        """Bring the metrics in line with what stops the marking, if anything does."""
        self.metrics.paused(on=self.paused is not None)
        self.metrics.trip_wire(on=self.tripped)

    def pause(self, reason: str) -> None:
        """Stop all marking on this mount until somebody resumes it."""
        self.paused = reason
        self.ledger.set_paused(self.upper_ledger.upper_id, reason)
        self.show_paused()
        self.log.warning("paused", reason=reason)

    def resume(self) -> None:
        """Go on after a pause, a trip wire or a retirement."""
        self.paused = None
        self.believed, self.doubted = self.doubted, frozenset()
        self.ledger.set_retired(self.upper_ledger.upper_id, retired=False)
        self.ledger.set_paused(self.upper_ledger.upper_id, None)
        self.show_paused()
        self.log.info("resumed")

    def retire(self) -> None:
        """Promote nothing more on this upper layer, also after a restart, until somebody resumes it."""
        self.paused = RETIRED
        self.ledger.set_retired(self.upper_ledger.upper_id, retired=True)
        self.show_paused()
        self.log.warning("retired")

    def trip(self, reason: str) -> None:
        """The trip wire (R15): something that must not happen did; nothing more is marked until ``resume``."""
        if self.tripped:
            return
        try:
            self.pause(_TRIPPED + reason)
        finally:
            self.log.error("trip_wire", reason=reason)

    def follow(self, paths: Sequence[bytes]) -> None:
        """Keep these directories as their lower ones are, also after a restart."""
        fresh = [path for path in paths if path not in self.followed]
        if fresh:
            self.followed.update(fresh)
            with self.ledger.transaction():
                for path in fresh:
                    self.upper_ledger.put_ancestor(path)

    def follow_no_more(self, paths: Sequence[bytes]) -> None:
        """These directories are gone, or need it no more."""
        for path in self.followed.intersection(paths):
            self.followed.discard(path)
            self.upper_ledger.forget_ancestor(path)

    def check_not_paused(self) -> None:
        """Raise TripWire while marking is stopped."""
        if self.paused is not None:
            raise TripWire(mountpoint=self.name, reason=self.paused)

    @property
    def shadows_file_system(self) -> str:
        """What a message calls the file system that shadows are made on."""
        where = "upper" if self.backend.place == self.overlay.upper else "layer's"
        return f"the {where} file system"

    def free_space_lack(self) -> str | None:
        """What the shadows' file system is too short of for a promotion; None where there is enough. Raises OSError."""
        status = os.statvfs(self.backend.place)
        limits = self.policy.limits
        total = status.f_blocks * status.f_frsize
        self.metrics.upper_free(status.f_bavail * status.f_frsize, status.f_favail, total, status.f_files)
        if status.f_bavail * status.f_frsize < limits.min_free_space.of(total):
            return f"{self.shadows_file_system} has less free space than limits.min_free_space"
        if status.f_files and status.f_favail < limits.min_free_inodes.of(status.f_files):
            return f"{self.shadows_file_system} has fewer free inodes than limits.min_free_inodes"
        return None
