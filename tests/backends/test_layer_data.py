"""Copies of files' data in the metadata layer, on real overlays: what is copied, and what is not."""

import contextlib
import hashlib
import json
import os
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from promoterd.backends.base import Busy
from promoterd.backends.data import Holding
from promoterd.backends.layer import copying
from promoterd.policy import CopyData
from support.copies import (
    COPIES,
    LIB,
    PYTHON,
    SMALL,
    TREE,
    DataBench,
    at_first_open,
    copied,
    data_of,
    read_all,
    rewrite,
)
from support.overlays import MountedOverlay
from support.promotions import assert_same_view, view_below
from support.soundness import METACOPY, xattr
from support.trees import ODD_NAMES, OLD, File, Hardlink


@pytest.fixture
def bench(make_overlay: Callable[..., MountedOverlay]) -> DataBench:
    return DataBench(make_overlay(TREE, counting=True, layered=True))


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


# What is not copied


def test_without_a_word_of_it_nothing_is_copied(bench: DataBench) -> None:
    bench.copies = None
    bench.copy()
    assert copied(bench) == set()
    with bench.layers() as layers:
        assert not bench.backend.data.was_used(layers)


def test_what_is_young_is_not_copied_while_the_directory_is_filled(bench: DataBench) -> None:
    bench.copy(room=-1)
    assert copied(bench) == set()
    age = time.time_ns()
    bench.fill(oldest_allowed_ns=OLD + 1)
    assert copied(bench) == set(), "the directory itself was changed when the tree was made"
    time.sleep(0.02)  # file systems' clocks are coarse
    os.chmod(bench.mounted.on_server(LIB) + b"/m2.py", 0o640)  # its ctime only
    bench.fill(oldest_allowed_ns=age)
    assert copied(bench) == PYTHON - {b"m2.py"}


def test_what_is_young_is_not_copied_into_an_open_directory(bench: DataBench) -> None:
    bench.copy()
    age = time.time_ns()
    time.sleep(0.02)
    server = bench.mounted.on_server(LIB)
    with open(server + b"/m1.py", "ab") as file:
        file.write(b"young")
    assert bench.copy(resync=True, oldest_allowed_ns=age) == []
    assert copied(bench) == PYTHON - {b"m1.py"}
    assert xattr(bench.mounted.in_files(LIB) + b"/m1.py", METACOPY) == b""


def write_again(path: bytes) -> None:
    """Another file with the same content and times."""
    with open(path, "wb") as file:
        file.write(SMALL[os.fsdecode(os.path.basename(path))].content)
    os.utime(path, ns=(OLD, OLD))


REPLACEMENTS: list[Callable[[bytes], object]] = [
    write_again,
    lambda _: None,
    lambda path: os.symlink("m7.py", path),
    os.mkfifo,
    lambda path: os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 5)),
    os.mkdir,
]


def test_what_was_changed_since_it_was_listed_is_not_copied(bench: DataBench) -> None:
    plan = bench.plan_copying(LIB)
    server = bench.mounted.on_server(LIB)
    for number, replace in enumerate(REPLACEMENTS):
        path = server + b"/m%d.py" % number
        os.unlink(path)
        replace(path)
    rewrite(server + b"/m6.py", b"!")
    os.truncate(server + b"/m7.py", 5000)
    with pytest.raises(Busy, match="have no shadow"):
        bench.shadow(plan)
    stage = bench.mounted.layer_home + b"/promoterd.stage"
    staged = [os.path.join(directory, name) for directory, _, names in os.walk(stage) for name in names]
    forms = {os.path.basename(path): (data_of(path) is not None, xattr(path, METACOPY)) for path in staged}
    assert {name for name, (carries, _) in forms.items() if carries} == {b"__init__.py", b"deep.py"}
    assert forms[b"m0.py"] == forms[b"m2.py"] == forms[b"m6.py"] == (False, b"")
    bench.backend.abandon(plan)


