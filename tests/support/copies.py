"""Driving copies of files' data in a metadata layer by hand, and judging them by what lies on disk."""

import contextlib
import hashlib
import json
import os
import stat
import subprocess
import threading
from collections.abc import Callable, Iterator
from typing import Any

from promoterd.backends.base import Plan, Terms
from promoterd.backends.layer.backend import LayerBackend
from promoterd.policy import CopyData
from support.overlays import MountedOverlay
from support.promotions import Bench, allow
from support.soundness import METACOPY, REDIRECT, xattr
from support.trees import Fifo, File, Symlink

DATA = "trusted.overlay.promoterd.data"
LIB = b"apps/v1/lib"
SMALL = {f"m{number}.py": File(b"# module %d\n" % number * 50, mode=0o640, uid=7, gid=8) for number in range(8)}
TREE: dict[str, Any] = {
    "apps": {
        "v1": {
            "lib": {
                **SMALL,
                "__init__.py": File(b""),
                "large.so": File(b"x" * 200_000),
                "notes.txt": File(b"not wanted"),
                "pipe": Fifo(),
                "link": Symlink("m1.py"),
                "sub": {"deep.py": File(b"deep")},
            }
        }
    }
}
COPIES = CopyData(max_size=64 * 1024, patterns=["**/*.py", "**/*.so"])
ROOM = 1 << 30


def data_of(path: bytes) -> dict[str, Any] | None:
    """The record beside a copy; None for a stub."""
    found = xattr(path, DATA)
    return None if found is None else json.loads(found)


class DataBench(Bench):
    """The layer backend with what it may copy."""

    backend: LayerBackend

    def __init__(self, mounted: MountedOverlay, copies: CopyData | None = COPIES) -> None:
        super().__init__(mounted, "layer")
        self.copies = copies

    def plan_copying(self, path: bytes, *, resync: bool = False, room: int = ROOM, **demands: Any) -> Plan:
        wants = None if self.copies is None else self.copies.wants
        terms = Terms(100_000, True, allow(**{"wants_data": wants, "chain": True, **demands}))
        with self.layers() as layers:
            plan = (self.backend.resync if resync else self.backend.plan)(layers, path, terms)
        plan.data_room = dict.fromkeys(plan.paths, room)
        return plan

    def copy(self, path: bytes = LIB, **options: Any) -> list[bytes]:
        """Promote, or bring in line, with copies; afterwards nothing of before is remembered."""
        plan = self.plan_copying(path, **options)
        self.shadow(plan)
        marked = self.backend.complete(plan)
        self.activate()
        return marked

    def fill(self, path: bytes = LIB, *, room: int = ROOM, oldest_allowed_ns: int = 1 << 62) -> int:
        assert self.copies is not None
        steps = self.backend.data.fill(path, self.copies.wants, oldest_allowed_ns=oldest_allowed_ns, room=room)
        return sum(steps)

    def evict(self, at_least: int, path: bytes = LIB) -> int:
        return self.backend.data.evict(path, None if self.copies is None else self.copies.wants, at_least)


def copied(bench: DataBench, path: bytes = LIB) -> set[bytes]:
    """The names of a directory that carry their data, each checked against its record and the server."""
    half = bench.mounted.in_files(path)
    found = set()
    for name in os.listdir(half):
        entry = half + b"/" + name
        if not stat.S_ISREG(os.lstat(entry).st_mode):
            continue
        record = data_of(entry)
        if record is None:
            assert xattr(entry, METACOPY) == b""
            continue
        assert xattr(entry, METACOPY) is None
        assert xattr(entry, REDIRECT) is None
        with open(entry, "rb") as file:
            assert hashlib.sha256(file.read()).hexdigest() == record["sha256"]
        found.add(name)
    return found


def read_all(mounted: MountedOverlay, names: set[bytes], path: bytes = LIB) -> dict[bytes, bytes]:
    contents = {}
    for name in names:
        with open(mounted.at(path) + b"/" + name, "rb") as file:
            contents[name] = file.read()
    return contents


PYTHON = {os.fsencode(name) for name in (*SMALL, "__init__.py")}


def rewrite(path: bytes, content: bytes) -> None:
    """Rewrite in place, with the time that it had: as rsync does."""
    before = os.stat(path)
    with open(path, "r+b") as file:
        file.write(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@contextlib.contextmanager
def at_first_open(path: bytes, do: Callable[[], None]) -> Iterator[None]:
    """Do something as soon as somebody opens the file."""
    script = "import ctypes,os,sys\nlibc=ctypes.CDLL(None)\nfd=libc.inotify_init()\n"
    script += "libc.inotify_add_watch(fd,os.fsencode(sys.argv[1]),0x20)\nprint('armed',flush=True)\nos.read(fd,4096)\n"
    script += "print('opened',flush=True)"
    watcher = subprocess.Popen(
        ["python3", "-c", script, os.fsdecode(path)], stdout=subprocess.PIPE, stdin=subprocess.DEVNULL
    )
    assert watcher.stdout is not None
    assert watcher.stdout.readline() == b"armed\n"
    thread = threading.Thread(target=lambda: do() if watcher.stdout.readline() else None)  # type: ignore[union-attr]
    thread.start()
    try:
        yield
    finally:
        watcher.terminate()
        watcher.communicate()
        thread.join()
