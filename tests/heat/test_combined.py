"""Several sources as one; what fails is replaced and takes no other with it."""

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest

from promoterd.errors import NoHeatSource
from promoterd.heat import base
from promoterd.heat.base import HeatSource, Kind, SourceStats
from promoterd.heat.choice import Lower
from promoterd.heat.combined import CombinedSource, lacks, lower_of, total
from promoterd.heat.inotify import InotifySource
from support.daemons import wait_for
from support.hearing import TREE, Sink, view_of
from support.opening import use
from support.overlays import MountedOverlay

LIB, DOC = b"app/lib", b"app/doc"
MakeOverlay = Callable[..., MountedOverlay]


class Lookups(HeatSource):
    """Stands for the NFS client's tracepoints: misses are told when the test says so, and it can break."""

    name = "nfs-trace"
    arms = False
    missed: list[bytes] = []  # noqa: RUF012 - the class is what a test reaches
    broken: str | None = None
    closed = 0

    def start(self) -> None:
        """Nothing to begin with."""

    def close(self) -> None:
        Lookups.closed += 1

    def fileno(self) -> int | None:
        return None

    def drain(self) -> int:
        if self.broken is not None:
            raise NoHeatSource(source=self.name, reason=self.broken)
        taken = len(self.missed)
        while self.missed:
            self.sink.touched(self.missed.pop(), 1.0, Kind.MISS)
        return taken

    def stats(self) -> SourceStats:
        return SourceStats(None, 0, 0, 0, events=7, overflows=0, unattributed=3)


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> type[Lookups]:
    """The machine has such tracepoints."""
    load = base.load
    monkeypatch.setattr(base, "names", lambda: ["fanotify", "inotify", "nfs-trace"])
    monkeypatch.setattr(base, "load", lambda name: Lookups if name == "nfs-trace" else load(name))
    monkeypatch.setattr(Lookups, "broken", None)
    monkeypatch.setattr(Lookups, "closed", 0)
    return Lookups


@pytest.fixture
def combine(overlay: MountedOverlay) -> Iterator[Callable[..., CombinedSource]]:
    made: list[CombinedSource] = []

    def make(sink: Sink, **how: object) -> CombinedSource:
        made.append(CombinedSource(view_of(overlay), sink, **how))  # type: ignore[arg-type]
        made[-1].start()
        return made[-1]

    yield make
    for source in made:
        source.close()


Combine = Callable[..., CombinedSource]


def drained(source: HeatSource) -> None:
    while source.drain():
        pass


def test_lookups_and_opens_come_from_the_best_for_each(
    combine: Combine, traced: type[Lookups], overlay: MountedOverlay
) -> None:
    sink = Sink()
    source = combine(sink, lower=Lower.NFS4)
    assert [part.name for part in source.parts()] == ["nfs-trace", "inotify"]
    assert "once more" in source.left()["fanotify"]
    assert source.arms
    source.arm([LIB])
    traced.missed.append(LIB)
    use("open", overlay.at("app/lib/a"))
    drained(source)
    assert sink.heat == {(LIB, Kind.MISS): 1, (LIB, Kind.OPEN): 1}
    numbers = source.stats()
    assert (numbers.armed, numbers.unattributed) == (1, 3)
    assert numbers.events >= 8
    assert source.paths() == [LIB]


def test_on_local_layers_one_mark_does(combine: Combine, overlay: MountedOverlay) -> None:
    sink = Sink()
    source = combine(sink, lower=Lower.LOCAL)
    assert [part.name for part in source.parts()] == ["fanotify"]
    assert not source.arms
    assert source.stats().limit is None
    use("open", overlay.at("app/lib/a"))
    wait_for(lambda: source.drain() >= 0 and sink.heat == {(LIB, Kind.OPEN): 1})


