"""Copies of files' data in the metadata layer: who reads what while they come and go, also after a crash."""

import contextlib
import errno
import mmap
import os
import subprocess
import threading
from collections.abc import Callable

import pytest

from promoterd.policy import CopyData
from support.copies import (
    DATA,
    LIB,
    PYTHON,
    SMALL,
    TREE,
    DataBench,
    at_first_open,
    copied,
    read_all,
    rewrite,
)
from support.crashing import run_and_kill
from support.overlays import MountedOverlay
from support.promotions import assert_same_view
from support.soundness import xattr
from support.trees import File


@pytest.fixture
def bench(make_overlay: Callable[..., MountedOverlay]) -> DataBench:
    return DataBench(make_overlay(TREE, counting=True, layered=True))


# Under readers and writers


def test_who_reads_meanwhile_reads_the_same(bench: DataBench) -> None:
    bench.copy()
    before = bench.view()
    stop = threading.Event()
    wrong: list[str] = []

    def read() -> None:
        while not stop.is_set():
            for name, file in SMALL.items():
                with open(bench.mounted.at(LIB) + b"/" + os.fsencode(name), "rb") as found:
                    if found.read() != file.content:
                        wrong.append(name)
                if len(os.listdir(bench.mounted.at(LIB))) != len(TREE["apps"]["v1"]["lib"]):
                    wrong.append("listing")

    threads = [threading.Thread(target=read) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(6):
            bench.evict(1 << 30)
            bench.activate()
            bench.fill()
            bench.activate()
            bench.copy(resync=True)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not wrong
    assert_same_view(before, bench.view())


def test_what_is_mapped_or_running_keeps_its_bytes(make_overlay: Callable[..., MountedOverlay]) -> None:
    with open("/bin/sleep", "rb") as file:
        program = file.read()
    tree = {"lib": {"sleep": File(program, mode=0o755), "f.py": File(b"old" * 999)}}
    bench = DataBench(make_overlay(tree, counting=True, layered=True), CopyData(max_size=1 << 24))
    bench.copy(b"lib")
    assert copied(bench, b"lib") == {b"sleep", b"f.py"}
    path = bench.mounted.at(b"lib/f.py")
    with contextlib.ExitStack() as stack:
        running = stack.enter_context(subprocess.Popen([bench.mounted.at(b"lib/sleep"), "60"]))
        stack.callback(running.kill)
        file = stack.enter_context(open(path, "rb"))
        mapped = stack.enter_context(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ))
        bench.evict(1 << 30, b"lib")
        bench.activate()
        assert copied(bench, b"lib") == set()
        assert mapped[:] == b"old" * 999
        rewrite(bench.mounted.on_server(b"lib/f.py"), b"new")
        bench.copy(b"lib", resync=True)
        bench.activate()
        assert mapped[:] == os.pread(file.fileno(), 9999, 0) == b"old" * 999
        assert running.poll() is None
    bench.activate()
    with open(path, "rb") as again:
        assert again.read() == b"new" + b"old" * 998


def test_what_a_user_writes_survives(bench: DataBench) -> None:
    bench.copy()
    at = bench.mounted.at(LIB)
    with open(at + b"/m1.py", "ab") as file:
        file.write(b"mine")
    os.chmod(at + b"/m2.py", 0o600)
    os.rename(at + b"/m3.py", at + b"/mine.py")
    os.unlink(at + b"/m4.py")
    os.link(at + b"/m5.py", at + b"/linked.py")
    assert xattr(bench.mounted.in_upper(LIB) + b"/m1.py", DATA) is None
    before = bench.view()
    for change in (
        lambda: bench.evict(1 << 30),
        bench.fill,
        lambda: bench.copy(resync=True),
        lambda: bench.copy(resync=True, wants_data=None),
        lambda: bench.reopen(b"apps"),
    ):
        change()
        bench.activate()
        after = bench.view()
        assert_same_view(before, after)
    with open(at + b"/m1.py", "rb") as file:
        assert file.read() == SMALL["m1.py"].content + b"mine"


def test_what_was_changed_here_and_is_watched_stays_as_it_is(bench: DataBench) -> None:
    """What is put in place of a file is another lower file, and found by that: nothing meets the watched inode."""
    bench.copy()
    path = bench.mounted.at(LIB) + b"/m1.py"
    os.chmod(path, 0o600)

    def evict() -> None:
        bench.evict(1 << 30)

    with at_first_open(bench.mounted.at(LIB) + b"/m2.py", lambda: None), at_first_open(path, lambda: None):
        for work in (evict, bench.fill):
            work()
            bench.activate()
            assert read_all(bench.mounted, {b"m1.py"}) == {b"m1.py": SMALL["m1.py"].content}
            assert os.stat(path).st_mode & 0o777 == 0o600


# Crashes


def test_killed_anywhere_the_copies_are_whole_and_the_view_is_the_servers(bench: DataBench) -> None:
    bench.copy()
    before = bench.view()
    works: dict[str, Callable[[], object]] = {
        "evict": lambda: bench.evict(1 << 30),
        "fill": bench.fill,
        "resync": lambda: bench.copy(resync=True),
    }
    prepare: dict[str, Callable[[], object]] = {
        "evict": bench.fill,
        "fill": lambda: bench.evict(1 << 30),
        "resync": lambda: bench.evict(200),
    }
    for name, work in works.items():
        prepare[name]()
        steps = run_and_kill(work, None)
        for after in range(0, len(steps), 9):
            prepare[name]()
            run_and_kill(work, after)
            with bench.layers() as layers:
                bench.backend.sweep(layers)
                bench.backend.data.mend(layers, LIB)
            bench.activate()
            copied(bench)
            assert not os.listdir(bench.mounted.layer_home + b"/promoterd.stage")
            assert_same_view(before, bench.view())
            work()
            assert copied(bench) == (set() if name == "evict" else PYTHON), (name, after)


def test_a_full_file_system_leaves_everything_as_it_was(make_overlay: Callable[..., MountedOverlay]) -> None:
    tree = {"lib": {f"f{number}": File(b"%d" % number * (1 << 20)) for number in range(4)}}
    made = make_overlay(tree, counting=True, layered=True, upper_fs="tmpfs", upper_size=3 << 20)
    bench = DataBench(made, CopyData(max_size=1 << 20))
    before = bench.view()
    plan = bench.plan_copying(b"lib")
    with pytest.raises(OSError, match="No space left") as caught:
        bench.shadow(plan)
    assert caught.value.errno == errno.ENOSPC
    bench.backend.abandon(plan)
    bench.copy(b"lib", room=-1)
    with pytest.raises(OSError, match="No space left"):
        bench.fill(b"lib")
    assert os.listdir(made.layer_home + b"/promoterd.stage") == []
    assert copied(bench, b"lib") == set()
    bench.fill(b"lib", room=2 << 20)
    assert len(copied(bench, b"lib")) == 2
    bench.activate()
    assert_same_view(before, bench.view())
