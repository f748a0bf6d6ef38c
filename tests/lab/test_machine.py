"""A guest that dies, hangs or does not say how its job ended is a failure, and its console is shown.

A script stands in for QEMU, since what is tested is what happens around it; `make lab` boots the real one.
"""

import os
import tarfile
import time
from pathlib import Path

import pytest

from lab.errors import GuestFailed, LabError
from lab.machine import BY_INSTRUCTIONS, Disk, Machine


def machine(tmp_path: Path, script: str, **options: object) -> Machine:
    """One whose QEMU does this; ``$out`` is the disk for the results."""
    qemu = tmp_path / "qemu"
    find = "for argument; do case $argument in file=*out.img,*) out=${argument#file=}; out=${out%%,*};; esac; done"
    qemu.write_text(f"#!/bin/sh\n{find}\n{script}\n")
    qemu.chmod(0o755)
    archive = tmp_path / "archive"
    archive.write_bytes(b"archive")
    return Machine("kernel", [str(archive)], [], str(tmp_path / "console.log"), qemu=str(qemu), **options)  # type: ignore[arg-type]


def leave(tmp_path: Path, **files: str) -> str:
    """The script's way to leave these files on the disk."""
    home = tmp_path / "left"
    home.mkdir()
    for name, content in files.items():
        (home / name).write_text(content)
    with tarfile.open(tmp_path / "left.tar", "w") as archive:
        archive.add(home, ".")
    return f'cat {tmp_path}/left.tar >"$out"; sync'


def test_what_it_leaves_is_unpacked(tmp_path: Path) -> None:
    heard: list[str] = []
    good = machine(tmp_path, "echo booting; " + leave(tmp_path, status="0\n", results="42"), said=heard.append)
    results = tmp_path / "results"
    (results / "stale").mkdir(parents=True)
    good.run(str(results), 10)
    assert (results / "results").read_text() == "42"
    assert sorted(os.listdir(results)) == ["results", "status"], "nothing of an earlier run"
    assert heard == ["booting"]


@pytest.mark.parametrize("instructions", [False, True])
def test_whose_clock_it_has(tmp_path: Path, *, instructions: bool) -> None:
    heard: list[str] = []
    script = 'echo "$*"; ' + leave(tmp_path, status="0\n")
    machine(tmp_path, script, said=heard.append, instructions=instructions).run(str(tmp_path / "results"), 10)
    for told in ("-icount shift=", BY_INSTRUCTIONS):
        assert (told in heard[0]) is instructions


@pytest.mark.parametrize(
    ("script", "why"),
    [
        ("echo Kernel panic; exit 1", r"died before its job ended \(QEMU exited with 1\)"),
        ("echo halted", "died before its job ended"),
        ("echo waiting; exec sleep 200", "hung: it was not done after 2 s"),
    ],
    ids=["panic", "no status", "hang"],
)
def test_a_guest_that_does_not_end_well(tmp_path: Path, script: str, why: str) -> None:
    begun = time.monotonic()
    with pytest.raises(GuestFailed, match=why) as failure:
        machine(tmp_path, script).run(str(tmp_path / "results"), 2)
    assert time.monotonic() - begun < 50
    assert f"  | {script.split()[1].rstrip(';')}" in str(failure.value), "its console is shown"
    assert (tmp_path / "console.log").read_text()


def test_a_job_that_fails_leaves_what_it_had(tmp_path: Path) -> None:
    script = "echo ERROR: no; " + leave(tmp_path, status="3\n", results="half")
    with pytest.raises(GuestFailed, match=r"failed with status 3[\s\S]*ERROR: no"):
        machine(tmp_path, script).run(str(tmp_path / "results"), 10)
    assert (tmp_path / "results" / "results").read_text() == "half"


def test_no_qemu_is_said_with_what_to_install(tmp_path: Path) -> None:
    absent = Machine("kernel", [], [], str(tmp_path / "console.log"), qemu="qemu-system-nowhere")
    with pytest.raises(LabError, match="apt-get install qemu-system-x86"):
        absent.run(str(tmp_path / "results"), 1)


def test_disks_are_kept_only_if_asked(tmp_path: Path) -> None:
    script = 'echo "$@"; ' + leave(tmp_path, status="0")
    disks = [Disk("/nowhere/share.img"), Disk("/nowhere/upper.img", keep=True)]
    archive = tmp_path / "archive"
    once = machine(tmp_path, script)
    told: list[str] = []
    Machine("kernel", [str(archive)], disks, once.console, qemu=once.qemu, said=told.append).run(
        str(tmp_path / "r"), 10
    )
    assert "file=/nowhere/share.img,format=raw,if=none,id=d1,cache=unsafe,snapshot=on" in told[0]
    assert "file=/nowhere/upper.img,format=raw,if=none,id=d2,cache=unsafe -device" in told[0]
    assert "-netdev" not in told[0]
    assert "-smp 1" in told[0]
