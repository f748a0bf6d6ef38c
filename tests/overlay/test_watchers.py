import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from promoterd.overlay import beneath, syscalls, watchers, xattrs
from support.overlays import MountedOverlay

# watches its arguments, says so, and answers every line with the number of events so far
WATCHER = """
import os, sys
sys.path[:0] = {path!r}
from promoterd.inotify import IN_CREATE, Inotify
with Inotify() as instance:
    for name in sys.argv[1:]:
        descriptor = os.open(name, os.O_PATH)
        instance.add(descriptor, IN_CREATE)
        os.close(descriptor)
    seen = 0
    print("ready", flush=True)
    for line in sys.stdin:
        seen += len(instance.read())
        print(seen, flush=True)
"""
FANOTIFY = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
instance = libc.fanotify_init(0, os.O_RDONLY)
for name in sys.argv[1:]:
    if libc.fanotify_mark(instance, 1, ctypes.c_ulonglong(0x20 | 0x40000000), -100, name.encode()):
        raise OSError(ctypes.get_errno(), "fanotify_mark")
print("ready", flush=True)
sys.stdin.read()
"""


class Other:
    """A process that watches."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self.pid = process.pid
        self._process = process

    def events(self) -> int:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())


@contextmanager
def watching(*paths: bytes | Path, script: str = WATCHER) -> Iterator[Other]:
    code = script.format(path=sys.path) if script is WATCHER else script
    with subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", code, *paths], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        try:
            yield Other(process)
        finally:
            assert process.stdin is not None
            process.stdin.close()
            process.wait(10)


@pytest.fixture
def overlay(make_overlay: Callable[..., MountedOverlay]) -> MountedOverlay:
    return make_overlay({"app": {"lib": {"a": "1", "b": "2"}, "doc": {"c": "3"}}})


def watched(overlay: MountedOverlay, *paths: bytes) -> dict[bytes, frozenset[int]]:
    root = beneath.open_root(overlay.mountpoint)
    try:
        return watchers.watched_by_others(root, paths)
    finally:
        os.close(root)


def complete(overlay: MountedOverlay, path: bytes) -> None:
    """Copy a directory of files up and mark it, as the opaque backend does."""
    scratch = overlay.at("scratch")
    os.mkdir(scratch)
    for name in os.listdir(overlay.at(path)):
        os.link(overlay.at(path + b"/" + name), scratch + b"/x")
        os.unlink(scratch + b"/x")
    os.rmdir(scratch)
    os.setxattr(overlay.in_upper(path), xattrs.OPAQUE, xattrs.OPAQUE_YES)


def test_a_directory_that_another_process_watches_is_found_with_its_pid(overlay: MountedOverlay) -> None:
    with watching(overlay.at("app/lib")) as other:
        assert watched(overlay, b"app", b"app/lib", b"app/doc") == {b"app/lib": frozenset({other.pid})}
    assert watched(overlay, b"app", b"app/lib", b"app/doc") == {}


def test_a_watch_stays_known_through_copy_up_and_goes_dead_with_the_mark(overlay: MountedOverlay) -> None:
    with watching(overlay.at("app/lib")) as other:
        lib = overlay.at("app/lib")
        os.utime(lib, (1, 2))
        os.utime(lib + b"/a", (1, 2))
        overlay.cool()
        assert watched(overlay, b"app/lib") == {b"app/lib": frozenset({other.pid})}
        os.mkdir(lib + b"/made")
        os.rmdir(lib + b"/made")
        assert other.events() == 1
        complete(overlay, b"app/lib")
        overlay.cool()
        os.mkdir(lib + b"/made")
        assert other.events() == 1  # this is what R11 is about: nobody told it
        assert watched(overlay, b"app/lib") == {}
    with watching(overlay.at("app/lib")) as other:
        assert watched(overlay, b"app/lib") == {b"app/lib": frozenset({other.pid})}


@pytest.mark.parametrize("options", ["metacopy=on,redirect_dir=on,xino=on", "metacopy=on,redirect_dir=on,xino=auto"])
@pytest.mark.parametrize("upper_fs", ["dir", "tmpfs"])
def test_inode_numbers_do_not_matter(make_overlay: Callable[..., MountedOverlay], options: str, upper_fs: str) -> None:
    overlay = make_overlay({"lib": {"a": "1"}, "doc": {}}, options=options, upper_fs=upper_fs)
    with watching(overlay.at("lib")) as other:
        os.utime(overlay.at("lib"), (1, 2))
        overlay.cool()
        assert watched(overlay, b"lib", b"doc") == {b"lib": frozenset({other.pid})}


def test_a_watch_on_a_layer_is_no_watch_on_the_overlay(overlay: MountedOverlay) -> None:
    with watching(overlay.on_server("app/lib")):
        assert watched(overlay, b"app/lib") == {}


def test_fanotify_marks_count_too(overlay: MountedOverlay) -> None:
    with watching(overlay.at("app/doc"), script=FANOTIFY) as other:
        assert watched(overlay, b"app/lib", b"app/doc") == {b"app/doc": frozenset({other.pid})}


def test_directories_that_do_not_exist_or_lead_elsewhere_are_left_out(overlay: MountedOverlay, tmp_path: Path) -> None:
    os.symlink(tmp_path, overlay.at("link"))
    syscalls.mount(bytes(tmp_path), overlay.at("app/doc"), b"", syscalls.MS_BIND)
    root = beneath.open_root(overlay.mountpoint)
    try:
        with watching(tmp_path):
            found = watchers.identities(root, [b"gone", b"link", b"app/doc", b"app/lib/a", b"app/lib", b""])
    finally:
        os.close(root)
        syscalls.umount(overlay.at("app/doc"))
    assert set(found) == {b"app/lib", b""}


def test_a_process_can_be_left_out(tmp_path: Path) -> None:
    directory = os.stat(tmp_path)
    with watching(tmp_path) as other:
        assert directory.st_ino in {inode.ino for inode in watchers.scan(os.getpid()).by_inode}
        assert directory.st_ino not in {inode.ino for inode in watchers.scan(other.pid).by_inode}


@pytest.mark.needs("root")
def test_without_the_capability_other_users_processes_count_as_hidden() -> None:
    script = f"import os, sys; sys.path[:0] = {sys.path!r}\n"
    script += "from promoterd.overlay import watchers\nos.setuid(65534)\nprint(watchers.scan(os.getpid()).hidden > 0)"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"


def test_kernel_threads_which_watch_nothing_are_told_apart() -> None:
    kernel = [pid for pid in os.listdir("/proc") if pid.isdecimal() and watchers._is_kernel_thread(pid)]
    assert str(os.getpid()) not in kernel
    for pid in kernel:
        assert Path("/proc", pid, "cmdline").read_bytes() == b""
    if Path("/proc/2/comm").exists() and Path("/proc/2/comm").read_text() == "kthreadd\n":
        assert "2" in kernel
    assert not watchers._is_kernel_thread("0"), "one that is gone"


def test_nothing_is_left_open(overlay: MountedOverlay) -> None:
    before = os.listdir("/proc/self/fd")
    with ExitStack() as stack:
        stack.enter_context(watching(overlay.at("app/lib")))
        watched(overlay, b"app/lib")
    assert os.listdir("/proc/self/fd") == before
    overlay.umount()
