"""A kill at any point between two system calls leaves a correct view, and the next start finishes or undoes (I5)."""

import os
import shutil
from collections.abc import Callable, Iterable
from dataclasses import replace

import pytest

from promoterd.backends.base import MarkState
from promoterd.backends.reopening import finish_interrupted
from promoterd.overlay.ancestors import follow_lower
from promoterd.overlay.ghosts import remove_ghost
from support.crashing import run_and_kill
from support.overlays import MountedOverlay
from support.promotions import (
    SCRATCH,
    Bench,
    View,
    assert_marks_are_sound,
    assert_same_view,
    scratch_leftovers,
    upper_directories,
)
from support.soundness import PROVENANCE, xattr
from support.trees import OLD, Directory, Symlink, Tree, files

MakeOverlay = Callable[..., MountedOverlay]
LIB = b"opt/lib"
SHARE = 4
"""The points are dealt out to so many tests."""


def tree() -> Tree:
    sub = Directory({**files(1), "link": Symlink("x")}, mtime_ns=OLD + 3)
    return {"opt": Directory({"lib": Directory({**files(3), "link": Symlink("f0001"), "sub": sub}, mtime_ns=OLD + 5)})}


def fresh(make_overlay: MakeOverlay) -> Bench:
    return Bench(make_overlay(tree(), upper_fs="tmpfs"), batch=2, lanes=1)


def same_at_every_look(bench: Bench, before: View, deleted: Iterable[bytes] = ()) -> None:
    """As it is, with all that can take effect in effect, and mounted anew."""
    for step in (lambda: None, bench.activate, bench.mounted.remount):
        step()
        assert_same_view(before, bench.view())
        assert_marks_are_sound(bench.mounted, deleted=deleted)


def points(changes: int, share: int) -> range:
    return range(share, changes + 1, SHARE)


def promotion(bench: Bench) -> Callable[[], None]:
    def work() -> None:
        bench.mark(LIB)
        bench.activate()

    return work


@pytest.mark.parametrize("share", range(SHARE))
def test_killed_in_a_promotion(make_overlay: MakeOverlay, share: int) -> None:
    whole = run_and_kill(promotion(fresh(make_overlay)), None)
    assert {"link", "unlink", "utimens", "create", "write", "setxattr", "syncfs", "fsconfig"} <= set(whole)
    for point in points(len(whole), share):
        bench = fresh(make_overlay)
        before = bench.view()
        done = run_and_kill(promotion(bench), point)
        assert done == whole[:point]
        same_at_every_look(bench, before)
        bench.refresh()
        assert scratch_leftovers(bench.mounted) == []
        bench.promote(LIB)
        assert scratch_leftovers(bench.mounted) == []
        assert {LIB, b"opt/lib/sub"} <= set(assert_marks_are_sound(bench.mounted))
        assert_same_view(before, bench.view())
        bench.mounted.close()


DELETED = (b"opt/lib/f0000", b"opt/lib/link")


def without_time(view: View) -> View:
    """Between a crash and the next start the directory may show the time of our own writing."""
    return {**view, LIB: replace(view[LIB], mtime_ns=0)}


def users_at_work(bench: Bench) -> None:
    """In an active directory, so that nothing in upper tells of it."""
    at = bench.mounted.at
    os.unlink(at("opt/lib/f0000"))
    os.unlink(at("opt/lib/link"))
    shutil.rmtree(at("opt/lib/sub"))
    os.mkdir(at("opt/lib/sub"))
    with open(at("opt/lib/sub/mine"), "wb") as file:
        file.write(b"mine")
    os.utime(at("opt/lib"), ns=(OLD, OLD + 9))


