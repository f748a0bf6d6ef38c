"""Noticing what happens to the names of upper directories."""

import os
import shutil
from collections.abc import Callable, Iterator

import pytest

from promoterd import inotify
from promoterd.overlay.gate import UpperGate
from support.overlays import MountedOverlay
from support.promotions import Bench
from support.trees import files

MakeOverlay = Callable[..., MountedOverlay]
D = b"d"


@pytest.fixture
def mounted(make_overlay: MakeOverlay) -> MountedOverlay:
    bench = Bench(make_overlay({"d": {**files(6), "sub": files(2)}, "e": files(2)}))
    bench.mark(b"d")
    bench.mark(b"e")
    return bench.mounted


@pytest.fixture
def gate(mounted: MountedOverlay) -> Iterator[UpperGate]:
    descriptor = os.open(mounted.upper, os.O_PATH)
    try:
        with UpperGate(descriptor, [b"d", b"e"]) as made:
            yield made
    finally:
        os.close(descriptor)


def write(path: bytes) -> None:
    with open(path, "wb"):
        pass


CHANGES: dict[str, Callable[[MountedOverlay], None]] = {
    "create": lambda o: write(o.at("d/new")),
    "mkdir": lambda o: os.mkdir(o.at("d/new")),
    "symlink": lambda o: os.symlink("x", o.at("d/new")),
    "mknod": lambda o: os.mknod(o.at("d/new"), 0o20600, os.makedev(1, 3)),
    "link": lambda o: os.link(o.at("d/f0001"), o.at("d/new")),
    "unlink": lambda o: os.unlink(o.at("d/f0001")),
    "rmdir": lambda o: shutil.rmtree(o.at("d/sub")),
    "rename": lambda o: os.rename(o.at("d/f0001"), o.at("d/f0002")),
    "rename directory": lambda o: os.rename(o.at("d/sub"), o.at("d/sub2")),
    "move in": lambda o: os.rename(o.at("e/f0001"), o.at("d/new")),
    "move itself": lambda o: os.rename(o.at("d"), o.at("c")),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("active", [False, True])
def test_every_change_through_the_overlay_is_seen(
    mounted: MountedOverlay, gate: UpperGate, change: str, *, active: bool
) -> None:
    if active:
        mounted.cool()
    assert not gate.changed()
    CHANGES[change](mounted)
    assert gate.changes() == ({b"d", b"e"} if change == "move in" else {b"d"})
    assert not gate.changed()


@pytest.mark.parametrize(
    "use",
    [
        lambda o: os.listdir(o.at("d")),
        lambda o: os.stat(o.at("d/f0001")),
        lambda o: os.path.lexists(o.at("d/none")),
        lambda o: open(o.at("d/f0001"), "rb").close(),
        lambda o: os.chmod(o.at("d/f0001"), 0o600),
        lambda o: write(o.at("d/f0001")),
    ],
    ids=["list", "stat", "miss", "read", "chmod", "write"],
)
def test_use_of_what_is_there_is_no_change_of_names(
    mounted: MountedOverlay, gate: UpperGate, use: Callable[[MountedOverlay], object]
) -> None:
    use(mounted)
    assert not gate.changed()


class TestExpectations:
    def test_what_we_make_ourselves_does_not_count(self, mounted: MountedOverlay, gate: UpperGate) -> None:
        gate.expect(b"d", "ours")
        write(mounted.in_upper("d/ours"))
        assert not gate.changed()

    def test_but_once(self, mounted: MountedOverlay, gate: UpperGate) -> None:
        gate.expect(b"d", "ours")
        write(mounted.in_upper("d/ours"))
        os.unlink(mounted.in_upper("d/ours"))
        assert gate.changes() == {b"d"}

    def test_nor_in_another_directory(self, mounted: MountedOverlay, gate: UpperGate) -> None:
        gate.expect(b"d", "ours")
        write(mounted.in_upper("e/ours"))
        assert gate.changes() == {b"e"}


def test_all_that_is_pending_is_read(mounted: MountedOverlay, gate: UpperGate) -> None:
    """More than one read's worth: what is expected first must not hide what follows, nor leave something for later."""
    names = [f"{number:05}" + "n" * 200 for number in range(2500)]
    for name in names:
        gate.expect(b"d", name)
        os.symlink("x", mounted.in_upper(b"d/" + name.encode()))
    write(mounted.at("e/new"))
    assert gate.changes() == {b"e"}
    assert not gate.changed()


def test_lost_events_count_as_changes_everywhere(gate: UpperGate, monkeypatch: pytest.MonkeyPatch) -> None:
    events = [[inotify.RawEvent(-1, inotify.IN_Q_OVERFLOW, 0, b"")], []]
    monkeypatch.setattr(gate._inotify, "read", lambda: events.pop(0))
    assert gate.changes() == {b"d", b"e"}


class TestIdentity:
    def test_the_directory_that_is_watched(self, mounted: MountedOverlay, gate: UpperGate) -> None:
        with gate.opened(b"d") as descriptor:
            assert os.fstat(descriptor).st_ino == os.stat(mounted.in_upper("d")).st_ino

    def test_not_another_that_took_its_place(self, mounted: MountedOverlay, gate: UpperGate) -> None:
        os.rename(mounted.at("d"), mounted.at("c"))
        os.rename(mounted.at("e"), mounted.at("d"))
        with pytest.raises(FileNotFoundError), gate.opened(b"d"):
            pass

    def test_a_directory_that_is_missing(self, mounted: MountedOverlay) -> None:
        before = os.listdir("/proc/self/fd")
        descriptor = os.open(mounted.upper, os.O_PATH)
        try:
            with pytest.raises(FileNotFoundError):
                UpperGate(descriptor, [b"d", b"nowhere"])
        finally:
            os.close(descriptor)
        assert os.listdir("/proc/self/fd") == before


def test_it_pins_nothing_of_the_overlay(mounted: MountedOverlay, gate: UpperGate) -> None:
    assert not gate.changed()
    mounted.umount()
    mounted.mount()
