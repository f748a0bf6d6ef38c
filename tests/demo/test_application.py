"""The demonstration's application: mostly misses, but no search directory without an event that inotify sees."""

import ctypes
import dataclasses
import os
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from promoterd.demo import application, tree
from promoterd.demo.application import Spec
from promoterd.demo.lower import CountingLower
from promoterd.errors import DemoFailed
from support.overlays import MountedOverlay

pytestmark = pytest.mark.needs("root")

_IN_OPEN = 0x20


@pytest.fixture(scope="module")
def share(tmp_path_factory: pytest.TempPathFactory) -> tree.Share:
    return tree.build(str(tmp_path_factory.mktemp("share") / "root"))


def touched(directories: list[bytes], action: Callable[[], object]) -> set[bytes]:
    """Which of the directories raise IN_OPEN, for themselves or an entry of theirs, while the action runs."""
    libc = ctypes.CDLL(None, use_errno=True)
    queue = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        watches = {libc.inotify_add_watch(queue, path, _IN_OPEN): path for path in directories}
        assert min(watches) > 0
        action()
        seen: set[bytes] = set()
        while True:
            try:
                events = os.read(queue, 1 << 20)
            except BlockingIOError:
                return seen
            while events:
                watch, _, _, length = struct.unpack_from("iIII", events)
                seen.add(watches[watch])
                events = events[16 + length :]
    finally:
        os.close(queue)


def test_a_launch_mostly_misses_and_finds_all_it_needs(share: tree.Share) -> None:
    report = application.launch(Spec.of(share, share.root))
    assert report.errors == []
    assert 3000 <= report.missed <= 5000
    assert report.missed / (report.missed + report.found) >= 0.85
    assert report.listed == len(share.python_path) + len(share.plugin_path)
    assert 0 < report.seconds < 30


def test_every_search_directory_is_touched_and_no_other(share: tree.Share) -> None:
    watched = [share.root + b"/" + path for path in share.search_path]
    refused = share.root + b"/" + share.refused
    spec = Spec.of(share, share.root)
    assert touched([*watched, refused], lambda: application.run(spec)) == set(watched)


@pytest.mark.needs("fuse")
def test_each_miss_is_one_negative_lookup_on_the_server(share: tree.Share, tmp_path: Path) -> None:
    with CountingLower(share.root, str(tmp_path)) as lower:
        report = application.launch(Spec.of(share, os.fsencode(lower.mountpoint)))
        assert report.errors == []
        assert lower.counts()["LOOKUP_NEGATIVE"] == report.missed


@pytest.mark.needs("fuse", "overlay")
def test_through_a_cold_overlay_too_and_the_same_each_time(
    share: tree.Share, make_overlay: Callable[..., MountedOverlay]
) -> None:
    overlay = make_overlay(counting=True)
    os.rename(share.root + b"/apps", overlay.on_server("apps"))
    try:
        counts = []
        for _ in range(2):
            overlay.cool()
            overlay.counted.reset()
            report = application.launch(Spec.of(share, overlay.mountpoint))
            assert report.errors == []
            counts.append(overlay.counted.counts())
            assert counts[-1]["LOOKUP_NEGATIVE"] == report.missed
        assert sum(counts[0].values()) == pytest.approx(sum(counts[1].values()), rel=0.005)
    finally:
        os.rename(overlay.on_server("apps"), share.root + b"/apps")


def test_what_it_cannot_do_without_is_an_error(share: tree.Share) -> None:
    spec = Spec.of(share, share.root)
    report = application.launch(dataclasses.replace(spec, libraries=["libgone.so.1"], modules=["gone"]))
    assert "libgone.so.1: cannot open shared object file" in report.errors
    assert "No module named gone" in report.errors


def test_a_directory_that_cannot_be_listed_is_an_error(share: tree.Share) -> None:
    spec = dataclasses.replace(Spec.of(share, share.root), plugin_path=["apps/absent/plugins"])
    assert any("apps/absent/plugins" in error for error in application.launch(spec).errors)


def test_a_launch_that_takes_too_long_is_ended(share: tree.Share) -> None:
    with pytest.raises(DemoFailed, match="did not start within"):
        application.launch(Spec.of(share, share.root), timeout=0.01)
