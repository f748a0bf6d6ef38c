"""The counting file system: exact counts, a faithful view, and failures on demand."""

import errno
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from promoterd.demo.lower import CountingLower
from promoterd.errors import DemoFailed
from promoterd.overlay import syscalls
from support import leftovers
from support.trees import ODD_NAMES, Device, Fifo, File, Hardlink, Symlink, Tree, build, files, odd_files

pytestmark = pytest.mark.needs("root", "fuse")

TREE: Tree = {
    "dir": {"a": b"alpha", "b": b"beta", "sub": {"deep": b"x" * 300_000}},
    "link": Symlink("dir/a"),
    "dangling": Symlink("/nonexistent/x"),
    "fifo": Fifo(),
    "null": Device(major=1, minor=3),
    "tool": File(b"#!", mode=0o4755, uid=12, gid=34),
    "twin": Hardlink("dir/a"),
    "odd": odd_files(),
}


@pytest.fixture
def lower(tmp_path: Path) -> Iterator[CountingLower]:
    build(str(tmp_path / "source"), TREE)
    (tmp_path / "mnt").mkdir()
    with CountingLower(str(tmp_path / "source"), str(tmp_path / "mnt"), xattrs=True) as started:
        yield started


def counted(lower: CountingLower, *but: str) -> dict[str, int]:
    """What was asked, without GETATTR, which the kernel adds to check permission on the way."""
    return {kind: count for kind, count in lower.counts().items() if count and kind not in ("GETATTR", *but)}


def both(lower: CountingLower, path: str | bytes) -> tuple[bytes, bytes]:
    name = b"/" + os.fsencode(path)
    return os.fsencode(lower.source) + name, os.fsencode(lower.mountpoint) + name


def test_each_request_is_counted_once_under_its_kind(lower: CountingLower) -> None:
    root = lower.mountpoint
    lower.reset()
    os.stat(f"{root}/dir/a")
    assert counted(lower) == {"LOOKUP": 2}

    lower.reset()
    for number in range(50):
        with pytest.raises(FileNotFoundError):
            os.stat(f"{root}/dir/missing{number}")
    assert counted(lower) == {"LOOKUP": 50, "LOOKUP_NEGATIVE": 50}

    lower.reset()
    with open(f"{root}/dir/b", "rb") as file:
        assert file.read() == b"beta"
    assert counted(lower) == {"LOOKUP": 2, "OPEN": 1, "READ": 1}

    lower.reset()
    assert sorted(os.listdir(f"{root}/dir")) == ["a", "b", "sub"]
    assert counted(lower) == {"LOOKUP": 1, "OPENDIR": 1, "READDIR": 2}

    lower.reset()
    assert os.readlink(f"{root}/dangling") == "/nonexistent/x"
    assert counted(lower) == {"LOOKUP": 1, "READLINK": 1}

    lower.reset()
    os.statvfs(f"{root}/dir")
    assert counted(lower) == {"LOOKUP": 1, "STATFS": 1}
    assert lower.total() == 2 + lower.counts()["GETATTR"]


def test_timeouts_let_the_kernel_answer_by_itself(tmp_path: Path) -> None:
    build(str(tmp_path / "source"), TREE)
    (tmp_path / "mnt").mkdir()
    source, mountpoint = str(tmp_path / "source"), str(tmp_path / "mnt")
    with CountingLower(source, mountpoint, entry_timeout=60, attr_timeout=60, negative_timeout=60) as lower:
        for _ in range(20):
            os.stat(f"{mountpoint}/dir/a")
            assert not os.path.exists(f"{mountpoint}/dir/missing")
        assert counted(lower) == {"LOOKUP": 2, "LOOKUP_NEGATIVE": 1}


def test_the_view_is_the_source(lower: CountingLower) -> None:
    for path in ["dir", "dir/a", "dir/sub/deep", "link", "dangling", "fifo", "null", "tool", "twin"] + [
        b"odd/" + name for name in ODD_NAMES
    ]:
        real, seen = map(os.lstat, both(lower, path))
        for field in (
            "ino",
            "mode",
            "nlink",
            "uid",
            "gid",
            "rdev",
            "size",
            "blocks",
            "atime_ns",
            "mtime_ns",
            "ctime_ns",
        ):
            assert getattr(seen, f"st_{field}") == getattr(real, f"st_{field}"), (path, field)
    deep, read = map(os.fsdecode, both(lower, "dir/sub/deep"))
    assert Path(read).read_bytes() == Path(deep).read_bytes()
    assert os.stat(lower.mountpoint).st_ino == os.stat(lower.source).st_ino
    assert stat.S_IMODE(os.stat(f"{lower.mountpoint}/tool").st_mode) == 0o4755


