"""Paths as typed, and the paths that they mean."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from promoterd.cli.typed import absolute
from promoterd.errors import UsageError
from support.overlays import MountedOverlay


def test_absolute_and_relative(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = os.fsencode(os.path.realpath(tmp_path))
    (tmp_path / "sub").mkdir()
    monkeypatch.chdir(tmp_path / "sub")
    assert absolute("/a//b/./c/") == b"/a/b/c"
    assert absolute("/") == b"/"
    assert absolute(".") == here + b"/sub"
    assert absolute("x") == here + b"/sub/x"
    assert absolute("./../y") == here + b"/y"
    assert absolute("../../../../../../../../../../z") == b"/z"


def test_odd_bytes_stay(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert absolute(os.fsdecode(b"\xff\n")).endswith(b"/\xff\n")
    assert absolute("[red]").endswith(b"/[red]")


@pytest.mark.parametrize("typed", ["", "/a/../b", "a/..", "/" + "a" * 4096])
def test_what_is_no_path_of_a_mount(typed: str) -> None:
    with pytest.raises(UsageError):
        absolute(typed)


def test_a_working_directory_that_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    gone = tmp_path / "gone"
    gone.mkdir()
    os.chdir(gone)
    gone.rmdir()
    with pytest.raises(UsageError, match="working directory is gone"):
        absolute("x")
    assert absolute("/x") == b"/x"


def test_links_are_followed_to_the_mount_and_no_further(
    make_overlay: Callable[..., MountedOverlay], tmp_path: Path
) -> None:
    mounted = make_overlay({"apps": {"1.0": {}}})
    os.symlink("1.0", mounted.at("apps/current"))
    (tmp_path / "software").symlink_to(os.fsdecode(mounted.mountpoint))
    (tmp_path / "again").symlink_to("software/apps")
    (tmp_path / "loop").symlink_to("loop")
    base = os.fsencode(os.path.realpath(tmp_path))
    assert absolute(f"{tmp_path}/software/apps/current/lib") == mounted.at("apps/current/lib")
    assert absolute(f"{tmp_path}/again/current") == mounted.at("apps/current")
    assert absolute(os.fsdecode(mounted.at("apps/current"))) == mounted.at("apps/current")
    assert absolute(f"{tmp_path}/loop/x") == base + b"/loop/x"
