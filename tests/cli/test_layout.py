"""``promoterd layout`` as users run it."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from promoterd.cli.entry import execute
from promoterd.overlay.mountinfo import MountEntry
from support.commands import promoterd
from support.overlays import MountedOverlay

ARGUMENTS = ("layout", "--lower", "nas1:/export/soft", "--mountpoint", "/srv/promoterd-test")


def test_units_are_printed_with_their_files() -> None:
    ran = promoterd(*ARGUMENTS)
    assert ran.code == 0
    assert ran.out.count("\n[Mount]\n") == 3
    assert "# /etc/systemd/system/srv-promoterd\\x2dtest.mount\n" in ran.out
    assert "# Once, when the server is mounted" in ran.out
    assert ran.err == ""


def test_lines_and_commands_are_printed() -> None:
    lines = promoterd(*ARGUMENTS, "--format", "fstab").out.splitlines()
    assert [line.split()[2] for line in lines if not line.startswith("#")] == ["nfs", "nfs", "overlay"]
    commands = promoterd(*ARGUMENTS, "--format", "commands").out.splitlines()
    assert commands[0].startswith("mkdir -p ")
    assert commands[-1].startswith("mount -t overlay overlay -o ")


def test_for_programs() -> None:
    found = promoterd(*ARGUMENTS, "--nfs-options", "vers=3,soft", "--json").json
    assert found["lower"] == [
        {
            "export": "nas1:/export/soft",
            "mountpoint": "/mnt/promoterd/srv-promoterd--test/lower",
            "data_mountpoint": "/mnt/promoterd/srv-promoterd--test/data",
        }
    ]
    assert found["layer"] == "/var/lib/promoterd/mounts/srv-promoterd--test/layer"
    assert found["nfs_options"] == "vers=3,soft"
    assert len(found["units"]) == 3
    assert len(found["once"]) == 2
    assert found["warnings"] == []
    assert len(promoterd(*ARGUMENTS, "--format", "fstab", "--json").json["fstab"]) == 3


def test_writing_below_another_root(tmp_path: Path) -> None:
    ran = promoterd(*ARGUMENTS, "--write", "--root", str(tmp_path))
    assert ran.code == 0, ran.err
    assert f"wrote: {tmp_path}/etc/systemd/system/srv-promoterd\\x2dtest.mount" in ran.out
    assert "Next:\n  systemctl daemon-reload\n" in ran.out
    again = promoterd(*ARGUMENTS, "--write", "--root", str(tmp_path), "--json").json
    assert len(again["installed"]["unchanged"]) == 3
    assert again["installed"]["written"] == again["installed"]["made"] == []
    other = promoterd(*ARGUMENTS, "--write", "--root", str(tmp_path), "--nfs-options", "soft")
    assert other.code == 6
    assert "--force" in other.hint
    forced = (*ARGUMENTS, "--write", "--root", str(tmp_path), "--nfs-options", "soft", "--force")
    assert promoterd(*forced).code == 0
    lines = promoterd(*ARGUMENTS, "--write", "--root", str(tmp_path), "--format", "fstab")
    assert lines.code == 0
    assert "nas1:/export/soft" in (tmp_path / "etc" / "fstab").read_text()


@pytest.mark.parametrize(
    ("arguments", "said", "way_out"),
    [
        (["--lower", "/export"], "--lower /export is a path", "SERVER:/PATH"),
        (["--lower", "nas1"], "is not SERVER:/PATH", "--lower nas1:/export/software"),
        (["--format", "yaml"], "--format", "promoterd layout --help"),
        (["--force"], "--force goes with --write", "--write"),
        (["--root", "/srv"], "--root goes with --write", "--write"),
        (["--write", "--format", "commands"], "installs nothing as commands", "bash -e"),
        (["--write", "--root", "/no/such/root"], "/no/such/root is no directory", "make it first"),
        (["--state", "relative"], "not an absolute path", "slash"),
        (["--state", os.fsdecode(b"/\xff")], "UTF-8", "--format commands"),
    ],
)
def test_what_cannot_be_says_a_way_out(arguments: list[str], said: str, way_out: str) -> None:
    ran = promoterd(*ARGUMENTS, *arguments)
    assert ran.code == 2
    assert said in ran.err
    assert way_out in ran.hint
    error = json.loads(promoterd(*ARGUMENTS, *arguments, "--json").out)["error"]
    assert error["exit_code"] == 2


def test_a_path_on_nfs_is_answered_with_its_export(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = MountEntry(1, 0, (8, 1), b"/", b"/", (), "ext4", b"/dev/sda", b"")
    share = MountEntry(2, 1, (0, 41), b"/", b"/mnt/software", (), "nfs4", b"nas1:/export", b"")
    monkeypatch.setattr("promoterd.overlay.mountinfo.read", lambda: [root, share])
    assert execute(["layout", "--lower", "/mnt/software/", "--mountpoint", "/srv/soft"]) == 2
    assert "say --lower nas1:/export, and --lower-mountpoint /mnt/software" in capsys.readouterr().err


def test_what_is_needed_is_said() -> None:
    ran = promoterd("layout", "--lower", "nas1:/x")
    assert ran.code == 2
    assert "--mountpoint" in ran.err


@pytest.mark.needs("root")
def test_layers_on_another_file_system_are_refused() -> None:
    ran = promoterd(*ARGUMENTS, "--state", "/proc/promoterd")
    assert ran.code == 6
    assert "trusted" in ran.err
    assert "--state" in ran.hint


def test_a_mount_that_is_there_is_a_warning(make_overlay: Callable[..., MountedOverlay]) -> None:
    mounted = make_overlay({})
    place = ("--mountpoint", os.fsdecode(mounted.mountpoint), "--state", os.fsdecode(mounted.base + b"/state"))
    mounts = ("--lower-mountpoint", "/mnt/promoterd-a", "--data-mountpoint", "/mnt/promoterd-b")
    ran = promoterd("layout", "--lower", "nas1:/x", *place, *mounts)
    assert ran.code == 0, ran.err
    assert ran.err.startswith("warning: ")
    assert "unmount that" in ran.err


@pytest.mark.needs("root", "overlay")
def test_a_check_that_fails_writes_nothing(tmp_path: Path) -> None:
    ran = promoterd(
        *("layout", "--lower", "127.0.0.1:/none", "--mountpoint", "/srv/promoterd-test"),
        *("--check", "--write", "--root", str(tmp_path)),
    )
    assert ran.code == 6
    assert "127.0.0.1:/none" in ran.err
    assert os.listdir(tmp_path) == []


def test_a_check_needs_privileges() -> None:
    ran = promoterd(*ARGUMENTS, "--check", nobody=True)
    assert ran.code == 7