def test_a_listing_has_every_name_once_with_its_type_and_number(lower: CountingLower) -> None:
    build(f"{lower.source}/big", files(3000))
    for path in ("", "odd", "big"):
        real, seen = both(lower, path)
        listed = [(entry.name, entry.inode(), entry.is_dir(), entry.is_symlink()) for entry in _scan(seen)]
        expected = [(entry.name, entry.inode(), entry.is_dir(), entry.is_symlink()) for entry in _scan(real)]
        assert sorted(listed) == sorted(expected)
    command = subprocess.run(["ls", "-a", f"{lower.mountpoint}/dir"], capture_output=True, check=True, text=True)
    assert command.stdout.split() == [".", "..", "a", "b", "sub"]


def _scan(path: bytes) -> "list[os.DirEntry[bytes]]":
    with os.scandir(path) as entries:
        return list(entries)


def test_odd_names_are_found_and_read(lower: CountingLower) -> None:
    for name in ODD_NAMES:
        with open(both(lower, b"odd/" + name)[1], "rb") as file:
            assert file.read() == b"content of " + name
    assert not os.path.lexists(both(lower, b"odd/\xff\xfd")[1])


def test_attributes_are_passed_through_or_not_known(tmp_path: Path) -> None:
    build(str(tmp_path / "source"), {"f": File(b"", xattrs={"user.colour": b"gr\xfcn", "security.capability": _CAP})})
    subprocess.run(["setfacl", "-m", "u:1234:r", tmp_path / "source/f"], check=True)
    (tmp_path / "mnt").mkdir()
    source, mountpoint = str(tmp_path / "source"), str(tmp_path / "mnt")
    with CountingLower(source, mountpoint, xattrs=True) as lower:
        seen = f"{mountpoint}/f"
        names = {"user.colour", "security.capability", "system.posix_acl_access"}
        assert names <= set(os.listxattr(seen)) == set(os.listxattr(f"{source}/f"))
        lower.reset()
        for name in names:
            assert os.getxattr(seen, name) == os.getxattr(f"{source}/f", name)
        assert lower.counts()["GETXATTR"] > 0
        with pytest.raises(OSError, match="No data") as absent:
            os.getxattr(seen, "user.absent")
        assert absent.value.errno == errno.ENODATA
        assert (
            "user:1234:r--"
            in subprocess.run(["getfacl", "-pn", seen], capture_output=True, text=True, check=True).stdout
        )
    with CountingLower(source, mountpoint) as lower:
        for _ in range(3):
            with pytest.raises(OSError, match="not supported"):
                os.getxattr(seen, "user.colour")
        assert lower.counts()["GETXATTR"] == 1  # the kernel does not ask again after ENOSYS


_CAP = bytes.fromhex("0100000200200000000000000000000000000000")  # VFS_CAP_REVISION_2, cap_net_raw+ep


def test_nothing_can_be_written(lower: CountingLower) -> None:
    existing, new = f"{lower.mountpoint}/dir/a", f"{lower.mountpoint}/new"
    attempts: list[Callable[[], object]] = [
        lambda: os.unlink(existing),
        lambda: os.mkdir(new),
        lambda: os.utime(existing),
        lambda: os.open(existing, os.O_WRONLY),
    ]
    for attempt in attempts:
        with pytest.raises(OSError, match="Read-only") as refused:
            attempt()
        assert refused.value.errno == errno.EROFS


def test_changes_of_the_source_show_at_once(lower: CountingLower) -> None:
    real, seen = (os.fsdecode(path) for path in both(lower, "dir"))
    os.stat(f"{seen}/a")
    Path(f"{real}/a").unlink()
    Path(f"{real}/new").write_bytes(b"1")
    assert not os.path.exists(f"{seen}/a")
    assert Path(f"{seen}/new").read_bytes() == b"1"
    Path(f"{real}/new").write_bytes(b"longer than before")
    assert Path(f"{seen}/new").read_bytes() == b"longer than before"
    for turn in range(50):  # the source's file system gives a freed inode number out again at once
        Path(f"{real}/turn{turn}").write_bytes(b"%d" % turn)
        assert Path(f"{seen}/turn{turn}").read_bytes() == b"%d" % turn
        Path(f"{real}/turn{turn}").unlink()


def test_what_the_kernel_forgets_is_let_go(lower: CountingLower) -> None:
    build(f"{lower.source}/many", files(2000))
    descriptors = f"/proc/{lower.pid}/fd"
    idle = len(os.listdir(descriptors))
    for turn in range(3):
        for number in range(2000):
            os.stat(f"{lower.mountpoint}/many/f{number:04}")
        os.listdir(f"{lower.mountpoint}/many")
        held = len(os.listdir(descriptors))
        assert 2000 <= held - idle <= 2010, turn
    root = os.open(lower.mountpoint, os.O_RDONLY)
    syscalls.reconfigure_superblock(root)
    os.close(root)
    deadline = time.monotonic() + 5
    while len(os.listdir(descriptors)) > idle + 5 and time.monotonic() < deadline:
        time.sleep(0.02)
    assert len(os.listdir(descriptors)) <= idle + 5
    assert os.stat(f"{lower.mountpoint}/many/f0001").st_size == len(b"content of 0001\n")


