import os
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from promoterd.overlay import probe, syscalls
from promoterd.overlay.fitness import (
    Finding,
    Misplaced,
    Project,
    Severity,
    finalize_findings,
    is_fit,
    marking_findings,
)
from promoterd.overlay.mounts import overlay_at
from support.facts import GOOD_FACTS, GOOD_HOST, GOOD_TRIAL, described
from support.needs import need
from support.overlays import MountedOverlay, unmount

MakeOverlay = Callable[..., MountedOverlay]


def refusals(findings: list[Finding]) -> dict[str, Finding]:
    return {finding.option: finding for finding in findings if finding.severity is Severity.REFUSE}


def look(mountpoint: bytes) -> dict[str, Finding]:
    """What is refused on a real mount; each refusal must name the option or layer, the path, and the way out."""
    overlay = overlay_at(mountpoint)
    found = refusals(marking_findings(overlay, probe.gather(overlay)))
    for option, finding in found.items():
        paths = [overlay.mountpoint, *overlay.layers, *overlay.relative_layers]
        assert any(path.decode() in finding.message for path in paths), finding
        assert option in finding.message or option in ("upperdir", "lowerdir", "workdir"), finding
        assert len(finding.remedy) > 10
    return found


def test_a_good_mount_is_fit() -> None:
    findings = marking_findings(described(), GOOD_FACTS)
    assert is_fit(findings)
    assert {finding.option for finding in findings} == {"index", "redirect_max"}


def test_a_real_good_mount_is_fit(make_overlay: MakeOverlay) -> None:
    made = make_overlay({"lib": {"a": b"1"}}, counting=True)
    assert look(made.mountpoint) == {}


@pytest.mark.parametrize(
    ("options", "option"),
    [
        ("metacopy=off,redirect_dir=on,xino=off", "metacopy"),
        ("metacopy=off,redirect_dir=nofollow,xino=off", "redirect_dir"),
        ("metacopy=off,redirect_dir=follow,xino=off", "redirect_dir"),
        ("nfs_export=on,index=on,redirect_dir=on", "nfs_export"),
        ("volatile,metacopy=on", "volatile"),
        ("userxattr", "userxattr"),
    ],
)
def test_options_that_are_refused(make_overlay: MakeOverlay, options: str, option: str) -> None:
    made = make_overlay({"lib": {"a": b"1"}}, options=options)
    found = look(made.mountpoint)
    assert option in found
    assert made.mountpoint.decode() in found[option].message


def test_xino_where_it_costs(make_overlay: MakeOverlay) -> None:
    # two file systems: without that the kernel ignores xino, and does not even show it
    made = make_overlay({"lib": {"a": b"1"}}, upper_fs="tmpfs", options="metacopy=on,xino=on")
    found = look(made.mountpoint)
    assert set(found) == {"xino"}
    assert "readdir" in found["xino"].message
    assert "xino=off" in found["xino"].remedy


def test_xino_where_all_layers_share_a_file_system(make_overlay: MakeOverlay) -> None:
    made = make_overlay({"lib": {"a": b"1"}}, options="metacopy=on,xino=on")
    assert look(made.mountpoint) == {}
    auto = replace(described(), xino="auto")
    assert is_fit(marking_findings(auto, replace(GOOD_FACTS, one_file_system=True)))
    assert not is_fit(marking_findings(auto, replace(GOOD_FACTS, one_file_system=None)))


def test_no_upper_layer(make_overlay: MakeOverlay) -> None:
    made = make_overlay([{"a": b"1"}, {"b": b"2"}], mount=False)
    syscalls.mount(b"o", made.mountpoint, b"overlay", 0, b"lowerdir=" + b":".join(made.layers))
    assert "upperdir" in look(made.mountpoint)


@pytest.mark.parametrize("options", ["remount,ro", "remount,bind,ro"])
def test_read_only(make_overlay: MakeOverlay, options: str) -> None:
    made = make_overlay({})
    subprocess.run(["mount", "-o", options, made.mountpoint], check=True)
    found = look(made.mountpoint)
    assert set(found) == {"ro"}
    subprocess.run(found["ro"].remedy, check=True, shell=True)  # noqa: S602 - the way out is a command
    assert look(made.mountpoint) == {}


def test_relative_layer_paths(make_overlay: MakeOverlay, monkeypatch: pytest.MonkeyPatch) -> None:
    made = make_overlay({"a": b"1"}, mount=False)
    monkeypatch.chdir(os.fsdecode(made.base))
    syscalls.mount(
        b"o", made.mountpoint, b"overlay", 0, b"lowerdir=lower0,upperdir=dir/upper,workdir=dir/work,metacopy=on"
    )
    found = look(made.mountpoint)
    assert {"lowerdir", "upperdir", "workdir"} <= set(found)
    assert "lower0" in found["lowerdir"].message
    assert "absolute" in found["lowerdir"].remedy


def test_a_second_overlay_on_the_same_upper(make_overlay: MakeOverlay, tmp_path: Path) -> None:
    made = make_overlay({"a": b"1"})
    data = b"lowerdir=%s,upperdir=%s,workdir=%s" % (made.layers[0], made.upper, made.work)
    syscalls.mount(b"second", bytes(tmp_path), b"overlay", 0, data)
    try:
        found = look(made.mountpoint)
    finally:
        unmount(bytes(tmp_path))
    assert set(found) == {"upperdir"}
    assert str(tmp_path) in found["upperdir"].message
    assert look(made.mountpoint) == {}


