"""A kill between any two system calls leaves a metadata layer that serves every name, and the next start settles it.

At each point the whole view is compared as it is, with all that can take effect in effect, and mounted anew (R4, I5).
"""

import os
import shutil
import stat
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from promoterd.backends.base import MarkState
from support.crashing import run_and_kill
from support.overlays import MountedOverlay
from support.promotions import Bench, View, allow, assert_same_view
from support.soundness import assert_layer_is_sound, graves, stage_leftovers
from support.trees import OLD, Directory, Hardlink, Symlink, Tree, build, files

LIB, SUB = b"opt/lib", b"opt/lib/sub"
STEP = 1 if os.environ.get("PROMOTERD_STRESS") else 3
"""Every point costs some milliseconds, and there are hundreds: all of them are for `make stress`."""


def tree() -> Tree:
    sub = Directory({**files(2), "link": Symlink("x"), "deep": files(1)}, mtime_ns=OLD + 3)
    library = Directory(
        {**files(3), "hard": Hardlink("opt/lib/f0001"), "link": Symlink("f0001"), "sub": sub, "else": files(1)},
        mtime_ns=OLD + 5,
    )
    return {"opt": Directory({"lib": library, "file": b"file"}, mtime_ns=OLD + 7)}


def empty(directory: bytes) -> None:
    for name in os.listdir(directory):
        path = directory + b"/" + name
        shutil.rmtree(path) if os.path.isdir(path) and not os.path.islink(path) else os.unlink(path)


class Again:
    """One overlay, made new as often as a test wants it."""

    def __init__(self, mounted: MountedOverlay) -> None:
        self.mounted = mounted

    def bench(self) -> Bench:
        """A bench on it, with nothing in upper and in the layer, and the tree on the server."""
        mounted = self.mounted
        mounted.umount()
        for place in (mounted.upper, mounted.work, *mounted.metadata, mounted.lowers[0]):
            empty(place)
        for name in (b"/promoterd.stage", b"/promoterd.graveyard"):
            shutil.rmtree(mounted.layer_home + name, ignore_errors=True)
        build(mounted.lowers[0], tree())
        mounted.mount()
        return Bench(mounted, "layer", batch=2)


@pytest.fixture
def again(make_overlay: Callable[..., MountedOverlay]) -> Again:
    return Again(make_overlay(tree(), layered=True, upper_fs="tmpfs"))


def killed_everywhere(
    again: Again, prepare: Callable[[Bench], object], work: Callable[[Bench], object]
) -> Iterator[tuple[Bench, View]]:
    """A bench on which the work was killed, for each point at which it can be, and the view before it."""
    first = again.bench()
    prepare(first)
    whole = run_and_kill(lambda: work(first), None)
    for point in range(0, len(whole) + 1, STEP):
        bench = again.bench()
        prepare(bench)
        before = bench.view()
        assert run_and_kill(lambda bench=bench: work(bench), point) == whole[:point]  # type: ignore[misc]
        try:
            yield bench, before
        except AssertionError as error:
            error.add_note(f"killed before {whole[point : point + 1]}, after {whole[max(0, point - 6) : point]}")
            raise


def without_times(view: View) -> View:
    """Between a crash and the next start a directory may show the time of our own writing."""
    return {path: replace(entry, mtime_ns=0) if stat.S_ISDIR(entry.mode) else entry for path, entry in view.items()}


def looks(bench: Bench) -> Iterator[View]:
    """What is seen as it is, after an activation, and mounted anew."""
    for step in (lambda: None, bench.activate, bench.mounted.remount):
        step()
        yield bench.view()


def next_start(bench: Bench) -> None:
    """What the daemon does with a promotion that the journal has, and then with the rest."""
    bench.refresh()
    with bench.layers() as layers:
        bench.backend.finish_promotion(layers, LIB)
        bench.backend.sweep(layers)
    assert stage_leftovers(bench.mounted) == []


def nothing(_: Bench) -> None:
    pass


@pytest.mark.parametrize(
    ("prepare", "work"),
    [
        (nothing, lambda bench: (bench.mark(LIB, of=allow(chain=True)), bench.activate())),
        (lambda bench: bench.promote(SUB), lambda bench: (bench.mark(LIB), bench.activate())),
        (lambda bench: bench.promote(LIB), lambda bench: (bench.mark(b"opt"), bench.activate())),
    ],
    ids=["first build", "in place", "an ancestor in place"],
)
def test_killed_in_a_promotion(again: Again, prepare: Callable[[Bench], None], work: Callable[[Bench], object]) -> None:
    for bench, before in killed_everywhere(again, prepare, work):
        for seen in looks(bench):
            assert_same_view(without_times(before), without_times(seen))
            assert_layer_is_sound(bench.mounted, settled=False)
        next_start(bench)
        for path in (LIB, b"opt"):
            if bench.on_disk(path).mark is MarkState.OPEN:
                bench.resync(path)
            with bench.layers() as layers:
                bench.backend.follow(layers, path)
        for seen in looks(bench):
            assert_same_view(before, seen)
            assert_layer_is_sound(bench.mounted)
        bench.refresh()
        bench.mark(LIB)
        assert {LIB, SUB} <= set(assert_layer_is_sound(bench.mounted))
        for seen in looks(bench):
            assert_same_view(before, seen)


