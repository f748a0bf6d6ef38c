"""The kernel that marks by itself, as far as a kernel that does not can show it; and the dry run."""

import os
from collections.abc import Callable

import pytest

from promoterd.backends import base
from promoterd.backends.base import Busy, MarkState
from promoterd.backends.finalize import FinalizeBackend
from promoterd.backends.observe import ObserveBackend
from promoterd.errors import Refused
from promoterd.overlay import mounts, probe
from promoterd.overlay.fitness import is_fit
from promoterd.overlay.listing import Layers
from support.overlays import MountedOverlay
from support.promotions import Bench, allow, assert_same_view, upper_directories
from support.soundness import OPAQUE, PROVENANCE, xattr
from support.trees import Hardlink, files

MakeOverlay = Callable[..., MountedOverlay]
D = b"d"
TREE = {"d": {**files(5), "sub": files(2)}}


@pytest.fixture
def finalizing(make_overlay: MakeOverlay) -> Bench:
    return Bench(make_overlay(TREE), "finalize")


def kernel_marks(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel with ovl-finalize-dir: a readdir through the overlay leaves its mark in upper."""
    listing = Layers.list_merged

    def list_and_mark(self: Layers, path: bytes) -> list[str]:
        os.setxattr(bench.mounted.in_upper(path), OPAQUE, b"z")
        return listing(self, path)

    monkeypatch.setattr(Layers, "list_merged", list_and_mark)


class TestFinalize:
    def test_this_kernel_is_found_unfit(self, finalizing: Bench) -> None:
        findings = FinalizeBackend.findings(finalizing.overlay, probe.gather(finalizing.overlay))
        assert not is_fit(findings)
        refused = findings[0]
        assert refused.option == "kernel"
        assert "does not mark" in refused.message
        assert "backend: opaque" in refused.remedy

    def test_it_needs_neither_children_nor_redirects(self, make_overlay: MakeOverlay) -> None:
        bench = Bench(make_overlay({"d": {"n" * 254: b"", "sub": files(2)}}), "finalize")
        plan = bench.plan(D, recursive=False)
        assert [directory.path for directory in plan.directories] == [D]

    def test_busy_where_the_kernel_does_not_mark(self, finalizing: Bench) -> None:
        before = finalizing.view()
        plan = finalizing.plan(D)
        finalizing.shadow(plan)
        with pytest.raises(Busy, match="the kernel has not marked it"):
            finalizing.backend.complete(plan)
        assert xattr(finalizing.mounted.in_upper(D), OPAQUE) is None
        assert xattr(finalizing.mounted.in_upper(D), PROVENANCE) is None
        assert_same_view(before, finalizing.view())

    def test_the_kernels_mark_is_found(self, finalizing: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        """That it takes effect cannot be seen: the directory stays merged."""
        kernel_marks(finalizing, monkeypatch)
        assert finalizing.mark(D) == [D]
        found = finalizing.on_disk(D)
        assert (found.mark, found.in_effect) == (MarkState.OURS, None)
        assert finalizing.plan(D).directories == []

    def test_a_mark_of_the_kernels_alone_is_not_ours_yet(
        self, finalizing: Bench, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Somebody listed a directory that happened to be all in upper: it can still be completed."""
        finalizing.shadow(finalizing.plan(D))
        os.setxattr(finalizing.mounted.in_upper(D), OPAQUE, b"z")
        assert finalizing.on_disk(D).mark is MarkState.FOREIGN
        kernel_marks(finalizing, monkeypatch)
        assert finalizing.mark(D) == [D]
        assert finalizing.on_disk(D).mark is MarkState.OURS

    def test_a_mark_of_another_kind_is_foreign(self, finalizing: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        kernel_marks(finalizing, monkeypatch)
        finalizing.mark(D)
        os.setxattr(finalizing.mounted.in_upper(D), OPAQUE, b"y")
        assert finalizing.on_disk(D).mark is MarkState.FOREIGN

    def test_it_is_reopened(self, finalizing: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        before = finalizing.view()
        with monkeypatch.context() as patch:
            kernel_marks(finalizing, patch)
            finalizing.mark(D)
        finalizing.reopen(D)
        assert finalizing.on_disk(D).mark is MarkState.NONE
        assert xattr(finalizing.mounted.in_upper(D), PROVENANCE) is None
        assert_same_view(before, finalizing.view())


class TestObserve:
    @pytest.fixture
    def observing(self, make_overlay: MakeOverlay) -> Bench:
        return Bench(make_overlay(TREE), "observe")

    def test_it_is_fit_for_everything(self, make_overlay: MakeOverlay) -> None:
        overlay = mounts.overlay_at(make_overlay({}, options="metacopy=off,redirect_dir=off").mountpoint)
        assert ObserveBackend.findings(overlay, probe.gather(overlay)) == []
        assert not base.load("observe").marks

    def test_it_plans_as_opaque_would_and_changes_nothing(self, observing: Bench) -> None:
        before = observing.view()
        plan = observing.plan(D)
        opaque = Bench(observing.mounted).plan(D)
        assert [found.path for found in plan.directories] == [found.path for found in opaque.directories]
        assert plan.entries == opaque.entries
        assert observing.shadow(plan) == 0
        assert observing.backend.complete(plan) == []
        observing.reopen(D)
        assert list(upper_directories(observing.mounted)) == [b""]
        assert observing.on_disk(D).mark is MarkState.NONE
        assert_same_view(before, observing.view())

    def test_it_refuses_as_opaque_would(self, make_overlay: MakeOverlay) -> None:
        bench = Bench(make_overlay({"d": {"a": b"", "b": Hardlink("d/a")}}), "observe")
        with pytest.raises(Refused, match="hard-linked"):
            bench.plan(D)
        assert sorted(bench.plan(D, of=allow(break_hardlinks=True)).broken_hardlinks) == [b"d/a", b"d/b"]