def test_the_same_overlay_in_a_second_place_is_no_second_user(make_overlay: MakeOverlay, tmp_path: Path) -> None:
    made = make_overlay({})
    syscalls.mount(made.mountpoint, bytes(tmp_path), b"", syscalls.MS_BIND)
    try:
        assert look(made.mountpoint) == {}
    finally:
        unmount(bytes(tmp_path))


def test_a_project_quota_that_makes_link_fail(make_overlay: MakeOverlay) -> None:
    need("chattr")
    made = make_overlay({"lib": {"a": b"1"}}, upper_fs="xfs", mount=False)
    subprocess.run(["chattr", "-p", "5", "+P", made.upper], check=True)
    made.mount()
    os.mkdir(made.at("scratch"))
    with pytest.raises(OSError, match="cross-device"):
        os.link(made.at("lib/a"), made.at("scratch/a"))
    found = look(made.mountpoint)
    assert set(found) == {"project quota"}
    assert "project id 5" in found["project quota"].message

    made.umount()
    command = found["project quota"].remedy.removeprefix("unmount the overlay, then ")
    subprocess.run(command, check=True, shell=True)  # noqa: S602 - the way out is a command
    made.mount()
    assert look(made.mountpoint) == {}
    os.link(made.at("lib/a"), made.at("scratch/a"))


def test_one_project_for_upper_and_work_is_fit(make_overlay: MakeOverlay) -> None:
    need("chattr")
    made = make_overlay({"lib": {"a": b"1"}}, upper_fs="xfs", mount=False)
    subprocess.run(["chattr", "-p", "5", "+P", made.upper, made.work], check=True)
    made.mount()
    assert look(made.mountpoint) == {}


def test_btrfs_is_fit_with_a_warning(make_overlay: MakeOverlay) -> None:
    made = make_overlay({"lib": {"a": b"1"}}, upper_fs="btrfs")
    overlay = overlay_at(made.mountpoint)
    findings = marking_findings(overlay, probe.gather(overlay))
    assert is_fit(findings)
    assert [finding.message for finding in findings if finding.severity is Severity.WARN and "btrfs" in finding.message]


def test_data_only_layers_are_a_warning(make_overlay: MakeOverlay) -> None:
    made = make_overlay({"lib": {"a": b"1"}}, data_lowers=[{"b": b"2"}])
    overlay = overlay_at(made.mountpoint)
    facts = probe.gather(overlay)
    facts = replace(facts, host=replace(facts.host, hidden_processes=0))  # what else runs here is another matter
    findings = marking_findings(overlay, facts)
    assert is_fit(findings)
    assert [finding.option for finding in findings if finding.severity is Severity.WARN] == ["lowerdir"]


class TestLayers:
    def test_a_layer_that_is_not_what_its_path_shows(self) -> None:
        facts = replace(GOOD_FACTS, misplaced=(Misplaced(b"/l", "its path cannot be read"),))
        found = refusals(marking_findings(described(), facts))
        assert "/l" in found["lowerdir"].message
        facts = replace(GOOD_FACTS, misplaced=(Misplaced(b"/u", "other times"),))
        assert set(refusals(marking_findings(described(), facts))) == {"upperdir"}

    def test_a_layer_that_does_not_answer(self) -> None:
        found = refusals(marking_findings(described(), replace(GOOD_FACTS, unanswered=(b"/l",))))
        assert "does not answer" in found["lowerdir"].message

    def test_an_upper_file_system_without_trusted_attributes(self) -> None:
        facts = replace(GOOD_FACTS, upper_trusted_xattrs=False, upper_fstype="vfat")
        found = refusals(marking_findings(described(), facts))
        assert "vfat" in found["upperdir"].message

    def test_an_odd_path_is_printable(self) -> None:
        overlay = replace(described(b"metacopy=off"), mountpoint=b"/a\n\xff")
        for finding in marking_findings(overlay, GOOD_FACTS):
            assert finding.message.isprintable()


@pytest.mark.parametrize(
    ("directory", "source", "clash"),
    [
        (Project(0, inherited=False), Project(0, inherited=False), False),
        (Project(5, inherited=True), Project(5, inherited=True), False),
        (Project(5, inherited=True), Project(0, inherited=False), True),
        (Project(5, inherited=True), Project(5, inherited=False), True),
        (Project(5, inherited=True), Project(6, inherited=True), True),
        (Project(0, inherited=True), Project(7, inherited=False), False),
        (Project(5, inherited=False), Project(6, inherited=True), False),
    ],
)
def test_projects_that_take_no_links_of_each_other(directory: Project, source: Project, clash: bool) -> None:
    assert directory.clashes_with(source) is clash


def test_finalize_needs_a_patched_kernel() -> None:
    found = refusals(finalize_findings(described(), GOOD_FACTS))
    assert set(found) == {"kernel"}
    assert "never merged" in found["kernel"].message
    patched = replace(GOOD_FACTS, host=replace(GOOD_HOST, trial=replace(GOOD_TRIAL, finalizes=True)))
    assert is_fit(finalize_findings(described(), patched))
    assert not is_fit(finalize_findings(described(b"metacopy=off"), patched))


def test_refusals_come_first() -> None:
    findings = marking_findings(described(b"metacopy=off"), replace(GOOD_FACTS, upper_fstype="btrfs"))
    order = [finding.severity for finding in findings]
    assert order == sorted(order, key=list(Severity).index)
    assert order[0] is Severity.REFUSE
