"""Directories of a size that nobody should have, and some have."""

import os
from collections.abc import Callable

import pytest

from support.overlays import MountedOverlay
from support.promotions import Bench, assert_marks_are_sound

LIB = b"opt/lib"


def test_twenty_thousand_entries(make_overlay: Callable[..., MountedOverlay]) -> None:
    bench = Bench(make_overlay({"opt": {"lib": {}}}, layered=True, upper_fs="tmpfs"), "layer")
    for number in range(20_000):
        os.close(os.open(bench.mounted.on_server(LIB) + b"/f%d" % number, os.O_CREAT | os.O_WRONLY, 0o644))
    bench.promote(LIB)
    assert sorted(os.listdir(bench.mounted.at(LIB))) == sorted(os.listdir(bench.mounted.on_server(LIB)))
    assert assert_marks_are_sound(bench.mounted) == [LIB]


@pytest.mark.stress
@pytest.mark.timeout(3600)
def test_a_million_entries_are_not_held_twice(make_overlay: Callable[..., MountedOverlay]) -> None:
    """In a process of its own, of which the most memory that it ever had is looked at."""
    bench = Bench(make_overlay({"opt": {"lib": {}}}, layered=True, upper_fs="tmpfs", upper_size=8 * 2**30), "layer")
    for number in range(1_000_000):
        os.close(os.open(bench.mounted.on_server(LIB) + b"/f%d" % number, os.O_CREAT | os.O_WRONLY, 0o644))
    child = os.fork()
    if not child:
        bench.mark(LIB, max_entries=2_000_000)
        os._exit(0)
    _, status, used = os.wait4(child, 0)
    assert status == 0
    bench.activate()
    assert len(os.listdir(bench.mounted.at(LIB))) == 1_000_000
    most = used.ru_maxrss // 1024
    print(f"1,000,000 entries: {most} MiB at most")  # noqa: T201 - for docs/benchmarks.md
    assert most < 600, "MiB"