def test_fanotify_that_cannot_be_had_is_stood_in_for(
    combine: Combine, overlay: MountedOverlay, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("promoterd.fanotify.lack", lambda: "it needs CAP_SYS_ADMIN")
    sink = Sink()
    source = combine(sink, wanted="fanotify")
    (part,) = source.parts()
    assert (part.name, part.why) == ("inotify", "instead of fanotify: it needs CAP_SYS_ADMIN")
    source.arm([LIB])
    use("list", overlay.at("app/lib"))
    drained(source)
    assert sink.heat == {(LIB, Kind.LIST): 1}


def test_what_cannot_start_is_stood_in_for_too(combine: Combine, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: HeatSource) -> None:
        raise NoHeatSource(source=self.name, reason="the mark is refused")

    monkeypatch.setattr("promoterd.heat.fanotify.FanotifySource.start", refuse)
    source = combine(Sink(), wanted="fanotify")
    assert [part.name for part in source.parts()] == ["inotify"]
    assert source.left()["fanotify"] == "The heat source fanotify cannot be had: the mark is refused."


def test_one_that_breaks_takes_no_other_with_it(
    combine: Combine, traced: type[Lookups], overlay: MountedOverlay, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink, lost = Sink(), []
    source = combine(sink, lower=Lower.NFS4, lost=lambda name, reason: lost.append((name, reason)))
    source.arm([LIB])
    monkeypatch.setattr(traced, "broken", "the ring is gone")
    use("open", overlay.at("app/lib/a"))
    drained(source)
    assert sink.heat == {(LIB, Kind.OPEN): 1}
    assert lost == [("nfs-trace", "The heat source nfs-trace cannot be had: the ring is gone.")]
    assert sink.overflows == 1
    assert traced.closed == 1
    assert [part.name for part in source.parts()] == ["inotify"]
    assert "the ring is gone" in source.left()["nfs-trace"]


def test_the_next_best_takes_the_place_of_what_breaks_and_stays_disarmed(
    combine: Combine, overlay: MountedOverlay, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink = Sink()
    source = combine(sink, wanted="fanotify")
    source.disarm([DOC])
    monkeypatch.setattr(
        "promoterd.heat.fanotify.FanotifySource.drain", lambda _self: (_ for _ in ()).throw(OSError("broken"))
    )
    source.drain()
    assert [part.name for part in source.parts()] == ["inotify"]
    assert source.arms, "so that the directories are looked for"
    assert sink.overflows == 1
    source.arm([LIB, DOC])
    assert source.paths() == [LIB]
    source.rearm([DOC])
    assert sorted(source.paths()) == [DOC, LIB]
    use("open", overlay.at("app/lib/a"))
    drained(source)
    assert sink.heat == {(LIB, Kind.OPEN): 1}


def test_nothing_at_all_says_why_of_each(combine: Combine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("promoterd.fanotify.lack", lambda: "no right")
    monkeypatch.setattr(InotifySource, "unfit", lambda: "no inotify")
    with pytest.raises(NoHeatSource, match=r"auto cannot be had.*inotify: no inotify; fanotify: no right"):
        combine(Sink(), lower=Lower.NFS4)


def test_lacks_are_of_what_is_registered() -> None:
    assert lacks(["inotify", "there is no such"]) == {"inotify": None}
    assert {"inotify", "fanotify"} <= lacks().keys()


def test_sums() -> None:
    first = SourceStats(limit=None, watches=0, armed=0, refused=0, events=5, overflows=1, sampled=2)
    second = SourceStats(limit=10, watches=4, armed=3, refused=1, events=2, overflows=0, unattributed=6)
    assert total([first, second]) == SourceStats(10, 4, 3, 1, events=7, overflows=1, unattributed=6, sampled=2)
    assert total([first]) == first
    assert total([]).limit is None


def test_where_lower_layers_lie(make_overlay: MakeOverlay, tmp_path: Path) -> None:
    counting, local = make_overlay(TREE, counting=True), make_overlay(TREE)
    assert lower_of(counting.layers) is Lower.NETWORK
    assert lower_of(local.layers) is Lower.LOCAL
    assert lower_of([*local.layers, *counting.layers]) is Lower.NETWORK
    assert lower_of([]) is Lower.LOCAL
    os.symlink(counting.layers[0], tmp_path / "link")
    assert lower_of([bytes(tmp_path / "link")]) is Lower.NETWORK


def test_what_one_is_unsure_of_only_that_one_confirms(overlay: MountedOverlay) -> None:
    class Unsure(Lookups):
        asked: list[bytes] = []  # noqa: RUF012 - the class is what the test reaches

        def unsure(self) -> list[bytes]:
            return [LIB, DOC]

        def confirm(self, paths: Iterable[bytes]) -> None:
            self.asked.extend(paths)

    source = CombinedSource(view_of(overlay), Sink(), lower=Lower.NFS4)
    source._running = {
        "nfs-trace": Unsure(view_of(overlay), Sink()),
        "inotify": InotifySource(view_of(overlay), Sink()),
    }
    assert source.unsure() == [LIB, DOC]
    source.confirm([LIB])
    assert Unsure.asked == [LIB]
    assert source.paths() == [], "inotify was not armed by that"
