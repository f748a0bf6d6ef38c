"""The fixtures that every other test leans on."""

import os
import stat
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from support import leftovers, needs
from support.commands import promoterd
from support.overlays import MountedOverlay, UpperFs
from support.trees import OLD, Device, File, Hardlink, Symlink, build, files, odd_files

MakeOverlay = Callable[..., MountedOverlay]


@pytest.mark.needs("root")
def test_a_tree_is_built_as_written(tmp_path: Path) -> None:
    build(
        str(tmp_path / "t"),
        {"d": {"f": "text"}, "l": Symlink("d/f"), "h": Hardlink("d/f"), "w": Device(major=0, minor=0), **odd_files()},
    )
    assert (tmp_path / "t/d/f").read_text() == "text"
    assert (tmp_path / "t/h").samefile(tmp_path / "t/d/f")
    assert os.readlink(tmp_path / "t/l") == "d/f"
    assert os.lstat(tmp_path / "t/w").st_rdev == 0
    assert stat.S_ISCHR(os.lstat(tmp_path / "t/w").st_mode)
    for path in (tmp_path / "t").rglob("*"):
        assert os.lstat(path).st_mtime_ns == OLD


@pytest.mark.parametrize("kind", ["dir", "ext4", "xfs", "btrfs", "tmpfs"])
def test_the_upper_layer_can_be_any_file_system(make_overlay: MakeOverlay, kind: UpperFs) -> None:
    overlay = make_overlay({"a": files(3)}, upper_fs=kind)
    os.utime(overlay.at("a/f0000"), ns=(5, OLD))
    assert os.listdir(overlay.in_upper("a")) == [b"f0000"]
    named = subprocess.run(["stat", "-fc%T", overlay.upper], capture_output=True, text=True, check=True).stdout.strip()
    assert kind == "dir" or named == {"ext4": "ext2/ext3"}.get(kind, kind)


def test_layers_are_stacked_and_counted(make_overlay: MakeOverlay) -> None:
    overlay = make_overlay([{"a": {"top": b"1"}}, {"a": {"bottom": b"2", "odd": odd_files()}}], counting=True)
    assert sorted(os.listdir(overlay.at("a"))) == [b"bottom", b"odd", b"top"]
    overlay.cool()
    for lower in overlay.countings:
        lower.reset()
    assert not os.path.exists(overlay.at("a/missing"))
    assert [lower.counts()["LOOKUP_NEGATIVE"] for lower in overlay.countings] == [1, 1]
    # The kernel never revalidates a negative dentry of an overlay: the same miss is free until it is dropped.
    assert not os.path.exists(overlay.at("a/missing"))
    assert [lower.counts()["LOOKUP_NEGATIVE"] for lower in overlay.countings] == [1, 1]
    overlay.cool()
    assert not os.path.exists(overlay.at("a/missing"))
    assert [lower.counts()["LOOKUP_NEGATIVE"] for lower in overlay.countings] == [2, 2]


def test_an_overlay_on_a_counting_layer_copies_metadata_only(make_overlay: MakeOverlay) -> None:
    overlay = make_overlay({"a": {"f": File(b"x" * 100_000, xattrs={"user.k": b"v"})}}, counting=True)
    os.link(overlay.at("a/f"), overlay.at("g"))
    assert os.getxattr(overlay.in_upper("g"), "trusted.overlay.metacopy") == b""
    assert os.getxattr(overlay.in_upper("g"), "trusted.overlay.redirect") == b"/a/f"
    assert os.getxattr(overlay.at("a/f"), "user.k") == b"v"
    assert Path(os.fsdecode(overlay.at("g"))).read_bytes() == b"x" * 100_000


def test_remounting_keeps_what_upper_holds(make_overlay: MakeOverlay) -> None:
    overlay = make_overlay({"a": files(2)})
    os.unlink(overlay.at("a/f0000"))
    overlay.remount()
    assert os.listdir(overlay.at("a")) == [b"f0001"]
    Path(os.fsdecode(overlay.on_server("new"))).write_bytes(b"")
    assert os.path.exists(overlay.at("new"))


def test_a_busy_overlay_is_detached_in_the_end(make_overlay: MakeOverlay) -> None:
    overlay = make_overlay({"a": files(1)})
    held = os.open(overlay.at("a/f0000"), os.O_RDONLY)
    overlay.close()
    assert leftovers.mounts_below(os.fsdecode(overlay.base)) == []
    os.close(held)


_LEAVING = {
    "a mount": "from promoterd.overlay import syscalls\n    syscalls.mount(b't', bytes(tmp_path), b'tmpfs')",
    "a child": "import subprocess\n    subprocess.Popen(['sleep', '60']).returncode = 0",
    "a command": "import os\n    from support.forking import Forked\n    os.mkfifo(tmp_path / 'fifo')\n"
    "    Forked(['check', str(tmp_path / 'fifo')], stdout='/dev/null', stderr='/dev/null', env={})",
    "an orphan": "import subprocess\n    subprocess.run(['sh', '-c', 'sleep 60 >/dev/null 2>&1 &'], check=True)",
}


@pytest.mark.needs("root")
@pytest.mark.parametrize("what", _LEAVING)
def test_a_test_that_leaves_something_behind_fails(tmp_path: Path, what: str) -> None:
    (tmp_path / "test_it.py").write_text(f"def test_it(tmp_path):\n    {_LEAVING[what]}\n")
    ran = _pytest(tmp_path)
    assert ran.returncode == 1
    assert "left behind" in ran.stdout
    assert "1 passed, " in ran.stdout
    assert "1 error in " in ran.stdout
    assert leftovers.mounts_below(str(tmp_path)) == []


@pytest.mark.parametrize(("ci", "outcome"), [("", "1 skipped"), ("true", "1 error")])
def test_what_is_missing_skips_but_fails_in_ci(tmp_path: Path, ci: str, outcome: str) -> None:
    (tmp_path / "test_it.py").write_text(
        "import pytest\nfrom support import needs\nneeds._CHECKS['moon'] = lambda: 'no moon'\n"
        "@pytest.mark.needs('moon')\ndef test_it(): pass\n"
    )
    ran = _pytest(tmp_path, CI=ci)
    assert outcome in ran.stdout
    assert "no moon" in ran.stdout


def test_a_typing_error_in_a_need_is_no_skip() -> None:
    with pytest.raises(KeyError):
        needs.need("rooot")


def _pytest(where: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    tests = os.path.dirname(os.path.abspath(__file__))
    (where / "conftest.py").write_text(Path(tests, "conftest.py").read_text())
    options = ["-p", "no:cacheprovider", "-c", "/dev/null", f"--rootdir={where}", f"--basetemp={where}/base", "-rs"]
    return subprocess.run(
        [sys.executable, "-m", "pytest", *options, "-o", f"pythonpath={tests}", str(where)],
        cwd=where,
        env={**os.environ, "CI": "", **environment, "PYTHONPATH": os.path.dirname(tests)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    "arguments", [("--version",), ("check", "/no/such"), ("nonsense",), ("status", "--json", "--socket", "/no/such")]
)
def test_what_is_forked_cannot_be_told_from_what_is_started(arguments: Sequence[str], tmp_path: Path) -> None:
    assert promoterd(*arguments, cwd=str(tmp_path)) == promoterd(*arguments, cwd=str(tmp_path), env={"NOTHING": "else"})
