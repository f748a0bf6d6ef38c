"""How large the inodes of the upper file system are, on file systems that mkfs.ext4 made."""

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from promoterd.overlay import ext4, probe
from promoterd.overlay.fitness import Finding, Severity, is_fit, marking_findings
from promoterd.overlay.mountinfo import MountEntry, read
from promoterd.overlay.mounts import overlay_at
from support.overlays import MountedOverlay, unmount

pytestmark = pytest.mark.needs("root", "loop", "mkfs.ext4")

MakeOverlay = Callable[..., MountedOverlay]


@contextmanager
def mounted(base: Path, inode_size: int) -> Iterator[bytes]:
    image, mountpoint = base / "image", base / "ext4"
    mountpoint.mkdir()
    with open(image, "wb") as file:
        file.truncate(64 * 1024 * 1024)
    subprocess.run(["mkfs.ext4", "-q", "-F", "-I", str(inode_size), image], check=True)
    subprocess.run(["mount", "-t", "ext4", "-o", "loop", image, mountpoint], check=True)
    try:
        yield bytes(mountpoint)
    finally:
        unmount(bytes(mountpoint))


@contextmanager
def looped(image: Path) -> Iterator[str]:
    found = subprocess.run(["losetup", "-f", "--show", image], check=True, capture_output=True, text=True)
    device = found.stdout.strip()
    try:
        yield device
    finally:
        subprocess.run(["losetup", "-d", device], check=True)


def entry_at(mountpoint: bytes) -> MountEntry:
    return next(entry for entry in read() if entry.mountpoint == mountpoint)


def about_inodes(overlay: MountedOverlay) -> list[Finding]:
    seen = overlay_at(overlay.mountpoint)
    findings = marking_findings(seen, probe.gather(seen))
    assert is_fit(findings)
    return [finding for finding in findings if "inodes" in finding.message]


@pytest.mark.parametrize("inode_size", [128, 256, 512, 1024])
def test_the_size_is_read_from_the_device(tmp_path: Path, inode_size: int) -> None:
    before = os.listdir("/proc/self/fd")
    with mounted(tmp_path, inode_size) as mountpoint:
        assert ext4.inode_size(entry_at(mountpoint)) == inode_size
        assert os.listdir("/proc/self/fd") == before


def test_what_is_not_known_for_sure_is_not_said(tmp_path: Path) -> None:
    with mounted(tmp_path, 256) as mountpoint:
        entry = entry_at(mountpoint)
        for other in (
            {"fstype": "ext3"},
            {"source": b"/dev/zero"},
            {"source": bytes(tmp_path / "image")},
            {"source": b"/dev/nowhere"},
            {"source": bytes(tmp_path)},
            {"device": (entry.device[0], entry.device[1] + 1)},
        ):
            assert ext4.inode_size(replace(entry, **other)) is None, other


def test_a_device_that_holds_no_ext4(tmp_path: Path) -> None:
    image = tmp_path / "image"
    with open(image, "wb") as file:
        file.truncate(1024 * 1024)
    with looped(image) as device:
        status = os.stat(device)
        numbers = os.major(status.st_rdev), os.minor(status.st_rdev)
        assert ext4.inode_size(MountEntry(1, 0, numbers, b"/", b"/", (), "ext4", os.fsencode(device), b"")) is None


def test_small_inodes_are_worth_knowing(make_overlay: MakeOverlay, tmp_path: Path) -> None:
    for inode_size, said in ((256, True), (512, False)):
        base = tmp_path / str(inode_size)
        base.mkdir()
        with mounted(base, inode_size) as home:
            overlay = make_overlay({"lib": {"a": b"1"}}, mount=False)
            overlay.upper, overlay.work = home + b"/upper", home + b"/work"
            os.mkdir(overlay.upper)
            os.mkdir(overlay.work)
            overlay.mount()
            try:
                found = about_inodes(overlay)
            finally:
                overlay.umount()
        assert len(found) == said
        for finding in found:
            assert finding.severity is Severity.INFO
            assert f"{os.fsdecode(overlay.upper)} is on ext4 with inodes of 256 bytes" in finding.message
            assert "mkfs.ext4 -I 512" in finding.remedy


def test_of_other_file_systems_nothing_is_said(make_overlay: MakeOverlay) -> None:
    assert about_inodes(make_overlay({}, upper_fs="tmpfs")) == []