def test_killed_in_a_reopening(again: Again) -> None:
    def prepare(bench: Bench) -> None:
        bench.promote(LIB, of=allow(chain=True))
        os.unlink(bench.mounted.at("opt/lib/f0000"))
        os.utime(bench.mounted.at("opt/lib"), ns=(OLD, OLD + 9))

    for bench, before in killed_everywhere(again, prepare, lambda bench: bench.reopen(LIB)):
        for seen in looks(bench):
            assert_same_view(before, seen)
            assert_layer_is_sound(bench.mounted, settled=False)
        bench.refresh()
        with bench.layers() as layers:
            bench.backend.finish_reopening(layers, LIB)
            bench.backend.sweep(layers)
        assert assert_layer_is_sound(bench.mounted) == [b"opt"]
        write(bench.mounted.on_server(b"opt/lib/new"), b"new")
        assert os.path.exists(bench.mounted.at(b"opt/lib/new"))
        os.unlink(bench.mounted.on_server(b"opt/lib/new"))
        for seen in looks(bench):
            assert_same_view(before, seen)


def test_a_reopening_that_was_killed_before_it_took_effect_takes_it(again: Again) -> None:
    """Nothing was left to do but that: what the kernel has cached goes on answering for what is gone."""
    for bench, _ in killed_everywhere(again, lambda bench: bench.promote(LIB), lambda bench: bench.reopen(LIB)):
        assert not os.path.exists(bench.mounted.at(b"opt/lib/new"))
        bench.refresh()
        with bench.layers() as layers:
            bench.backend.finish_reopening(layers, LIB)
        write(bench.mounted.on_server(b"opt/lib/new"), b"new")
        assert os.path.exists(bench.mounted.at(b"opt/lib/new"))


def write(path: bytes, content: bytes) -> None:
    with open(path, "wb") as file:
        file.write(content)


def change_the_server(bench: Bench) -> None:
    """One of each."""
    lib = bench.mounted.on_server(LIB)
    write(lib + b"/new", b"new")
    os.unlink(lib + b"/f0000")
    write(lib + b"/other", b"replaced by another")
    os.rename(lib + b"/other", lib + b"/f0002")
    os.unlink(lib + b"/link")
    os.mkdir(lib + b"/link")
    shutil.rmtree(lib + b"/else")
    write(lib + b"/else", b"a file now")
    os.mkdir(lib + b"/more")
    for name in (b"/new", b"/f0002", b"/link", b"/else", b"/more", b""):
        os.utime(lib + name, ns=(OLD, OLD + 11))


def resync_and_activate(bench: Bench) -> None:
    bench.resync(LIB)
    bench.activate()


def test_killed_in_a_resync(again: Again) -> None:
    """What the server has not changed is there all the time, and what it has is as it was or as it is (R4)."""

    def prepare(bench: Bench) -> None:
        bench.promote(LIB)
        change_the_server(bench)

    reference = again.bench()
    unchanged = reference.view()
    change_the_server(reference)
    reference.remount()
    changed = reference.view()
    for bench, before in killed_everywhere(again, prepare, resync_and_activate):
        assert before.keys() == unchanged.keys()
        for seen in looks(bench):
            for path in unchanged.keys() & changed.keys():
                assert path in seen, path
                if unchanged[path] == changed[path] and path != LIB:
                    assert seen[path] == changed[path], path
        next_start(bench)
        assert bench.resync(LIB) == [LIB]
        bench.activate()
        for seen in looks(bench):
            assert_same_view(changed, seen)
            assert {LIB, SUB} <= set(assert_layer_is_sound(bench.mounted))


@pytest.mark.parametrize("users", [False, True], ids=["ours alone", "with a user's file"])
def test_killed_in_the_removal_of_a_ghost(again: Again, *, users: bool) -> None:
    def prepare(bench: Bench) -> None:
        bench.promote(LIB)
        if users:
            os.mkdir(bench.mounted.at("opt/lib/mine"))
        shutil.rmtree(bench.mounted.on_server(LIB))

    def work(bench: Bench) -> None:
        with bench.layers() as layers:
            bench.backend.remove_ghost(layers, LIB)

    for bench, _ in killed_everywhere(again, prepare, work):
        assert not users or os.path.isdir(bench.mounted.at("opt/lib/mine"))
        next_start(bench)
        if bench.on_disk(LIB).mark is MarkState.OURS:
            work(bench)
        assert assert_layer_is_sound(bench.mounted) == []
        bench.mounted.remount()
        assert sorted(os.listdir(bench.mounted.at("opt"))) == [b"file", *([b"lib"] if users else [])]
        assert not users or os.listdir(bench.mounted.at(LIB)) == [b"mine"]
        bench.refresh()
        with bench.layers() as layers:
            bench.backend.sweep(layers)
        assert graves(bench.mounted) == []


def test_killed_while_an_ancestor_follows(again: Again) -> None:
    def prepare(bench: Bench) -> None:
        bench.promote(LIB)
        os.chown(bench.mounted.on_server("opt"), 1, 2)
        os.chmod(bench.mounted.on_server("opt"), 0o2750)
        os.utime(bench.mounted.on_server("opt"), ns=(OLD, OLD + 50))

    def follow(bench: Bench) -> None:
        with bench.layers() as layers:
            bench.backend.follow(layers, b"opt")

    for bench, _ in killed_everywhere(again, prepare, follow):
        follow(bench)
        for seen in looks(bench):
            assert (seen[b"opt"].uid, seen[b"opt"].gid, seen[b"opt"].mtime_ns) == (1, 2, OLD + 50)
            assert seen[b"opt"].mode & 0o7777 == 0o2750
