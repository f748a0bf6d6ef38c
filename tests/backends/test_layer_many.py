"""Directories of a size that nobody should have, and some have."""

import os
from collections.abc import Callable

from support.overlays import MountedOverlay
from support.promotions import Bench, assert_marks_are_sound

LIB = b"opt/lib"


def test_twenty_thousand_entries(make_overlay: Callable[..., MountedOverlay]) -> None:
    bench = Bench(make_overlay({"opt": {"lib": {}}}, layered=True), "layer")
    for number in range(20_000):
        os.close(os.open(bench.mounted.on_server(LIB) + b"/f%d" % number, os.O_CREAT | os.O_WRONLY, 0o644))
    bench.promote(LIB)
    assert sorted(os.listdir(bench.mounted.at(LIB))) == sorted(os.listdir(bench.mounted.on_server(LIB)))
    assert assert_marks_are_sound(bench.mounted) == [LIB]