def test_what_changes_while_it_is_copied_is_not_copied(make_overlay: Callable[..., MountedOverlay]) -> None:
    content = b"a" * 1_500_000
    tree = {"lib": {"f.py": File(content), "other.py": File(b"other")}}
    bench = DataBench(make_overlay(tree, counting=True, layered=True, latency_us=5000), CopyData(max_size=1 << 24))
    path = bench.mounted.on_server(b"lib/f.py")
    plan = bench.plan_copying(b"lib")
    with at_first_open(path, lambda: rewrite(path, b"b" * len(content))):
        bench.shadow(plan)
    bench.backend.complete(plan)
    assert copied(bench, b"lib") == {b"other.py"}
    bench.activate()
    with open(bench.mounted.at(b"lib/f.py"), "rb") as file:
        assert file.read() == b"b" * len(content)


@pytest.mark.parametrize(("directory", "name"), [("/proc/sys/vm", "compact_memory"), ("/proc/self", "mem")])
@pytest.mark.needs("root")
def test_a_file_that_cannot_be_opened_or_read_is_no_copy(directory: str, name: str, tmp_path: Path) -> None:
    """As over NFS with root_squash, or with a bad disk: these deny root to open them, and to read them at 0."""
    with contextlib.ExitStack() as stack:
        lower, target = (os.open(path, os.O_RDONLY) for path in (directory, tmp_path))
        stack.callback(os.close, lower)
        stack.callback(os.close, target)
        found = copying.now_at(lower, name)
        assert found is not None
        assert not copying.pull(lower, name, found, target, "copy")
    assert os.listdir(tmp_path) == []


def test_the_room_is_not_exceeded(bench: DataBench) -> None:
    bench.copy(room=1500)
    sizes = {name: len(file.content) for name, file in SMALL.items()}
    names = {os.fsdecode(name) for name in copied(bench)} - {"__init__.py"}
    assert 0 < sum(sizes[name] for name in names) <= 1500
    assert sum(sizes[name] for name in names) + min(sizes[name] for name in set(SMALL) - names) > 1500


# What stands in the layer looks as on the server


RIGHTS: dict[str, Any] = {
    "lib": {
        "suid": File(b"s", mode=0o6755, uid=3, gid=4),
        "capable": File(
            b"c", mode=0o755, xattrs={"security.capability": bytes.fromhex("0000000200040000000000000000000000000000")}
        ),
        "acl": File(
            b"a",
            xattrs={
                "system.posix_acl_access": bytes.fromhex(
                    "0200000001000600ffffffff0200040007000000040004000000000010000400ffffffff20000000ffffffff"
                ).replace(b"\x04\x00\x04\x00\x00\x00\x00\x00", b"\x04\x00\x04\x00\xff\xff\xff\xff")
            },
        ),
        "user": File(b"u", xattrs={"user.note": b"kept"}),
        **{name: b"content of " + name for name in ODD_NAMES},
    }
}


def test_owner_mode_capabilities_and_acls_survive_every_change_of_form(
    make_overlay: Callable[..., MountedOverlay],
) -> None:
    bench = DataBench(make_overlay(RIGHTS, counting=True, layered=True), CopyData())
    before = bench.view()
    names = set(map(os.fsencode, RIGHTS["lib"]))
    bench.copy(b"lib")
    assert copied(bench, b"lib") == names
    assert_same_view(before, bench.view())
    bench.evict(1 << 30, b"lib")
    bench.activate()
    assert copied(bench, b"lib") == set()
    assert_same_view(before, bench.view())
    bench.fill(b"lib")
    bench.activate()
    assert copied(bench, b"lib") == names
    assert_same_view(before, bench.view())


LINKED: dict[str, Any] = {
    "lib": {
        "a.py": File(b"linked" * 9),
        "b.py": Hardlink("lib/a.py"),
        "c.txt": Hardlink("lib/a.py"),
        "single.py": File(b"single"),
    }
}


