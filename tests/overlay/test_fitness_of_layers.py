"""What stands against a metadata layer; every refusal names the path and the way out."""

import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from promoterd.overlay import probe, syscalls
from promoterd.overlay.facts import Facts, LayerFacts, Misplaced, Trial
from promoterd.overlay.findings import Finding, Severity
from promoterd.overlay.fitness import is_fit, marking_findings
from promoterd.overlay.fitness_of_layers import LAYOUT, layer_findings
from promoterd.overlay.mounts import Overlay, overlay_at
from support.facts import GOOD_FACTS, GOOD_HOST, GOOD_TRIAL, described
from support.overlays import OPTIONS, MountedOverlay, unmount

MakeOverlay = Callable[..., MountedOverlay]
LAYERS = b"lowerdir=/h/promoterd.files:/h/promoterd.rest:/l::/d,upperdir=/u,workdir=/w"
FACTS = replace(GOOD_FACTS, layer=LayerFacts("ext4", trusted_xattrs=True))


def refusals(findings: list[Finding]) -> dict[str, Finding]:
    return {finding.option: finding for finding in findings if finding.severity is Severity.REFUSE}


def layered(options: bytes = b"redirect_dir=on,metacopy=on", layers: bytes = LAYERS) -> Overlay:
    return described(options, layers)


def judged(overlay: Overlay, facts: Facts = FACTS) -> dict[str, Finding]:
    found = refusals(layer_findings(overlay, facts))
    for finding in found.values():
        assert "/mnt/app" in finding.message
        assert len(finding.remedy) > 10
        assert (finding.message + finding.remedy).isprintable()
    return found


def look(mounted: MountedOverlay) -> dict[str, Finding]:
    overlay = overlay_at(mounted.mountpoint)
    found = refusals(layer_findings(overlay, probe.gather(overlay)))
    for finding in found.values():
        assert mounted.mountpoint.decode() in finding.message
    return found


def test_a_layered_mount_is_fit() -> None:
    assert [finding.severity for finding in layer_findings(layered(), FACTS)] == []


def test_a_real_layered_mount_is_fit_for_all(make_overlay: MakeOverlay) -> None:
    mounted = make_overlay([{"lib": {"a": b"1"}}, {"b": b"2"}], counting=True, layered=True)
    assert look(mounted) == {}
    overlay = overlay_at(mounted.mountpoint)
    facts = probe.gather(overlay)
    facts = replace(facts, host=replace(facts.host, hidden_processes=0))
    marking = marking_findings(overlay, facts)
    assert is_fit(marking), "opaque stays possible"
    assert [finding for finding in marking if finding.severity is Severity.WARN] == []


@pytest.mark.parametrize(
    ("options", "refused"),
    [
        ("redirect_dir=on,metacopy=off,xino=off", "metacopy"),
        ("metacopy=off,redirect_dir=follow,xino=off", "redirect_dir"),
        (f"{OPTIONS},volatile", "volatile"),
        (f"{OPTIONS},verity=require", "verity"),
    ],
)
def test_options_that_are_refused(make_overlay: MakeOverlay, options: str, refused: str) -> None:
    assert refused in look(make_overlay({"lib": {"a": b"1"}}, counting=True, layered=True, options=options))


@pytest.mark.parametrize("options", [b"index=on,metacopy=on", b"userxattr", b"nfs_export=on,index=on", b"xino=on"])
def test_options_that_are_refused_from_their_description(options: bytes) -> None:
    assert options.split(b",")[0].split(b"=")[0].decode() in judged(layered(options))


def test_no_upper_layer_and_a_read_only_one() -> None:
    assert "upperdir" in judged(replace(layered(), upper=None, work=None))
    assert set(judged(replace(layered(), read_only=True))) == {"ro"}


