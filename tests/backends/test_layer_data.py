"""Copies of files' data in the metadata layer, on real overlays: what is copied, what is not, and who reads what."""

import contextlib
import hashlib
import json
import mmap
import os
import stat
import subprocess
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from promoterd.backends.base import Plan, Terms
from promoterd.backends.layer import copying, store
from promoterd.backends.layer.backend import LayerBackend
from promoterd.overlay import syscalls
from promoterd.policy import CopyData
from support.crashing import run_and_kill
from support.overlays import MountedOverlay
from support.promotions import METACOPY, REDIRECT, Bench, allow, assert_same_view, view_below, xattr
from support.trees import OLD, Fifo, File, Hardlink, Symlink

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
        terms = Terms(100_000, True, allow(wants_data=wants, **demands))
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


@pytest.fixture
def bench(make_overlay: Callable[..., MountedOverlay]) -> DataBench:
    return DataBench(make_overlay(TREE, counting=True, layered=True))


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


def test_small_files_are_opened_and_read_without_a_request(bench: DataBench) -> None:
    before = bench.view()
    bench.copy()
    assert copied(bench) == PYTHON
    assert copied(bench, LIB + b"/sub") == {b"deep.py"}
    assert_same_view(before, bench.view())
    bench.activate()
    mounted = bench.mounted
    os.stat(mounted.at(LIB))
    mounted.reset()
    contents = read_all(mounted, PYTHON)
    assert mounted.asked() == 0, "the ancestors are complete too"
    assert contents == {os.fsencode(name): SMALL[name].content for name in SMALL} | {b"__init__.py": b""}
    read_all(mounted, {b"large.so"})
    assert mounted.asked() > 0, "what is large stays on the server"


def test_the_record_is_of_the_servers_file(bench: DataBench) -> None:
    bench.copy()
    there = os.stat(bench.mounted.on_server(LIB) + b"/m3.py")
    record = data_of(bench.mounted.in_files(LIB) + b"/m3.py")
    assert record == {
        "v": 1,
        "ctime": there.st_ctime_ns,
        "mtime": there.st_mtime_ns,
        "inode": there.st_ino,
        "size": there.st_size,
        "sha256": hashlib.sha256(SMALL["m3.py"].content).hexdigest(),
    }
    copy = copying.decode(json.dumps(record).encode())
    assert copy is not None
    assert json.loads(copy.encode()) == record
    assert copying.decode(b"{") is copying.decode(b'{"v":2}') is copying.decode(None) is None