def test_hard_links_stay_one_file(make_overlay: Callable[..., MountedOverlay]) -> None:
    bench = DataBench(make_overlay(LINKED, counting=True, layered=True), CopyData())
    before = bench.view()

    def inodes() -> set[tuple[int, int]]:
        found = {os.stat(bench.mounted.in_files(b"lib/" + name)) for name in (b"a.py", b"b.py", b"c.txt")}
        return {(status.st_ino, status.st_nlink) for status in found}

    forms: list[tuple[Callable[[], object], int]] = [
        (lambda: bench.copy(b"lib"), 4),
        (lambda: bench.copy(b"lib", resync=True), 4),
        (lambda: bench.evict(1, b"lib"), 3),
        (lambda: bench.fill(b"lib"), 4),
        (lambda: bench.evict(60, b"lib"), 0),
        (lambda: bench.copy(b"lib", resync=True), 4),
        (lambda: bench.copy(b"lib", resync=True, wants_data=None), 0),
    ]
    for step, (change, copies) in enumerate(forms):
        change()
        bench.activate()
        assert len(inodes()) == 1, step
        assert len(copied(bench, b"lib")) == copies, step
        assert_same_view(before, bench.view())


# The server changes, policy changes


def test_a_resync_replaces_what_the_server_changed_and_nothing_else(bench: DataBench) -> None:
    bench.copy()
    half, server = bench.mounted.in_files(LIB), bench.mounted.on_server(LIB)
    before = {name: os.stat(half + b"/" + name).st_ino for name in copied(bench)}
    rewrite(server + b"/m1.py", b"!")  # its size and time are as they were
    os.utime(server + b"/m2.py", ns=(OLD + 1, OLD + 1))
    os.unlink(server + b"/m3.py")
    write_again(server + b"/m3.py")
    os.unlink(server + b"/m4.py")
    bench.copy(resync=True)
    after = {name: os.stat(half + b"/" + name).st_ino for name in copied(bench)}
    assert {name for name in before if after.get(name) != before[name]} == {b"m1.py", b"m2.py", b"m3.py", b"m4.py"}
    assert_same_view(view_below(bench.mounted.lowers[0]), bench.view())


def test_a_resync_follows_the_policy(bench: DataBench) -> None:
    before = bench.view()
    bench.copy()
    policies: list[tuple[CopyData | None, set[bytes]]] = [
        (CopyData(patterns=["**/m[12].py", "**/*.txt"]), {b"m1.py", b"m2.py", b"notes.txt"}),
        (CopyData(max_size=1 << 20), PYTHON | {b"large.so", b"notes.txt"}),
        (CopyData(max_size=100), {b"__init__.py", b"notes.txt"}),
        (None, set()),
    ]
    for bench.copies, left in policies:
        bench.copy(resync=True)
        assert copied(bench) == left
        assert_same_view(before, bench.view())


def test_what_makes_room_makes_room_in_the_same_resync(bench: DataBench) -> None:
    """A full directory whose file was rewritten keeps its copies."""
    bench.copy()
    rewrite(bench.mounted.on_server(LIB) + b"/m1.py", b"!")
    bench.copy(resync=True, room=0)
    assert copied(bench) == PYTHON


def test_a_holding_is_counted_from_disk(bench: DataBench) -> None:
    def holding(path: bytes = LIB, copies: CopyData | None = COPIES) -> Holding:
        with bench.layers() as layers:
            return bench.backend.data.holding(layers, path, None if copies is None else copies.wants)

    size = sum(len(file.content) for file in SMALL.values())
    assert holding() == Holding()
    bench.copy(room=-1)
    empty = Holding(lacking=len(PYTHON), missing=size, smallest=0)
    assert holding() == empty
    assert holding(copies=None) == Holding()
    bench.fill()
    assert holding() == Holding(files=len(PYTHON), held=size)
    assert holding(copies=None) == Holding(files=len(PYTHON), held=size, unwanted=len(PYTHON))
    other = holding(copies=CopyData(patterns=["**/m0.py", "**/notes.txt"]))
    assert other == Holding(len(PYTHON), size, len(PYTHON) - 1, 1, 10, 10)
    assert bench.evict(1 << 30) == size
    assert holding() == empty
    assert bench.evict(1 << 30) == 0


def test_an_eviction_takes_what_nobody_wants_first_and_no_more_than_it_must(bench: DataBench) -> None:
    bench.copy()
    bench.copies = CopyData(patterns=["**/m1.py", "**/m2.py"])
    assert bench.evict(1) == sum(len(file.content) for file in SMALL.values()) - 2 * len(SMALL["m1.py"].content)
    assert copied(bench) == {b"m1.py", b"m2.py"}
    assert bench.evict(1) == len(SMALL["m1.py"].content)
    assert len(copied(bench)) == 1