class TestLayout:
    def test_a_mount_without_a_metadata_layer(self) -> None:
        found = judged(described(), replace(GOOD_FACTS, exports=(b"nas1:/export/soft",)))
        assert set(found) == {LAYOUT}
        assert "no metadata layer" in found[LAYOUT].message
        assert (
            "`promoterd layout --lower nas1:/export/soft --mountpoint /mnt/app --upper /u --work /w`"
            in found[LAYOUT].remedy
        )

    def test_the_halves_have_to_be_on_top_and_together(self) -> None:
        for lowers in (
            b"/l:/h/promoterd.files:/h/promoterd.rest",
            b"/h/promoterd.rest:/h/promoterd.files:/l",
            b"/h/promoterd.files:/i/promoterd.rest:/l",
            b"/h/promoterd.files:/l",
        ):
            found = judged(layered(layers=b"lowerdir=%s::/d,upperdir=/u,workdir=/w" % lowers), GOOD_FACTS)
            assert "no metadata layer" in found[LAYOUT].message

    def test_no_data_only_layer(self) -> None:
        found = judged(layered(layers=LAYERS.replace(b"::/d", b"")))
        assert "no data-only layer" in found[LAYOUT].message
        assert "SERVER:/EXPORT" in found[LAYOUT].remedy

    @pytest.mark.parametrize("data", [b"::/d", b"::/d::/e::/f"])
    def test_another_number_of_them(self, data: bytes) -> None:
        found = judged(layered(layers=LAYERS.replace(b"/l::/d", b"/l:/m" + data)))
        assert f"has {data.count(b'::')} data-only layers for 2" in found[LAYOUT].message

    def test_data_from_another_tree(self, make_overlay: MakeOverlay) -> None:
        mounted = make_overlay([{"a": b"1"}, {"b": b"2"}], counting=True, layered=True, mount=False)
        mounted.data_layers.reverse()
        found = look(mounted.mount())
        assert set(found) == {LAYOUT}
        assert any(layer.decode() in found[LAYOUT].message for layer in mounted.data_layers)
        other = replace(FACTS, other_data=(Misplaced(b"/d", "its root has another inode number"),))
        assert "/d" in judged(layered(), other)[LAYOUT].message

    def test_a_second_overlay_on_the_same_layer(self, make_overlay: MakeOverlay) -> None:
        mounted = make_overlay({"a": b"1"}, counting=True, layered=True)
        second = mounted.base + b"/second"
        os.mkdir(second)
        for name in (b"/upper2", b"/work2"):
            os.mkdir(mounted.base + name)
        data = b"lowerdir=%s:%s::%s,upperdir=%s/upper2,workdir=%s/work2,metacopy=on,redirect_dir=on" % (
            b":".join(mounted.metadata),
            mounted.layers[0],
            mounted.data_layers[0],
            mounted.base,
            mounted.base,
        )
        syscalls.mount(b"second", second, b"overlay", 0, data)
        try:
            assert second.decode() in look(mounted)["upperdir"].message
        finally:
            unmount(second)
        assert look(mounted) == {}


class TestHome:
    @pytest.mark.parametrize("fstype", ["nfs4", "fuse.sshfs", "cifs"])
    def test_on_a_server(self, fstype: str) -> None:
        found = judged(layered(), replace(FACTS, layer=LayerFacts(fstype, trusted_xattrs=False)))
        assert fstype in found[LAYOUT].message
        assert "local disk" in found[LAYOUT].remedy

    def test_without_trusted_attributes(self) -> None:
        found = judged(layered(), replace(FACTS, layer=LayerFacts("vfat", trusted_xattrs=False)))
        assert "vfat" in found[LAYOUT].message

    def test_in_pieces(self, make_overlay: MakeOverlay) -> None:
        mounted = make_overlay({}, counting=True, layered=True)
        stage = mounted.layer_home + b"/promoterd.stage"
        os.mkdir(stage)
        syscalls.mount(b"none", stage, b"tmpfs")
        try:
            found = look(mounted)
        finally:
            unmount(stage)
        assert stage.decode() in found[LAYOUT].message
        assert look(mounted) == {}

    def test_small_inodes_are_worth_knowing(self) -> None:
        facts = replace(FACTS, layer=LayerFacts("ext4", trusted_xattrs=True, inode_bytes=256))
        (found,) = layer_findings(layered(), facts)
        assert found.severity is Severity.INFO
        assert "-I 512" in found.remedy


@pytest.mark.parametrize(
    ("lacking", "text"),
    [
        ({"data_only_layers": False, "lazy_data": False}, "no data-only layers"),
        ({"lazy_data": False}, "does not find the data"),
        ({"layer_answers_misses": False}, "asks the server for a name"),
    ],
)
def test_a_kernel_that_the_trial_found_wanting(lacking: dict[str, Any], text: str) -> None:
    facts = replace(FACTS, host=replace(GOOD_HOST, trial=replace(GOOD_TRIAL, **lacking)))
    found = judged(layered(), facts)
    assert set(found) == {"kernel"}
    assert text in found["kernel"].message
    assert is_fit(marking_findings(layered(), facts)), "opaque needs none of it"


def test_without_a_trial_nothing_is_said_of_the_kernel() -> None:
    facts = replace(FACTS, host=replace(GOOD_HOST, trial=Trial(error="EPERM")))
    (found,) = refusals(layer_findings(layered(), facts)).values()
    assert "EPERM" in found.message


def test_a_writer_is_named() -> None:
    (found,) = layer_findings(layered(), replace(FACTS, writer="pid 7 (promoterd run)"))
    assert "pid 7" in found.message


def test_a_server_on_the_layers_own_file_system() -> None:
    found = judged(layered(), replace(FACTS, layer=LayerFacts("ext4", trusted_xattrs=True, with_server=(b"/l",))))
    assert "/l" in found[LAYOUT].message


def test_where_the_server_is_is_looked_at(make_overlay: MakeOverlay) -> None:
    apart = overlay_at(make_overlay({"lib": {"a": b"1"}}, counting=True, layered=True).mountpoint)
    layer = probe.gather(apart).layer
    assert layer is not None
    assert layer.with_server == ()
    together = overlay_at(make_overlay({"lib": {"a": b"1"}}, layered=True).mountpoint)
    layer = probe.gather(together).layer
    assert layer is not None
    assert layer.with_server == together.lowers
