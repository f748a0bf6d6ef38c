"""Several heat sources at work on one mount as if they were one, and another in place of one that cannot be had."""

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import fields

from promoterd.errors import NoHeatSource, PromoterdError
from promoterd.heat import base
from promoterd.heat.base import Armed, HeatSink, HeatSource, MountView, Part, SourceStats
from promoterd.heat.choice import AUTO, FANOTIFY, INOTIFY, NFS_TRACE, Choice, Lower, choose
from promoterd.overlay.holding import mounts_holding
from promoterd.overlay.mountinfo import MountEntry, is_network
from promoterd.overlay.nfs import FSTYPES

CHOSEN_FROM = (NFS_TRACE, INOTIFY, FANOTIFY)
COMBINED = (AUTO, FANOTIFY)
"""What a policy can name for which there is more than one answer."""


def lacks(names: Iterable[str] | None = None) -> dict[str, str | None]:
    """Why this machine cannot have each of these sources, of those that are registered; None where it can."""
    registered = base.names()
    return {name: _lack(name) for name in (registered if names is None else names) if name in registered}


def _lack(name: str) -> str | None:
    try:
        return base.load(name).unfit()
    except PromoterdError as error:
        return error.message


def source_for(
    name: str,
    view: MountView,
    sink: HeatSink,
    lowers: Sequence[bytes],
    lost: Callable[[str, str], None] = lambda _name, _reason: None,
) -> HeatSource:
    """The source that a policy or a command names, not started. Raises UsageError, OSError."""
    if name in COMBINED:
        return CombinedSource(view, sink, wanted=name, lower=lower_of(lowers), lost=lost)
    return base.load(name)(view, sink)


def lower_of(layers: Sequence[bytes]) -> Lower:
    """Where an overlay's lower layers lie, by the mount table. Raises OSError."""
    return min(map(_lower_on, mounts_holding(layers)), key=list(Lower).index, default=Lower.LOCAL)


def _lower_on(entry: MountEntry | None) -> Lower:
    if entry is None:
        return Lower.LOCAL
    if entry.fstype in FSTYPES:  # one type for all versions is possible in fstab, but not in the mount table
        return Lower.NFS4 if entry.fstype == "nfs4" else Lower.NFS3
    return Lower.NETWORK if is_network(entry.fstype) else Lower.LOCAL


