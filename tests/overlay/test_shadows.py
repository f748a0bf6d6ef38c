"""What in upper is ours, and what stands alone below an opaque directory: judged against what the kernel then shows."""

import os
from collections.abc import Callable

import pytest

from promoterd.overlay.shadows import (
    Completion,
    completion_of,
    directory_stands_alone,
    file_stands_alone,
    is_unmodified_shadow,
    others_own,
    stale_shadows,
)
from support.overlays import MountedOverlay
from support.promotions import Bench, readable
from support.soundness import OPAQUE
from support.trees import OLD, Device, Fifo, Symlink, Tree, files

MakeOverlay = Callable[..., MountedOverlay]
D = b"d"
TREE: Tree = {
    "d": {**files(6), "so": Symlink("f0001"), "pipe": Fifo(), "null": Device(), "sub": files(2)},
    "e": files(2),
}


@pytest.fixture
def bench(make_overlay: MakeOverlay) -> Bench:
    return Bench(make_overlay(TREE))


class TestStandingAlone:
    """An opaque attribute on the directory, by hand, shows which entries lose what they need."""

    @pytest.mark.parametrize(
        ("name", "alone", "change"),
        [
            ("f0001", False, lambda at: os.chmod(at("d/f0001"), 0o600)),
            ("moved", False, lambda at: os.rename(at("d/f0001"), at("d/moved"))),
            ("moved", True, lambda at: os.rename(at("e/f0001"), at("d/moved"))),
            ("linked", True, lambda at: os.link(at("d/f0001"), at("d/linked"))),
            ("f0001", True, lambda at: os.truncate(at("d/f0001"), 3)),
            ("new", True, lambda at: os.mknod(at("d/new"))),
        ],
        ids=["chmod", "renamed", "moved in", "linked", "written", "made"],
    )
    def test_files(
        self, bench: Bench, name: str, change: Callable[[Callable[[str], bytes]], None], *, alone: bool
    ) -> None:
        change(bench.mounted.at)
        assert self.ask(bench, file_stands_alone, name) is alone
        self.make_opaque(bench)
        assert readable(bench.mounted.at(f"d/{name}")) is alone

    @pytest.mark.parametrize(
        ("name", "alone", "change"),
        [
            ("sub", False, lambda at: os.chmod(at("d/sub"), 0o700)),
            ("moved", False, lambda at: os.rename(at("d/sub"), at("d/moved"))),
            ("moved", True, lambda at: os.rename(at("e"), at("d/moved"))),
            ("new", True, lambda at: os.mkdir(at("d/new"))),
        ],
        ids=["chmod", "renamed", "moved in", "made"],
    )
    def test_directories(
        self, bench: Bench, name: str, change: Callable[[Callable[[str], bytes]], None], *, alone: bool
    ) -> None:
        change(bench.mounted.at)
        before = os.listdir(bench.mounted.at(f"d/{name}"))
        assert self.ask(bench, directory_stands_alone, name) is alone
        self.make_opaque(bench)
        assert (os.listdir(bench.mounted.at(f"d/{name}")) == before) is alone

    def ask(self, bench: Bench, question: Callable[[int, str], bool], name: str) -> bool:
        directory = os.open(bench.mounted.in_upper(D), os.O_PATH)
        try:
            return question(directory, name)
        finally:
            os.close(directory)

    def make_opaque(self, bench: Bench) -> None:
        os.setxattr(bench.mounted.in_upper(D), OPAQUE, b"y")
        bench.remount()


class TestUnmodified:
    def ours(self, bench: Bench) -> set[str]:
        with bench.layers() as layers:
            directory = os.open(bench.mounted.in_upper(D), os.O_PATH)
            try:
                completion = completion_of(layers, D)
                return {
                    name
                    for name, entry in layers.list_upper(D).items()
                    if is_unmodified_shadow(directory, name, entry, completion)
                }
            finally:
                os.close(directory)

    def test_all_that_was_copied_up(self, bench: Bench) -> None:
        bench.promote(D)
        assert self.ours(bench) == {*(f"f{number:04}" for number in range(6)), "so", "pipe", "null"}

    @pytest.mark.parametrize("before", [True, False])
    def test_not_what_a_user_made_of_it(self, bench: Bench, *, before: bool) -> None:
        at = bench.mounted.at
        if not before:
            bench.promote(D)
        os.rename(at("d/f0001"), at("d/renamed"))
        os.rename(at("d/f0002"), at("d/f0003"))
        os.truncate(at("d/f0004"), 1)
        os.utime(at("d/so"), ns=(OLD, OLD + 1), follow_symlinks=False)
        os.rename(at("d/pipe"), at("d/null"))
        os.mknod(at("d/new"))
        if before:
            bench.promote(D)
        assert self.ours(bench) == {"f0000", "f0005"}

    def test_without_a_completion_only_what_tells_of_itself(self, bench: Bench) -> None:
        """Files by their redirects; of the rest nothing is known."""
        bench.shadow(bench.plan(D))
        with bench.layers() as layers:
            assert completion_of(layers, D) == Completion(D)
        assert self.ours(bench) == {f"f{number:04}" for number in range(6)}

    def test_a_completion_elsewhere_is_none(self, bench: Bench) -> None:
        bench.promote(D)
        os.rename(bench.mounted.at(D), bench.mounted.at("moved"))
        with bench.layers() as layers:
            assert completion_of(layers, b"moved") == Completion(b"moved")


class TestOthersOwn:
    def test_what_differs_from_lower(self, bench: Bench) -> None:
        at = bench.mounted.at
        os.unlink(at("d/f0001"))
        os.symlink("elsewhere", at("d/f0001"))
        os.unlink(at("d/so"))
        os.symlink("another", at("d/so"))
        os.chmod(at("d/pipe"), 0o777)
        os.unlink(at("d/null"))
        os.truncate(at("d/f0002"), 1)
        with bench.layers() as layers:
            listing = layers.list_lower(D, (0,))
            found = others_own(layers, D, listing, layers.list_upper(D))
        assert found == {"f0001", "so", "pipe", "null"}, "of files their redirects tell"

    def test_a_copy_that_looks_alike_does_not(self, bench: Bench) -> None:
        bench.shadow(bench.plan(D))
        with bench.layers() as layers:
            assert others_own(layers, D, layers.list_lower(D, (0,)), layers.list_upper(D)) == set()


class TestStale:
    def stale(self, bench: Bench) -> set[str]:
        with bench.layers() as layers:
            listing, upper = layers.list_lower(D, (0,)), layers.list_upper(D)
            return {name for name, _ in stale_shadows(layers, listing, upper, completion_of(layers, D))}

    def test_nothing_while_lower_is_as_it_was(self, bench: Bench) -> None:
        bench.promote(D)
        assert self.stale(bench) == set()

    def test_what_lower_removed_or_replaced(self, bench: Bench) -> None:
        bench.promote(D)
        lower = bench.mounted.on_server
        os.unlink(lower("d/f0000"))
        os.truncate(lower("d/f0001"), 3)
        os.utime(lower("d/f0002"), ns=(OLD, OLD + 1))
        os.unlink(lower("d/so"))
        os.symlink("f0005", lower("d/so"))
        os.utime(lower("d/so"), ns=(OLD, OLD), follow_symlinks=False)
        os.unlink(lower("d/null"))
        os.mkdir(lower("d/null"))
        os.chmod(lower("d/f0003"), 0o700)
        assert self.stale(bench) == {"f0000", "f0001", "f0002", "so", "null"}, "a mode may be a user's"
