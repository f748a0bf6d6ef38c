"""R4: no lookup knows a directory of the layer without its files half, whatever becomes complete below it, and when."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import pytest

from promoterd.backends.base import Busy
from promoterd.backends.layer.home import Home
from promoterd.backends.layer.placing import Placing
from support.overlays import MountedOverlay
from support.promotions import Bench, allow, assert_same_view
from support.soundness import LATE, assert_layer_is_sound, xattr
from support.trees import Tree, files

MakeOverlay = Callable[..., MountedOverlay]
APP, LIB, SUB, DEEP = b"app", b"app/lib", b"app/lib/sub", b"app/lib/sub/deep"
NEW, INNER = b"app/lib/new", b"app/lib/new/inner"
TREE: Tree = {"app": {"lib": {**files(4), "sub": {**files(2), "deep": files(3)}}, **files(2)}}


@pytest.fixture
def bench(make_overlay: MakeOverlay) -> Bench:
    return Bench(make_overlay(TREE, layered=True, upper_fs="tmpfs"), "layer")


@contextmanager
def held(bench: Bench, path: bytes) -> Iterator[None]:
    """Keep the overlay's dentry of a directory as it is, and of nothing below it."""
    descriptor = os.open(bench.mounted.at(path), os.O_PATH | os.O_DIRECTORY)
    try:
        yield
    finally:
        os.close(descriptor)


@pytest.mark.parametrize("chain", [False, True])
@pytest.mark.parametrize("promoted", [(LIB,), (SUB,), (DEEP,), (DEEP, SUB), (DEEP, LIB)])
def test_what_becomes_complete_below_a_stub_that_is_known(
    bench: Bench, promoted: tuple[bytes, ...], chain: bool
) -> None:
    before = bench.view()
    bench.promote(APP, recursive=False)
    with held(bench, LIB):
        for path in promoted:
            bench.mark(path, of=allow(chain=chain))
            bench.activate()
            assert_same_view(before, bench.view())
    assert DEEP in assert_layer_is_sound(bench.mounted)
    bench.activate()
    assert_same_view(before, bench.view())


@pytest.mark.parametrize("promoted", [LIB, SUB, DEEP])
def test_a_stub_of_which_a_former_version_made_one_half(bench: Bench, promoted: bytes) -> None:
    before = bench.view()
    bench.promote(APP, recursive=False)
    times = os.stat(bench.mounted.in_files(APP))
    os.rmdir(bench.mounted.in_files(LIB))
    os.utime(bench.mounted.in_files(APP), ns=(times.st_atime_ns, times.st_mtime_ns))
    bench.remount()
    with held(bench, LIB):
        with pytest.raises(Busy, match="a process holds /app/lib, "):
            bench.mark(promoted)
        assert_same_view(before, bench.view())
    bench.mark(promoted)
    assert_same_view(before, bench.view())
    assert DEEP in assert_layer_is_sound(bench.mounted)
    assert xattr(bench.mounted.in_files(LIB), LATE) is None


def test_a_directory_that_is_new_in_one_that_is_complete(bench: Bench) -> None:
    """Alone, its files half would be all that is found of it once the mark is in effect."""
    with held(bench, LIB):
        bench.mark(LIB)
        add_new(bench)
        for path in (NEW, INNER):
            with pytest.raises(Busy, match="/app/lib is not in line with the server yet"):
                bench.mark(path)
        bench.resync(LIB)
        bench.mark(INNER)
        bench.activate()
        assert read(bench, INNER) == b"content of 0001\n"
    assert INNER in assert_layer_is_sound(bench.mounted)


def test_one_that_was_looked_at_between_its_halves(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.promote(LIB)
    add_new(bench)
    put, looks = Placing._put_late, ExitStack()

    def put_late(self: Placing, path: bytes, half: str, there: int) -> None:
        looks.enter_context(held(bench, NEW))
        put(self, path, half, there)

    monkeypatch.setattr(Placing, "_put_late", put_late)
    with looks:
        bench.resync(LIB)
        with pytest.raises(Busy, match="a process holds /app/lib/new, "):
            bench.mark(NEW)
        assert read(bench, INNER) == b"content of 0001\n"
    bench.mark(NEW)
    assert read(bench, INNER) == b"content of 0001\n"
    assert INNER in assert_layer_is_sound(bench.mounted)


def test_one_that_was_looked_at_while_it_was_taken_out(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a complete parent: in its place a stub, in both halves."""
    before = bench.view()
    bench.promote(LIB)
    with look_between(bench, SUB, monkeypatch):
        bench.reopen(SUB)
        for path in (DEEP, SUB):
            with pytest.raises(Busy, match="a process holds /app/lib/sub, "):
                bench.mark(path)
        assert_same_view(before, bench.view())
    bench.mark(SUB)
    assert_same_view(before, bench.view())
    assert DEEP in assert_layer_is_sound(bench.mounted)


def test_what_was_looked_at_while_it_was_taken_out_is_kept(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """R3: it is made of one half that is in the graveyard, and shown as another inode than what was taken out."""
    names = sorted(os.listdir(bench.mounted.at(LIB)))
    bench.promote(LIB)
    with look_between(bench, LIB, monkeypatch):
        bench.reopen(LIB)
        assert sorted(os.listdir(bench.mounted.at(LIB))) == names
        assert read(bench, LIB) == b"content of 0001\n"
    with bench.layers() as layers:
        bench.activate()
        assert bench.backend.sweep(layers) == 0


@contextmanager
def look_between(bench: Bench, path: bytes, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Hold a directory as the overlay knows it after the first half of it was taken out, until the ``with`` ends."""
    sync, looks = Home.sync, ExitStack()

    def look(self: Home) -> None:
        sync(self)
        monkeypatch.setattr(Home, "sync", sync)
        bench.activate()
        looks.enter_context(held(bench, path))

    with looks:
        monkeypatch.setattr(Home, "sync", look)
        yield


def add_new(bench: Bench) -> None:
    """A directory with one in it, on the server."""
    shutil.copytree(os.fsdecode(bench.mounted.on_server(DEEP)), os.fsdecode(bench.mounted.on_server(INNER)))


def read(bench: Bench, path: bytes) -> bytes:
    """One of the files that every directory here has."""
    with open(bench.mounted.at(path + b"/f0001"), "rb") as file:
        return file.read()
