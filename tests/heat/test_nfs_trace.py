"""What becomes of counted lookups; the counting itself is the kernel's, and is tested in the lab."""

import os
from collections.abc import Callable

import pytest

from promoterd.errors import NoHeatSource
from promoterd.heat import attribution, nfs_trace, tracefs
from promoterd.heat.attribution import Inode
from promoterd.heat.base import Armed, Kind
from promoterd.heat.lookups import Taken
from promoterd.heat.nfs_trace import NfsTraceSource
from promoterd.heat.tracepoints import kernel_device
from support.hearing import TREE, Sink, found_below, view_of
from support.overlays import MountedOverlay

LIB = b"app/lib"
MISS = str(Kind.MISS)


class Counted:
    """Stands for the kernel's histograms."""

    made: list["Counted"] = []  # noqa: RUF012 - the class is what a test reaches

    def __init__(self, devices: object, size: int) -> None:
        assert devices
        assert size >= 128
        self.next = Taken()
        self.error: OSError | None = None
        self.closed = False
        self.made.append(self)

    def take(self) -> Taken:
        if self.error is not None:
            raise self.error
        taken, self.next = self.next, Taken()
        return taken

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def counted(make_overlay: Callable[..., MountedOverlay], monkeypatch: pytest.MonkeyPatch) -> MountedOverlay:
    """An overlay whose lower layer is taken to be NFS."""
    overlay = make_overlay(TREE, upper_fs="tmpfs")
    device = os.stat(overlay.layers[0]).st_dev
    monkeypatch.setattr(Counted, "made", [])
    monkeypatch.setattr(nfs_trace, "LookupCounter", Counted)
    monkeypatch.setattr(nfs_trace, "devices_of", lambda _layers: [((os.major(device), os.minor(device)), 4)])
    monkeypatch.setattr(tracefs, "lacking", lambda _event: None)
    monkeypatch.setattr(tracefs, "remove_leftovers", list)
    return overlay


class Heard:
    def __init__(self, overlay: MountedOverlay) -> None:
        self.overlay, self.sink = overlay, Sink()
        self.source = NfsTraceSource(view_of(overlay), self.sink)
        self.source.start()

    @property
    def counter(self) -> Counted:
        return Counted.made[-1]

    def inode(self, path: bytes) -> Inode:
        status = os.stat(self.overlay.on_server(path))
        return Inode(kernel_device((os.major(status.st_dev), os.minor(status.st_dev))), status.st_ino)

    def lookups(self, inode: Inode, count: int) -> None:
        """So many misses, and two drains, of which the second finds nothing."""
        self.counter.next.uses[inode, MISS] += count
        assert self.source.drain() == count
        assert self.source.drain() == 0


def test_lookups_heat_the_directory_with_that_inode(counted: MountedOverlay) -> None:
    heard = Heard(counted)
    assert heard.source.arm(found_below(counted, b"")) == Armed()
    heard.lookups(heard.inode(LIB), 5)
    assert heard.sink.heat == {(LIB, MISS): 5}
    assert LIB in heard.source.paths()
    assert b"never" not in heard.source.paths(), "policy promotes nothing there"
    stats = heard.source.stats()
    assert (stats.limit, stats.events, stats.unattributed, stats.armed) == (None, 5, 0, len(heard.source.paths()))


def test_a_directory_that_is_found_later_has_its_heat(counted: MountedOverlay) -> None:
    heard = Heard(counted)
    heard.lookups(heard.inode(LIB), 5)
    assert heard.sink.nothing()
    heard.source.arm([LIB])
    heard.lookups(heard.inode(LIB), 2)
    assert heard.sink.heat == {(LIB, MISS): 7}


def test_a_renamed_directory_is_noticed_when_it_is_used(
    counted: MountedOverlay, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attribution, "CONFIRMED_FOR", 0.0)
    heard = Heard(counted)
    heard.source.arm([LIB])
    os.rename(counted.at(LIB), counted.at(b"app/moved"))
    heard.lookups(heard.inode(LIB), 5)
    assert heard.source.unsure() == [LIB]
    heard.source.confirm(heard.source.unsure())
    heard.source.drain()
    heard.source.drain()
    assert (heard.sink.heat, heard.sink.vanishings, heard.sink.appearances) == ({}, [LIB], [b"app"])
    found = found_below(counted, b"app")
    assert b"app/moved" in found
    heard.source.arm(found)
    heard.source.drain()
    assert heard.sink.heat == {(b"app/moved", MISS): 5}


def test_a_directory_that_is_the_same_still_is_confirmed(
    counted: MountedOverlay, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attribution, "CONFIRMED_FOR", 0.0)
    heard = Heard(counted)
    heard.source.arm([LIB])
    heard.lookups(heard.inode(LIB), 5)
    assert heard.sink.nothing()
    heard.source.confirm(heard.source.unsure())
    assert heard.source.unsure() == []
    heard.source.drain()
    assert heard.sink.heat == {(LIB, MISS): 5}


def test_a_directory_of_upper_alone_is_none_of_ours(counted: MountedOverlay) -> None:
    heard = Heard(counted)
    os.mkdir(counted.at(b"app/new"))
    assert heard.source.arm([b"app/new", b"app/nothing"]) == Armed(gone=(b"app/nothing",))
    assert heard.source.paths() == []


def test_what_is_only_counted(counted: MountedOverlay) -> None:
    heard = Heard(counted)
    heard.counter.next = Taken(failed=2, elsewhere=3, dropped=4)
    assert heard.source.drain() == 9
    stats = heard.source.stats()
    assert (stats.events, stats.unattributed, stats.sampled, stats.overflows) == (9, 3, 4, 1)
    assert heard.sink.nothing()


def test_a_removed_instance_is_made_anew(counted: MountedOverlay, monkeypatch: pytest.MonkeyPatch) -> None:
    heard = Heard(counted)
    heard.source.arm([LIB])
    heard.counter.error = FileNotFoundError()
    assert heard.source.drain() == 0
    assert [one.closed for one in Counted.made] == [True, False]
    heard.source.drain()
    heard.lookups(heard.inode(LIB), 3)
    assert heard.sink.heat == {(LIB, MISS): 3}

    def refuse(*_: object, **_more: object) -> Counted:
        raise PermissionError

    monkeypatch.setattr(nfs_trace, "LookupCounter", refuse)
    heard.counter.error = FileNotFoundError()
    with pytest.raises(NoHeatSource, match="refuses to count"):
        heard.source.drain()
    assert heard.source.drain() == 0


def test_closing_ends_it(counted: MountedOverlay) -> None:
    heard = Heard(counted)
    heard.source.close()
    heard.source.close()
    assert heard.counter.closed
    assert heard.source.drain() == 0
    assert heard.source.arm([LIB]) == Armed()
    assert heard.source.fileno() is None


def test_an_overlay_without_nfs_is_refused(make_overlay: Callable[..., MountedOverlay]) -> None:
    with pytest.raises(NoHeatSource, match="no layer of the overlay lies on NFS"):
        NfsTraceSource(view_of(make_overlay(TREE)), Sink()).start()