class CombinedSource(HeatSource):
    """The sources that :func:`promoterd.heat.choice.choose` takes for ``wanted``, on one sink.

    One that fails takes no other with it: it is closed, ``lost`` is told, and whatever is next best takes its place.
    """

    name = AUTO

    def __init__(
        self,
        view: MountView,
        sink: HeatSink,
        *,
        wanted: str = AUTO,
        lower: Lower = Lower.LOCAL,
        lost: Callable[[str, str], None] = lambda _name, _reason: None,
    ) -> None:
        super().__init__(view, sink)
        self.choice = Choice()
        self._wanted = wanted
        self._lower = lower
        self._lost = lost
        self._lacks: dict[str, str | None] = {}
        self._running: dict[str, HeatSource] = {}
        self._lock = threading.Lock()  # never held over anything that can wait for the mount
        self._disarmed: set[bytes] = set()

    def start(self) -> None:
        """Start all that can be had. Raises NoHeatSource where that is none."""
        self._lacks = lacks(CHOSEN_FROM)
        self._settle()
        if not self._running:
            reasons = "; ".join(f"{name}: {reason}" for name, reason in self.choice.left.items())
            raise NoHeatSource(source=self._wanted, reason=reasons)

    def _settle(self) -> None:
        """Start what is to be taken and does not run, until nothing is left to try."""
        while True:
            self.choice = choose(self._wanted, self._lacks, self._lower)
            name = next((name for name in self.choice.taken if name not in self._running), None)
            if name is None:
                break
            try:
                self._add(name)
            except (PromoterdError, OSError) as error:
                self._drop(name, error)
        self.arms = any(source.arms for source in self._sources())
        self.wants_directories = any(source.wants_directories for source in self._sources())

    def _add(self, name: str) -> None:
        source = base.load(name)(self.view, self.sink)
        with self._lock:  # whoever disarms meanwhile reaches it already
            source.disarm(self._disarmed)
            self._running = {**self._running, name: source}
        source.start()

    def _drop(self, name: str, error: PromoterdError | OSError) -> str:
        """Do without a source; returns why."""
        source = self._running.get(name)
        with self._lock:
            self._running = {other: one for other, one in self._running.items() if other != name}
        if source is not None:
            with suppress(PromoterdError, OSError):
                source.close()
        reason = error.message if isinstance(error, PromoterdError) else str(error)
        self._lacks[name] = reason
        return reason

    def close(self) -> None:
        """Close all."""
        with self._lock:
            running, self._running = self._running, {}
        for source in running.values():
            source.close()

    def fileno(self) -> int | None:
        """None: there may be several, or one without."""
        return None

    def drain(self) -> int:
        """As :meth:`HeatSource.drain`, for all."""
        taken = 0
        for name, source in self._running.items():
            try:
                taken += source.drain()
            except (PromoterdError, OSError) as error:
                reason = self._drop(name, error)
                self._settle()
                self._lost(name, reason)
                self.sink.overflowed()  # something may have gone unheard, and what takes its place is to be armed
        return taken

    def stats(self) -> SourceStats:
        """The sums."""
        return total([part.stats for part in self.parts()])

    def parts(self) -> list[Part]:
        """As :meth:`HeatSource.parts`."""
        return [
            Part(name, self.choice.taken.get(name, ""), source.stats()) for name, source in list(self._running.items())
        ]

    def left(self) -> Mapping[str, str]:
        """As :meth:`HeatSource.left`."""
        return self.choice.left

    def paths(self) -> list[bytes]:
        """As :meth:`HeatSource.paths`."""
        return list(dict.fromkeys(path for source in self._sources() for path in source.paths()))

    def refused(self) -> list[bytes]:
        """As :meth:`HeatSource.refused`."""
        return list(dict.fromkeys(path for source in self._sources() for path in source.refused()))

    def arm(self, paths: Iterable[bytes]) -> Armed:
        """As :meth:`HeatSource.arm`."""
        asked = list(paths)
        return _together(source.arm(asked) for source in self._sources())

    def catch_up(self) -> None:
        """As :meth:`HeatSource.catch_up`."""
        for source in self._sources():
            source.catch_up()

    def unsure(self) -> list[bytes]:
        """As :meth:`HeatSource.unsure`."""
        return list(dict.fromkeys(path for source in self._sources() for path in source.unsure()))

    def confirm(self, paths: Iterable[bytes]) -> None:
        """As :meth:`HeatSource.confirm`."""
        asked = list(paths)
        for source in self._sources():
            source.confirm(asked)

    def disarm(self, paths: Iterable[bytes]) -> None:
        """As :meth:`HeatSource.disarm`."""
        quiet = set(paths)
        with self._lock:
            self._disarmed |= quiet
            sources = self._sources()
        for source in sources:
            source.disarm(quiet)

    def rearm(self, paths: Iterable[bytes]) -> Armed:
        """As :meth:`HeatSource.rearm`."""
        asked = list(paths)
        with self._lock:
            self._disarmed.difference_update(asked)
            sources = self._sources()
        return _together(source.rearm(asked) for source in sources)

    def _sources(self) -> list[HeatSource]:
        return list(self._running.values())


def total(stats: Sequence[SourceStats]) -> SourceStats:
    """The sums of several sources' numbers; a limit where any has one."""
    limits = [one.limit for one in stats if one.limit is not None]
    counts = {one.name: sum(getattr(each, one.name) for each in stats) for one in fields(SourceStats)[1:]}
    return SourceStats(limit=sum(limits) if limits else None, **counts)


def _together(armed: Iterable[Armed]) -> Armed:
    every = list(armed)
    return Armed(
        tuple(path for one in every for path in one.refused),
        tuple(path for one in every for path in one.gone),
        tuple(path for one in every for path in one.failed),
    )
