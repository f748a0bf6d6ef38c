"""What an interrupted run left behind."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from promoterd.overlay.lock import WriterLock
from support.checking import assert_shows_the_server, checked, errors, information, left
from support.handmade import Layer
from support.overlays import MountedOverlay
from support.promotions import Bench
from support.soundness import xattr
from support.trees import OLD, build, files

MakeOverlay = Callable[..., MountedOverlay]


@pytest.fixture
def layered(make_overlay: MakeOverlay) -> MountedOverlay:
    mounted = make_overlay({"d": files(3)}, counting=True, layered=True)
    Layer(mounted).complete("d")
    return mounted


@pytest.mark.parametrize("offline", [False, True])
def test_the_stage(layered: MountedOverlay, offline: bool) -> None:
    build(layered.layer_home + b"/promoterd.stage", {"1-0": {"deep": {"er": files(2)}}, "file": "x"})
    told = {("stage", "/promoterd.stage/1-0"), ("stage", "/promoterd.stage/file")}
    report = checked(layered, offline=offline)
    assert (report.exit_code, errors(report)) == (4, told)
    report = checked(layered, offline=offline, repair=True)
    assert (report.exit_code, left(report)) == (1, set())
    assert os.listdir(layered.layer_home + b"/promoterd.stage") == []
    assert_shows_the_server(layered)


def test_the_graveyard_is_emptied_when_nobody_can_refer_to_it(layered: MountedOverlay) -> None:
    grave = layered.layer_home + b"/promoterd.graveyard"
    build(grave, {"1-0": {"files": files(2)}})
    for repair in (False, True):
        report = checked(layered, repair=repair)
        assert (report.exit_code, information(report)) == (0, {("waiting", "/promoterd.graveyard/1-0")})
        assert os.listdir(grave) == [b"1-0"]
    assert errors(checked(layered, offline=True)) == {("grave", "/promoterd.graveyard/1-0")}
    assert checked(layered, offline=True, repair=True).exit_code == 1
    assert os.listdir(grave) == []


def test_while_somebody_works_there_nothing_was_left(layered: MountedOverlay) -> None:
    build(layered.layer_home + b"/promoterd.stage", {"1-0": {}})
    os.unlink(layered.in_files("d/f0001"))
    Layer(layered).dress_ancestors("d")
    with WriterLock(layered.layer_home):
        report = checked(layered)
    assert errors(report) == {("missing", "/d/f0001")}
    assert f"pid {os.getpid()}" in report.writer


def test_what_somebody_is_in_the_middle_of(layered: MountedOverlay) -> None:
    shutil.rmtree(layered.in_rest("d"))
    assert errors(checked(layered)) == {("twin", "/d")}
    with WriterLock(layered.upper):
        assert errors(checked(layered)) == set()


class TestScratch:
    def scratch(self, mounted: MountedOverlay) -> bytes:
        path = mounted.at(".promoterd")
        os.mkdir(path, 0o700)
        os.mkdir(path + b"/ghost-17-0")
        Path(os.fsdecode(path + b"/ghost-17-0/file")).write_text("x")
        Path(os.fsdecode(path + b"/link-17-1")).write_text("x")
        return path

    @pytest.mark.parametrize("offline", [False, True])
    def test_it_is_removed_with_what_is_in_it(self, make_overlay: MakeOverlay, offline: bool) -> None:
        mounted = make_overlay({"d": files(2)})
        path = self.scratch(mounted)
        os.utime(mounted.mountpoint, ns=(OLD, OLD))
        assert errors(checked(mounted, offline=offline)) == {("scratch", "/.promoterd")}
        assert checked(mounted, offline=offline, repair=True).exit_code == 1
        assert not os.path.lexists(path)
        assert os.stat(mounted.mountpoint).st_mtime_ns == OLD
        assert checked(mounted).exit_code == 0

    @pytest.mark.parametrize("offline", [False, True])
    def test_what_is_not_ours_is_not_touched(self, make_overlay: MakeOverlay, offline: bool) -> None:
        mounted = make_overlay({"d": files(2)})
        path = self.scratch(mounted)
        Path(os.fsdecode(path + b"/precious")).write_text("x")
        report = checked(mounted, offline=offline, repair=True)
        assert (report.exit_code, report.rows) == (0, [])
        assert len(os.listdir(path)) == 3


@pytest.mark.parametrize("offline", [False, True])
def test_rolls(make_overlay: MakeOverlay, offline: bool) -> None:
    bench = Bench(make_overlay({"d": files(2), "e": files(2)}))
    bench.promote(b"d")
    directory = bench.mounted.work + b"/promoterd/"
    stray, strangers = directory + b"roll-" + b"0" * 24, directory + b"notes"
    for path in (stray, strangers):
        Path(os.fsdecode(path)).write_bytes(b"1\0e\0")
    assert errors(checked(bench.mounted, offline=offline)) == {
        ("stray-roll", "/roll-" + "0" * 24),
        ("scratch", "/.promoterd"),
    }
    assert checked(bench.mounted, offline=offline, repair=True).exit_code == 1
    assert (os.path.exists(stray), os.path.exists(strangers)) == (False, True)
    assert len(os.listdir(directory)) == 2
    assert xattr(bench.mounted.in_upper("d"), "trusted.overlay.opaque") == b"y"
    assert checked(bench.mounted, offline=offline).exit_code == 0
