"""What a heat source hears on a mount, by whomever, as a heat list."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress

from promoterd.errors import NoHeatSource, UnfitMount
from promoterd.heat.base import HeatSource, MountView
from promoterd.heat.combined import source_for
from promoterd.heat.discovery import Walk
from promoterd.heatlist.model import HeatList, Uses
from promoterd.overlay.mounts import Overlay
from promoterd.paths import display
from promoterd.policy import MountPolicy

_MOST = 100_000


class Listener:
    """One mount, heard from the moment on in which it is there. It is the source's sink."""

    def __init__(self, overlay: Overlay, source: str, policy: MountPolicy | None) -> None:
        self.overlay = overlay
        self.uses: dict[bytes, Uses] = {}
        self.lost = 0
        """How many times events were lost."""
        self._appeared: list[bytes] = []
        view = MountView(
            mountpoint=overlay.mountpoint,
            device=overlay.device,
            may_promote=_everything if policy is None else policy.may_promote,
            may_promote_below=_everything if policy is None else policy.may_promote_below,
            layers=overlay.merged,
            max_directories=_MOST if policy is None else policy.heat.max_directories,
        )
        self.source = _source(source, view, self, overlay)

    def start(self) -> None:
        """Hear everything from now on. Raises PromoterdError, OSError."""
        self.source.start()
        if self.source.wants_directories:
            self._arm_below(b"")

    def pump(self) -> None:
        """Take in what is pending."""
        while self.source.drain():
            pass
        if unsure := self.source.unsure():
            with suppress(OSError):
                self.source.confirm(unsure)
            self.source.drain()
        appeared, self._appeared = self._appeared, []
        for path in appeared:
            self._arm_below(path)

    def finish(self) -> None:
        """Take in all that has happened so far."""
        with suppress(OSError):
            self.source.catch_up()
        asked: set[bytes] = set()
        while True:
            self.pump()
            unsure = set(self.source.unsure())
            if unsure <= asked:
                break
            asked |= unsure

    def unheard(self) -> int:
        """How many directories should be heard and are not."""
        return self.source.stats().refused

    def _arm_below(self, start: bytes) -> None:
        view = self.source.view
        walk = Walk(self.overlay.walked, view.may_promote, view.may_promote_below, max_directories=view.max_directories)
        for batch in walk.batches(start):
            self.source.arm(batch)

    # HeatSink

    def touched(self, path: bytes, weight: float, kind: str) -> None:
        """As :meth:`HeatSink.touched`."""
        before = self.uses.get(path, Uses())
        self.uses[path] = Uses(*map(sum, zip(before, Uses.of(kind, round(weight)), strict=True)))

    def overflowed(self) -> None:
        """As :meth:`HeatSink.overflowed`."""
        self.lost += 1

    def appeared(self, path: bytes) -> None:
        """As :meth:`HeatSink.appeared`."""
        if self.source.wants_directories:
            self._appeared.append(path)

    def vanished(self, path: bytes) -> None:
        """As :meth:`HeatSink.vanished`."""


def _source(name: str, view: MountView, sink: Listener, overlay: Overlay) -> HeatSource:
    """Raises PromoterdError where it cannot be had."""
    source = source_for(name, view, sink, overlay.lowers)
    unfit = source.unfit()
    if unfit is not None:
        raise NoHeatSource(source=name, reason=unfit)
    return source


def _everything(_path: bytes) -> bool:
    return True


class Listeners:
    """Several mounts at once."""

    def __init__(self, listeners: list[Listener]) -> None:
        self._all = listeners

    def pump(self) -> None:
        """As :meth:`Listener.pump`."""
        for listener in self._all:
            listener.pump()

    def heat(self) -> HeatList:
        """What was heard so far."""
        for listener in self._all:
            listener.finish()
        return HeatList(1, {listener.overlay.mountpoint: dict(listener.uses) for listener in self._all})

    def doubts(self) -> Iterator[str]:
        """What may be missing from it."""
        for listener in self._all:
            where = display(listener.overlay.mountpoint)
            if listener.lost:
                yield f"events on {where} were lost {listener.lost} times: the counts are too low"
            if unheard := listener.unheard():
                yield f"{unheard} directories on {where} were not heard, for want of watches"


@contextmanager
def listening(overlays: list[tuple[Overlay, str, MountPolicy | None]]) -> Iterator[Listeners]:
    """Hear these mounts, each by its source, for the length of a ``with`` block. Raises PromoterdError, OSError."""
    made: list[Listener] = []
    try:
        for overlay, source, policy in overlays:
            made.append(Listener(overlay, source, policy))
            made[-1].start()
        yield Listeners(made)
    finally:
        for listener in made:
            listener.source.close()


def check_overlay(overlay: Overlay | None, mountpoint: bytes) -> Overlay:
    """The overlay, for a source hears overlays alone. Raises UnfitMount."""
    if overlay is None:
        raise UnfitMount(f"{display(mountpoint)} is no overlay", hint="`--with strace` records on any file system")
    return overlay
