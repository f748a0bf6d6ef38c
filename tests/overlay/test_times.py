"""The times of a directory that is changed behind overlayfs' back."""

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from promoterd.overlay.times import restore_times, times_kept

pytestmark = pytest.mark.needs("root")
ATTRIBUTE = "trusted.overlay.promoterd.times"


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[int]:
    os.utime(tmp_path, ns=(5, 6))
    descriptor = os.open(tmp_path, os.O_PATH)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def times(directory: int) -> tuple[int, int]:
    status = os.stat(f"/proc/self/fd/{directory}")
    return status.st_atime_ns, status.st_mtime_ns


def interrupted(directory: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As after a kill between the change and the end of the block."""
    with monkeypatch.context() as patch:
        patch.setattr(os, "utime", lambda *_, **__: None)
        patch.setattr(os, "removexattr", lambda *_, **__: None)
        with times_kept(directory):
            os.mkdir("made", dir_fd=directory)
    assert times(directory)[1] > 6


def test_they_are_kept(directory: int, tmp_path: Path) -> None:
    with times_kept(directory):
        os.mkdir("made", dir_fd=directory)
    assert times(directory) == (5, 6)
    assert ATTRIBUTE not in os.listxattr(tmp_path)


def test_also_where_the_change_fails(directory: int) -> None:
    def change() -> None:
        with times_kept(directory):
            os.mkdir("made", dir_fd=directory)
            os.mkdir("made", dir_fd=directory)

    with pytest.raises(FileExistsError):
        change()
    assert times(directory) == (5, 6)


def test_a_crash_is_made_good(directory: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupted(directory, monkeypatch)
    restore_times(directory)
    assert times(directory) == (5, 6)
    assert ATTRIBUTE not in os.listxattr(tmp_path)
    os.mkdir("another", dir_fd=directory)
    restore_times(directory)
    assert times(directory)[1] > 6


def test_but_not_over_what_somebody_else_changed_since(
    directory: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted(directory, monkeypatch)
    later = time.time_ns() + 60 * 10**9
    os.utime(tmp_path, ns=(later, later))
    restore_times(directory)
    assert times(directory)[1] == later
    assert ATTRIBUTE not in os.listxattr(tmp_path)
