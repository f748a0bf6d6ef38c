"""Extended attributes through descriptors: of the very thing that was opened, and never of what a link leads to."""

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from promoterd.overlay import xattrs
from support.overlays import MountedOverlay
from support.trees import ODD_NAMES

pytestmark = pytest.mark.needs("root")
NAME = "trusted.overlay.test"


@pytest.fixture(params=[os.O_PATH, os.O_RDONLY], ids=["O_PATH", "O_RDONLY"])
def directory(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[int]:
    descriptor = os.open(tmp_path, request.param)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@pytest.mark.parametrize("name", ODD_NAMES)
def test_of_entries_of_any_name(directory: int, name: bytes) -> None:
    os.mknod(name, dir_fd=directory)
    itself = xattrs.entry(directory, name)
    assert xattrs.get(itself, NAME) is None
    xattrs.put(itself, NAME, b"1")
    xattrs.put(itself, NAME, b"\0\xff")
    assert xattrs.get(itself, NAME) == b"\0\xff"
    assert xattrs.get(xattrs.entry(directory, os.fsdecode(name)), NAME) == b"\0\xff"
    assert xattrs.remove(itself, NAME)
    assert not xattrs.remove(itself, NAME)


def test_of_a_directory_itself(directory: int, tmp_path: Path) -> None:
    xattrs.put(xattrs.descriptor(directory), NAME, b"1")
    assert os.getxattr(tmp_path, NAME) == b"1"
    assert xattrs.get(xattrs.descriptor(directory), NAME) == b"1"
    assert xattrs.remove(xattrs.descriptor(directory), NAME)


def test_links_are_not_followed(directory: int, tmp_path: Path) -> None:
    (tmp_path / "target").touch()
    os.symlink("target", "link", dir_fd=directory)
    xattrs.put(xattrs.entry(directory, "link"), NAME, b"of the link")
    assert NAME not in os.listxattr(tmp_path / "target")
    assert xattrs.get(xattrs.entry(directory, "link"), NAME) == b"of the link"
    assert xattrs.get(xattrs.entry(directory, "target"), NAME) is None


def test_what_is_missing_is_an_error_and_not_an_absent_attribute(directory: int) -> None:
    with pytest.raises(FileNotFoundError):
        xattrs.get(xattrs.entry(directory, "nothing"), NAME)
    with pytest.raises(FileNotFoundError):
        xattrs.put(xattrs.entry(directory, "nothing"), NAME, b"")


def test_whether_a_file_system_can_hold_them(
    directory: int, make_overlay: Callable[..., MountedOverlay], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert xattrs.has_trusted(directory)
    mounted = make_overlay({}, counting=True, xattrs=False)
    lower = os.open(mounted.layers[0], os.O_PATH)
    try:
        assert not xattrs.has_trusted(lower)
        assert xattrs.get(xattrs.descriptor(lower), NAME) is None
    finally:
        os.close(lower)

    def denied(*_: object, **__: object) -> bytes:
        raise PermissionError(errno.EPERM, "")

    monkeypatch.setattr(os, "getxattr", denied)
    with pytest.raises(PermissionError):
        xattrs.get(xattrs.descriptor(directory), NAME)


def test_ours_are_never_seen_through_the_mount(make_overlay: Callable[..., MountedOverlay]) -> None:
    """ovl_is_private_xattr: neither listed nor read, so they are no part of the view."""
    mounted = make_overlay({"d": {}})
    os.chmod(mounted.at("d"), 0o700)
    for name in (xattrs.PROVENANCE, xattrs.ANCESTOR, xattrs.TIMES, xattrs.UPPER_ID):
        os.setxattr(mounted.in_upper("d"), name, b"x")
        with pytest.raises(OSError, match=r"No data|not supported"):
            os.getxattr(mounted.at("d"), name)
    assert os.listxattr(mounted.at("d")) == []


@pytest.mark.parametrize(
    ("mode", "rdev", "whiteout"), [(0o20000, 0, True), (0o20600, 0, True), (0o20000, 0x103, False), (0o60000, 0, False)]
)
def test_whiteouts(mode: int, rdev: int, *, whiteout: bool) -> None:
    assert xattrs.stat_is_whiteout(mode, rdev) is whiteout
