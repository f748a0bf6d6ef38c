"""Readers and writers without rest, while directories are completed, brought in line, and opened again, without rest.

Whatever is done to a directory, at no instant does anybody meet an error, a wrong byte or a missing name (I2, R3, R4).
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Self

import pytest

from promoterd.backends.base import Busy, MarkState
from support import reader
from support.holding import Holder
from support.overlays import MountedOverlay
from support.promotions import Bench, assert_same_view
from support.soundness import assert_layer_is_sound

DIRECTORIES = [f"d{number}" for number in range(6)]
READERS = 2


class Readers:
    """Processes that read, until each has done its share of the operations."""

    def __init__(self, bench: Bench, place: Path, operations: int) -> None:
        self.running: list[subprocess.Popen[bytes]] = []
        for who in range(READERS):
            spec = {
                "root": os.fsdecode(bench.mounted.mountpoint),
                "directories": DIRECTORIES,
                "operations": operations // READERS,
                "who": who,
                "seed": 1,
            }
            file = place / f"reader{who}.json"
            file.write_text(json.dumps(spec))
            self.running.append(
                subprocess.Popen([sys.executable, reader.__file__, os.fspath(file)], stdout=subprocess.PIPE)
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.running:
            process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()

    def at_work(self) -> bool:
        return any(process.poll() is None for process in self.running)

    def result(self) -> tuple[int, list[str]]:
        """How many operations, and what was wrong."""
        said = [json.loads(process.communicate()[0]) for process in self.running]
        return sum(one["operations"] for one in said), [surprise for one in said for surprise in one["surprises"]]


def cycle(bench: Bench, path: bytes, turn: int, done: dict[str, int]) -> None:
    """One step in the life of a directory: what comes next, by what it is now."""
    mark = bench.on_disk(path).mark
    server = bench.mounted.on_server(path)
    try:
        if mark is MarkState.NONE:
            what = "promoted" if bench.mark(path) else "refused"
        elif turn % 3:
            name = server + b"/s%d" % (turn % 4)
            if os.path.exists(name):
                os.unlink(name)
            else:
                with open(name, "wb") as file:
                    file.write(b"s" * turn)
            what = "resynced" if bench.resync(path) else "open"
        else:
            bench.reopen(path)
            what = "reopened"
    except Busy:
        what = "busy"
    done[what] = done.get(what, 0) + 1


def run(bench: Bench, place: Path, operations: int) -> tuple[int, dict[str, int]]:
    """All of it at once; returns the readers' operations and what was done meanwhile."""
    done: dict[str, int] = {}
    with Readers(bench, place, operations) as readers:
        for turn in count(1):
            for directory in DIRECTORIES:
                cycle(bench, directory.encode(), turn, done)
            bench.activate()
            with bench.layers() as layers:
                bench.backend.sweep(layers)
            if not readers.at_work():
                break
        made, surprises = readers.result()
    assert surprises == []
    assert made >= operations
    return made, done


@pytest.fixture
def bench(make_overlay: Callable[..., MountedOverlay]) -> Bench:
    tree = {directory: reader.lower_tree(directory) for directory in DIRECTORIES}
    return Bench(make_overlay(tree, layered=True, upper_fs="tmpfs"), "layer", batch=10)


def judge(bench: Bench, done: dict[str, int]) -> None:
    assert done.keys() <= {"promoted", "resynced", "reopened"}, done
    assert min(done.values()) > 10, done
    for directory in map(str.encode, DIRECTORIES):
        if bench.on_disk(directory).mark is not MarkState.NONE:
            bench.resync(directory)
    assert_layer_is_sound(bench.mounted)
    bench.activate()
    before = bench.view()
    assert [path for path, entry in before.items() if entry.error] == []
    bench.remount()
    assert_same_view(before, bench.view())
    with bench.layers() as layers:
        assert bench.backend.sweep(layers) == 0


def test_a_million_operations(bench: Bench, tmp_path: Path) -> None:
    _, done = run(bench, tmp_path, 1_000_000)
    judge(bench, done)


@pytest.mark.stress
@pytest.mark.timeout(3600)
def test_ten_million_operations(bench: Bench, tmp_path: Path) -> None:
    made, done = run(bench, tmp_path, 10_000_000)
    judge(bench, done)
    print(f"{made} operations, no error, during {done}")  # noqa: T201 - for docs/benchmarks.md


def test_who_holds_a_directory_through_a_resync(bench: Bench) -> None:
    """By descriptor, as working directory, by a mapped file and in the middle of its names: all stays as it was."""
    path = b"d0"
    bench.promote(path)
    with open(bench.mounted.on_server("d0/f0001"), "wb") as file:
        file.write(b"mapped")
    bench.resync(path)
    bench.activate()
    names = set(os.listdir(bench.mounted.at(path)))
    with Holder(bench.mounted.at(path)) as holder:
        with open(bench.mounted.on_server("d0/new"), "wb") as file:
            file.write(b"new")
        assert bench.resync(path) == [path]
        bench.activate()
        holder.look()
        assert os.path.exists(bench.mounted.at("d0/new"))
        assert holder.rest_of_names() == names
    bench.activate()
    assert set(os.listdir(bench.mounted.at(path))) == names | {b"new"}
