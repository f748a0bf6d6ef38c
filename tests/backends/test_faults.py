"""Full disks and a failing server in the middle of a promotion: all stays readable, and nothing is half marked."""

import errno
import os
from collections.abc import Callable

import pytest

from promoterd.backends.base import Busy, MarkState
from promoterd.overlay import copyup, rolls
from promoterd.overlay.listing import Layers
from support.ballast import Ballast
from support.overlays import MountedOverlay
from support.promotions import (
    SCRATCH,
    Bench,
    assert_marks_are_sound,
    assert_same_view,
    scratch_leftovers,
    upper_directories,
)
from support.soundness import PROVENANCE, xattr
from support.trees import Symlink, Tree, files

MakeOverlay = Callable[..., MountedOverlay]
LIB = b"opt/lib"
FULL = (errno.ENOSPC, errno.EDQUOT)
FAILURE = r"Input/output|Stale"
"""What an overlay makes of a revalidation that fails is ESTALE (ovl_dentry_revalidate_common, fs/overlayfs/super.c)."""


def tree() -> Tree:
    return {"opt": {"lib": {**files(40), "link": Symlink("x" * 200), "sub": files(20)}}}


def nothing_is_half_done(bench: Bench) -> None:
    assert assert_marks_are_sound(bench.mounted) == []
    for path in upper_directories(bench.mounted):
        assert xattr(bench.mounted.in_upper(path), PROVENANCE) is None
    rolls_of = bench.mounted.work + b"/promoterd"
    assert not os.path.isdir(rolls_of) or not os.listdir(rolls_of)
    left = [name for name in scratch_leftovers(bench.mounted) if not name.startswith(b"lane-")]
    assert left == [], "an empty lane may be, and is used again"


class TestFullUpper:
    @pytest.mark.parametrize("leave", [0, 1, 2, 5, 30, 62, 64])
    def test_of_inodes(self, make_overlay: MakeOverlay, leave: int) -> None:
        bench = Bench(make_overlay(tree(), upper_fs="ext4", upper_size=4 * 1024 * 1024), batch=7)
        before = bench.view()
        ballast = Ballast(bench.mounted)
        ballast.fill_inodes(leave)
        with pytest.raises(OSError, match="No space left"):
            bench.mark(LIB)
        assert_same_view(before, bench.view())
        nothing_is_half_done(bench)
        bench.activate()
        assert_same_view(before, bench.view())
        ballast.clear()
        bench.promote(LIB)
        assert_same_view(before, bench.view())

    @pytest.mark.parametrize("upper_fs", ["ext4", "tmpfs"])
    def test_of_blocks(self, make_overlay: MakeOverlay, upper_fs: str) -> None:
        """One block more each time, so that it is another step that fails."""
        bench = Bench(make_overlay(tree(), upper_fs=upper_fs, upper_size=4 * 1024 * 1024), batch=7)
        before = bench.view()
        failed = 0
        for leave in range(0, 400, 3):
            ballast = Ballast(bench.mounted)
            ballast.fill_blocks(leave)
            try:
                bench.mark(LIB)
            except OSError as error:
                assert error.errno in FULL  # noqa: PT017 - it may also succeed
                failed += 1
                assert_same_view(before, bench.view())
                nothing_is_half_done(bench)
                ballast.clear()
            else:
                ballast.clear()
                break
        assert failed
        bench.activate()
        assert_same_view(before, bench.view())
        assert len(assert_marks_are_sound(bench.mounted)) == 2

    def test_while_it_is_reopened(self, make_overlay: MakeOverlay) -> None:
        bench = Bench(make_overlay(tree(), upper_fs="ext4", upper_size=4 * 1024 * 1024))
        bench.promote(LIB)
        os.unlink(bench.mounted.at("opt/lib/f0001"))
        before = bench.view()
        ballast = Ballast(bench.mounted)
        ballast.fill_inodes(0)
        with pytest.raises(OSError, match="No space left"):
            bench.reopen(LIB)
        assert bench.on_disk(LIB).mark is MarkState.OURS
        assert_same_view(before, bench.view())
        bench.activate()
        assert_same_view(before, bench.view())
        ballast.clear()
        bench.reopen(LIB)
        assert_same_view(before, bench.view())

    def test_a_write_back_error_is_no_mark(self, make_overlay: MakeOverlay, monkeypatch: pytest.MonkeyPatch) -> None:
        """syncfs(2) tells of an error that hit any write before it."""
        bench = Bench(make_overlay(tree()))
        plan = bench.plan(LIB)
        bench.shadow(plan)

        def fails(_: Layers) -> None:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        with monkeypatch.context() as patch:
            patch.setattr(Layers, "sync_upper", fails)
            with pytest.raises(OSError, match="Input/output"):
                bench.backend.complete(plan)
        nothing_is_half_done(bench)