def test_latency_holds_every_request_but_not_one_for_another(lower: CountingLower) -> None:
    for number in range(8):
        os.mkdir(f"{lower.source}/d{number}")
    lower.set_latency(20_000)
    lower.reset()
    begin = time.monotonic()
    with pytest.raises(FileNotFoundError):
        os.stat(f"{lower.mountpoint}/missing")
    alone = time.monotonic() - begin
    assert alone >= 0.02 * lower.total()
    threads = [
        threading.Thread(target=os.path.exists, args=(f"{lower.mountpoint}/d{number}/missing",)) for number in range(8)
    ]
    lower.reset()
    begin = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert time.monotonic() - begin < 0.02 * lower.total() * 0.7
    lower.set_latency(0)


def test_it_hangs_until_it_is_told_to_answer(lower: CountingLower) -> None:
    lower.hang(True)
    done = threading.Event()
    sizes: list[int] = []

    def ask() -> None:
        sizes.append(os.stat(f"{lower.mountpoint}/dir/a").st_size)
        done.set()

    lower.reset()
    thread = threading.Thread(target=ask)
    thread.start()
    assert not done.wait(0.2)
    assert lower.total() == 1
    lower.hang(False)
    assert done.wait(5)
    thread.join()
    assert sizes == [5]


def test_it_fails_every_request_with_the_error_that_is_set(lower: CountingLower) -> None:
    lower.fail(errno.ESTALE)
    for attempt in (os.stat, os.listdir):
        with pytest.raises(OSError, match="Stale") as failed:
            attempt(f"{lower.mountpoint}/dir")
        assert failed.value.errno == errno.ESTALE
    lower.fail(0)
    assert os.stat(f"{lower.mountpoint}/dir/a").st_size == 5


def test_it_stops_while_requests_hang(lower: CountingLower) -> None:
    errors: list[int | None] = []

    def ask() -> None:
        try:
            os.stat(f"{lower.mountpoint}/dir/a")
        except OSError as error:
            errors.append(error.errno)

    lower.hang(True)
    thread = threading.Thread(target=ask)
    thread.start()
    time.sleep(0.1)
    begin = time.monotonic()
    assert lower.pid is not None
    os.kill(lower.pid, signal.SIGTERM)
    thread.join(5)
    assert not thread.is_alive()
    lower.stop()
    assert time.monotonic() - begin < 3
    assert leftovers.mounts_below(lower.mountpoint) == []


def test_a_signal_ends_it_cleanly(lower: CountingLower) -> None:
    assert os.path.ismount(lower.mountpoint)
    assert lower.pid is not None
    os.kill(lower.pid, signal.SIGTERM)
    deadline = time.monotonic() + 5
    while os.path.ismount(lower.mountpoint) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not os.path.ismount(lower.mountpoint)
    assert lower._process is not None
    assert lower._process.wait(5) == 0


def test_it_can_be_started_again(lower: CountingLower) -> None:
    lower.stop()
    assert os.listdir(lower.mountpoint) == []
    lower.start()
    assert lower.total() <= 2
    assert "dir" in os.listdir(lower.mountpoint)


def test_it_does_not_outlive_its_parent(tmp_path: Path) -> None:
    (tmp_path / "mnt").mkdir()
    script = (
        "import os, sys; from promoterd.demo.lower import CountingLower\n"
        "lower = CountingLower(sys.argv[1], sys.argv[2]); lower.start()\n"
        "print(lower.pid, flush=True); os.kill(os.getpid(), 9)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path), str(tmp_path / "mnt")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == -signal.SIGKILL
    pid = int(ran.stdout)
    deadline = time.monotonic() + 5
    while os.path.ismount(tmp_path / "mnt") and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not os.path.ismount(tmp_path / "mnt")
    os.waitpid(pid, 0)  # ours by adoption


@pytest.mark.parametrize("what", ["source", "mountpoint"])
def test_what_cannot_work_is_one_clear_line(tmp_path: Path, what: str) -> None:
    places = {"source": str(tmp_path), "mountpoint": str(tmp_path), what: str(tmp_path / "absent")}
    with pytest.raises(DemoFailed) as failed:
        CountingLower(places["source"], places["mountpoint"]).start()
    assert failed.value.message.startswith("countfs: ")
    assert "Traceback" not in failed.value.message


def test_without_pyfuse3_it_says_what_to_install(tmp_path: Path) -> None:
    code = "import sys; sys.modules['pyfuse3'] = None; from promoterd.demo import countfs; sys.exit(countfs.main())"
    ran = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path), str(tmp_path), "--counters=x"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 1
    assert ran.stderr.count("\n") == 1
    assert "promoterd[demo]" in ran.stderr


def test_requests_are_logged_by_path(tmp_path: Path) -> None:
    build(str(tmp_path / "source"), TREE)
    (tmp_path / "mnt").mkdir()
    with CountingLower(str(tmp_path / "source"), str(tmp_path / "mnt"), log=str(tmp_path / "log")) as lower:
        assert not os.path.exists(os.fsencode(lower.mountpoint) + b"/dir/\xff\n")
    assert f"LOOKUP_NEGATIVE {tmp_path}/source/dir/\\xff\\n\n" in (tmp_path / "log").read_text()
