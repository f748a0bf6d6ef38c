"""Trying a layout out: on FUSE in place of NFS, which no test outside the lab has."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from promoterd.errors import KernelTooOld, PromoterdError, Refused
from promoterd.layout.check import check
from promoterd.layout.plan import Wanted, plan
from promoterd.layout.rehearsal import Seen, _difference, try_layers
from promoterd.overlay.facts import Trial
from promoterd.overlay.mountinfo import read
from support.facts import GOOD_TRIAL
from support.overlays import MountedOverlay, unmount
from support.trees import Tree

MakeOverlay = Callable[..., MountedOverlay]
TREE: Tree = {"README": b"readme", "lib": {"deep": {"b": b"data of b"}, "empty": b""}}


@pytest.fixture
def rehearse(make_overlay: MakeOverlay) -> Callable[..., Seen]:
    """:func:`try_layers` on trees of a server, each mounted twice."""

    def run(*trees: Tree, change: Callable[[MountedOverlay], None] = lambda _: None) -> Seen:
        made = make_overlay(list(trees), counting=True, layered=True, mount=False)
        change(made)
        try:
            pairs = list(zip(made.layers, made.data_layers, strict=True))
            return try_layers(pairs, made.base + b"/scratch", made.mountpoint)
        finally:
            unmount(made.mountpoint)

    return run


def test_a_file_is_read_through_the_layer(rehearse: Callable[..., Seen]) -> None:
    assert rehearse(TREE) == Seen(read="lib/deep/b")


def test_two_servers(rehearse: Callable[..., Seen]) -> None:
    assert rehearse({"x": {"y": b"1"}}, TREE) == Seen(read="x/y")


def test_a_server_without_directories_or_files(rehearse: Callable[..., Seen]) -> None:
    assert rehearse({"README": b"readme"}) == Seen(read="README")
    assert rehearse({"empty": {}}) == Seen()


def test_data_that_differ_are_seen(rehearse: Callable[..., Seen]) -> None:
    def another(made: MountedOverlay) -> None:
        copy = made.base + b"/copy"
        os.makedirs(copy + b"/lib/deep")
        (Path(os.fsdecode(copy)) / "lib" / "deep" / "b").write_bytes(b"other data")
        made.data_layers = [copy]

    seen = rehearse(TREE, change=another)
    assert (seen.failed, seen.reason) == (
        "the file lib/deep/b",
        "through the layer it has other data than on the server",
    )


def test_data_that_are_missing_are_seen(rehearse: Callable[..., Seen]) -> None:
    def nothing(made: MountedOverlay) -> None:
        made.data_layers = [made.base + b"/nothing"]
        os.mkdir(made.data_layers[0])

    assert "cannot be read" in rehearse(TREE, change=nothing).reason


def test_attributes_that_do_not_come_from_the_layer_are_seen(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"data")
    (tmp_path / "f").chmod(0o644)
    assert _difference(bytes(tmp_path), b"f", b"data") == "its attributes do not come from the layer"


def test_a_data_layer_that_is_no_mount_of_its_own(rehearse: Callable[..., Seen]) -> None:
    def the_same(made: MountedOverlay) -> None:
        made.data_layers = list(made.layers)

    seen = rehearse(TREE, change=the_same)
    assert seen.failed == "the overlay"
    assert "symbolic links" in seen.reason, "check() explains it"


class TestCheck:
    def wanted(self, base: Path) -> Wanted:
        return Wanted([b"127.0.0.1:/none"], b"/srv/soft", bytes(base) + b"/state")

    @pytest.mark.needs("root", "overlay")
    def test_a_server_that_cannot_be_mounted(self, tmp_path: Path) -> None:
        before = read()
        with pytest.raises(Refused, match=r"127\.0\.0\.1:/none with ro,vers=4\.2,hard") as raised:
            check(plan(self.wanted(tmp_path)), GOOD_TRIAL)
        assert "--nfs-options" in (raised.value.hint or "")
        assert read() == before
        assert os.listdir(tmp_path) == []

    @pytest.mark.needs("root", "overlay")
    def test_a_server_that_does_not_answer(self, tmp_path: Path) -> None:
        with pytest.raises(Refused, match="no answer within 0"):
            check(plan(self.wanted(tmp_path)), GOOD_TRIAL, patience=0.01)
        assert os.listdir(tmp_path) == []

    @pytest.mark.parametrize(
        ("trial", "error", "said"),
        [
            (Trial(error="EPERM"), PromoterdError, "EPERM"),
            (replace(GOOD_TRIAL, data_only_layers=False), KernelTooOld, "data-only layers in overlayfs"),
            (replace(GOOD_TRIAL, lazy_data=False), KernelTooOld, "when a file is opened"),
        ],
    )
    def test_a_kernel_that_cannot_is_said_before_any_server_is_asked(
        self, tmp_path: Path, trial: Trial, error: type[PromoterdError], said: str
    ) -> None:
        with pytest.raises(error, match=said) as raised:
            check(plan(self.wanted(tmp_path)), trial)
        assert len(raised.value.hint or "") > 10
