"""What a directory had when it was completed, kept where nobody sees it."""

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from promoterd.overlay import roll
from promoterd.overlay.roll import Roll
from support.overlays import MountedOverlay
from support.promotions import Bench
from support.trees import ODD_NAMES, files

MakeOverlay = Callable[..., MountedOverlay]


@contextmanager
def opened(path: bytes) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@pytest.mark.parametrize("upper_fs", ["dir", "ext4", "xfs", "btrfs", "tmpfs"])
def test_many_names_on_every_file_system(make_overlay: MakeOverlay, upper_fs: str) -> None:
    """Page after page, each as large as the file system takes."""
    mounted = make_overlay({}, upper_fs=upper_fs)
    names = [f"name{number}" for number in range(5000)] + [os.fsdecode(name) for name in ODD_NAMES]
    with opened(mounted.upper) as directory:
        roll.write(directory, names[:2500], names[2500:])
        found = roll.read(directory, len(names))
        assert found is not None
        assert all(map(found.knows, names))
        assert list(filter(found.is_shadow, names)) == names[:2500]
        assert not found.knows("another")
        roll.remove(directory)
        assert os.listdir(directory) == []


def test_small_blocks(make_overlay: MakeOverlay) -> None:
    """Where a block holds 1 KiB an attribute cannot be larger."""
    mounted = make_overlay({}, upper_fs="ext4", upper_size=8 * 1024 * 1024)
    assert os.statvfs(mounted.upper).f_bsize == 1024
    names = [str(number) for number in range(1000)]
    with opened(mounted.upper) as directory:
        roll.write(directory, names)
        found = roll.read(directory, len(names))
        assert found is not None
        assert all(map(found.knows, names))


class TestDamage:
    @pytest.fixture
    def directory(self, tmp_path: os.PathLike[str]) -> Iterator[int]:
        with opened(os.fsencode(tmp_path)) as descriptor:
            roll.write(descriptor, [str(number) for number in range(2000)])
            yield descriptor

    @pytest.mark.parametrize("page", [0, 1, 3])
    def test_a_page_that_is_gone(self, directory: int, page: int) -> None:
        os.unlink(roll.page_name(page), dir_fd=directory)
        assert roll.read(directory, 2000) is None

    def test_a_page_that_somebody_wrote_over(self, directory: int) -> None:
        os.unlink(roll.page_name(1), dir_fd=directory)
        os.symlink("mine", roll.page_name(1), dir_fd=directory)
        assert roll.read(directory, 2000) is None

    def test_a_page_whose_value_was_not_written(self, directory: int) -> None:
        """Killed between the two."""
        os.removexattr(f"/proc/self/fd/{directory}/{roll.page_name(3)}", "trusted.overlay.promoterd.roll")
        assert roll.read(directory, 2000) is None
        roll.write(directory, ["a"])
        assert roll.read(directory, 1) is not None

    def test_another_number_of_names(self, directory: int) -> None:
        assert roll.read(directory, 1999) is None

    def test_a_shorter_one_replaces_all_of_it(self, directory: int) -> None:
        roll.write(directory, ["a"])
        assert os.listdir(directory) == [roll.page_name(0)]
        found = roll.read(directory, 1)
        assert found is not None
        assert found.knows("a")
        assert not found.knows("1")


def test_no_names_no_pages(tmp_path: os.PathLike[str]) -> None:
    with opened(os.fsencode(tmp_path)) as directory:
        roll.write(directory, [])
        assert os.listdir(directory) == []
        assert roll.read(directory, 0) == Roll()


def test_times_are_kept(tmp_path: os.PathLike[str]) -> None:
    os.utime(tmp_path, ns=(5, 6))
    with opened(os.fsencode(tmp_path)) as directory, roll.times_kept(directory):
        roll.write(directory, ["a"])
    assert (os.stat(tmp_path).st_atime_ns, os.stat(tmp_path).st_mtime_ns) == (5, 6)


class TestSeenThroughTheOverlay:
    """It stands in the directory, and nobody sees it: merged, marked, active, and after all that."""

    @pytest.fixture
    def bench(self, make_overlay: MakeOverlay) -> Bench:
        return Bench(make_overlay({"d": files(6)}))

    def test_it_is_hidden(self, bench: Bench) -> None:
        names = set(os.listdir(bench.mounted.at("d")))
        bench.mark(b"d")
        assert roll.page_name(0).encode() in os.listdir(bench.mounted.in_upper("d"))
        for step in (bench.view, bench.activate, bench.remount):
            step()
            assert set(os.listdir(bench.mounted.at("d"))) == names
            assert not os.path.lexists(bench.mounted.at(b"d/" + roll.page_name(0).encode()))
            found = subprocess.run(["find", bench.mounted.at("d")], check=True, capture_output=True).stdout
            assert b"roll" not in found

    @pytest.mark.parametrize("active", [False, True])
    def test_the_directory_can_be_removed(self, bench: Bench, *, active: bool) -> None:
        bench.mark(b"d")
        if active:
            bench.activate()
        subprocess.run(["rm", "-r", bench.mounted.at("d")], check=True)
        os.mkdir(bench.mounted.at("d"))
        assert os.listdir(bench.mounted.at("d")) == []

    @pytest.mark.parametrize("active", [False, True])
    def test_its_name_can_be_used(self, bench: Bench, *, active: bool) -> None:
        bench.mark(b"d")
        if active:
            bench.activate()
        path = bench.mounted.at(b"d/" + roll.page_name(0).encode())
        with open(path, "xb") as file:
            file.write(b"mine")
        bench.remount()
        with open(path, "rb") as file:
            assert file.read() == b"mine"