@pytest.mark.parametrize("share", range(SHARE))
def test_killed_in_a_reopening(make_overlay: MakeOverlay, share: int) -> None:
    def prepared() -> Bench:
        bench = fresh(make_overlay)
        bench.promote(LIB)
        users_at_work(bench)
        return bench

    first = prepared()
    whole = run_and_kill(lambda: first.reopen(LIB), None)
    assert {"mknod", "link", "setxattr", "utimens", "syncfs", "removexattr", "fsconfig", "unlink"} <= set(whole)
    for point in points(len(whole), share):
        for remounted in (False, True):
            bench = prepared()
            before = bench.view()
            assert run_and_kill(lambda bench=bench: bench.reopen(LIB), point) == whole[:point]  # type: ignore[misc]
            if remounted:
                bench.remount()
            assert_same_view(without_time(before), without_time(bench.view()))
            with bench.layers() as layers:
                finish_interrupted(layers, LIB)
            same_at_every_look(bench, before, DELETED)
            bench.refresh()
            if bench.on_disk(LIB).mark is MarkState.OURS:
                bench.reopen(LIB)
            same_at_every_look(bench, before, DELETED)
            assert xattr(bench.mounted.in_upper(LIB), PROVENANCE) is None
            assert len(os.listdir(bench.mounted.work + b"/promoterd")) == 1, "that of the complete child"
            os.mkdir(bench.mounted.on_server("opt/lib/new"))
            bench.refresh()
            bench.activate()
            assert os.path.isdir(bench.mounted.at("opt/lib/new"))
            bench.mounted.close()


@pytest.mark.parametrize("users", [False, True], ids=["ours alone", "with a user's file"])
def test_killed_in_the_removal_of_a_ghost(make_overlay: MakeOverlay, *, users: bool) -> None:
    def prepared() -> Bench:
        bench = fresh(make_overlay)
        bench.promote(LIB)
        if users:
            os.mkdir(bench.mounted.at("opt/lib/mine"))
        shutil.rmtree(bench.mounted.on_server(LIB))
        return bench

    def removal(bench: Bench) -> None:
        with bench.layers() as layers:
            remove_ghost(layers, LIB, SCRATCH)

    first = prepared()
    whole = run_and_kill(lambda: removal(first), None)
    assert {"unlink", "fsconfig", "utimens"} <= set(whole)
    for point in range(len(whole) + 1):
        bench = prepared()
        assert run_and_kill(lambda bench=bench: removal(bench), point) == whole[:point]  # type: ignore[misc]
        if users:
            assert os.path.isdir(bench.mounted.at("opt/lib/mine"))
        bench.remount()
        removal(bench)
        assert scratch_leftovers(bench.mounted) == []
        if users:
            assert os.listdir(bench.mounted.at(LIB)) == [b"mine"]
        else:
            assert os.listdir(bench.mounted.at("opt")) == []
            assert list(upper_directories(bench.mounted)) == [b"", b"opt"]
        bench.mounted.close()


def test_killed_while_an_ancestor_follows(make_overlay: MakeOverlay) -> None:
    def prepared() -> Bench:
        bench = fresh(make_overlay)
        bench.promote(LIB)
        os.chown(bench.mounted.on_server("opt"), 1, 2)
        os.chmod(bench.mounted.on_server("opt"), 0o2750)
        os.utime(bench.mounted.on_server("opt"), ns=(OLD, OLD + 50))
        return bench

    def follow(bench: Bench) -> None:
        with bench.layers() as layers:
            follow_lower(layers, b"opt")

    first = prepared()
    whole = run_and_kill(lambda: follow(first), None)
    assert {"chown", "chmod", "utimens", "setxattr"} <= set(whole)
    for point in range(len(whole) + 1):
        bench = prepared()
        assert run_and_kill(lambda bench=bench: follow(bench), point) == whole[:point]  # type: ignore[misc]
        follow(bench)
        seen, lower = os.stat(bench.mounted.at("opt")), os.stat(bench.mounted.on_server("opt"))
        assert (seen.st_mode, seen.st_uid, seen.st_gid, seen.st_mtime_ns) == (
            *(lower.st_mode, lower.st_uid, lower.st_gid, lower.st_mtime_ns),
        )
        os.utime(bench.mounted.on_server("opt"), ns=(OLD, OLD + 70))
        follow(bench)
        assert os.stat(bench.mounted.at("opt")).st_mtime_ns == OLD + 70
        bench.mounted.close()