@pytest.mark.needs("fuse")
class TestFailingServer:
    @pytest.fixture
    def bench(self, make_overlay: MakeOverlay) -> Bench:
        return Bench(make_overlay(tree(), counting=True), batch=7)

    def test_while_it_is_planned(self, bench: Bench) -> None:
        before = bench.view()
        bench.mounted.counted.fail(errno.EIO)
        with pytest.raises(OSError, match=FAILURE):
            bench.plan(LIB)
        bench.mounted.counted.fail(0)
        assert list(upper_directories(bench.mounted)) == [b""]
        assert_same_view(before, bench.view())
        bench.promote(LIB)

    @pytest.mark.parametrize("after", [0, 1, 20, 55])
    def test_while_it_is_copied_up(self, bench: Bench, monkeypatch: pytest.MonkeyPatch, after: int) -> None:
        before = bench.view()
        copy, copied = copyup.copy_up, 0

        def fails_later(*arguments: object) -> bool:
            nonlocal copied
            copied += 1
            if copied > after:
                bench.mounted.counted.fail(errno.EIO)
            return copy(*arguments)  # type: ignore[arg-type]

        plan = bench.plan(LIB)
        with monkeypatch.context() as patch:
            patch.setattr(copyup, "copy_up", fails_later)
            with pytest.raises(OSError, match=FAILURE):
                bench.shadow(plan)
        bench.mounted.counted.fail(0)
        assert_same_view(before, bench.view())
        nothing_is_half_done(bench)
        bench.promote(LIB)
        assert_same_view(before, bench.view())

    @pytest.mark.parametrize("error", [errno.EIO, errno.ESTALE, errno.ETIMEDOUT])
    def test_while_it_is_verified(self, bench: Bench, error: int) -> None:
        before = bench.view()
        plan = bench.plan(LIB)
        bench.shadow(plan)
        bench.mounted.counted.fail(error)
        with pytest.raises((OSError, Busy)):
            bench.backend.complete(plan)
        bench.mounted.counted.fail(0)
        bench.activate()
        nothing_is_half_done(bench)
        assert_same_view(before, bench.view())
        bench.promote(LIB)

    def test_that_answers_not_at_all_where_an_active_directory_is_asked(self, bench: Bench) -> None:
        """What completeness is worth: names that are not there, and the listing, need no server."""
        bench.promote(LIB)
        directory = os.open(bench.mounted.at(LIB), os.O_RDONLY | os.O_DIRECTORY)
        try:
            bench.mounted.counted.fail(errno.EIO)
            assert len(os.listdir(directory)) == 42
            with pytest.raises(FileNotFoundError):
                os.stat("missing", dir_fd=directory)
        finally:
            os.close(directory)
            bench.mounted.counted.fail(0)

    def test_what_vanishes_while_it_is_copied_up(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        copy = copyup.copy_up
        plan = bench.plan(LIB)
        victim = bench.mounted.on_server("opt/lib/f0039")

        def vanishes(directory: int, name: str, mode: int, scratch: int) -> bool:
            if os.path.exists(victim):
                os.unlink(victim)
            return copy(directory, name, mode, scratch)

        with monkeypatch.context() as patch:
            patch.setattr(copyup, "copy_up", vanishes)
            try:
                bench.shadow(plan)
                with pytest.raises(Busy):
                    bench.backend.complete(plan)
            except OSError as error:
                assert error.errno in (errno.ESTALE, errno.EIO)  # noqa: PT017 - either way it is not marked
        nothing_is_half_done(bench)
        bench.activate()
        bench.promote(LIB)
        assert b"f0039" not in os.listdir(bench.mounted.at(LIB))


def test_a_scratch_directory_that_went_missing(make_overlay: MakeOverlay) -> None:
    bench = Bench(make_overlay(tree()))
    plan = bench.plan(LIB)
    os.rmdir(bench.mounted.at(SCRATCH))
    with pytest.raises(Exception, match="the scratch directory cannot be there") as refusal:
        bench.shadow(plan)
    assert type(refusal.value).__name__ == "Refused"
    assert assert_marks_are_sound(bench.mounted) == []
    assert not rolls.place(bench.overlay, LIB).startswith("/")
