"""Reading anew, on a file system that counts what it is asked; the lab shows that it renews anything on NFS."""

import os
from collections.abc import Callable

import pytest

from promoterd.overlay.refresh import read_anew
from support.overlays import MountedOverlay
from support.trees import Symlink, files

MakeOverlay = Callable[..., MountedOverlay]
LIB = b"app/lib"


def test_every_entry_is_looked_at_in_batches(make_overlay: MakeOverlay) -> None:
    mounted = make_overlay({"app": {"lib": {**files(9), "sub": files(3), "gone": Symlink("nowhere")}}})
    assert list(read_anew(mounted.lowers[0], LIB, 4)) == [4, 4, 3]
    assert list(read_anew(mounted.lowers[0], LIB, 11)) == [11]
    assert list(read_anew(mounted.lowers[0], b"", 4)) == [1]


def test_an_empty_directory(make_overlay: MakeOverlay) -> None:
    mounted = make_overlay({"app": {"lib": {}}})
    assert list(read_anew(mounted.lowers[0], LIB, 4)) == []


def test_neither_the_overlay_nor_access_times_change(make_overlay: MakeOverlay) -> None:
    mounted = make_overlay({"app": {"lib": files(3)}})
    os.utime(mounted.on_server(LIB), ns=(1, 2))
    list(read_anew(mounted.lowers[0], LIB, 4))
    assert os.stat(mounted.on_server(LIB)).st_atime_ns == 1
    assert os.listdir(mounted.upper) == []


def test_no_way_through_a_symlink(make_overlay: MakeOverlay) -> None:
    mounted = make_overlay({"real": {"lib": files(3)}, "app": Symlink("real")})
    with pytest.raises(OSError, match="symbolic"):
        list(read_anew(mounted.lowers[0], LIB, 4))


def test_what_it_opened_is_closed_when_it_is_dropped(make_overlay: MakeOverlay) -> None:
    mounted = make_overlay({"app": {"lib": files(9)}})
    before = os.listdir("/proc/self/fd")
    reading = read_anew(mounted.lowers[0], LIB, 4)
    assert next(reading) == 4
    reading.close()  # type: ignore[attr-defined]
    with pytest.raises(FileNotFoundError):
        list(read_anew(mounted.lowers[0], b"app/none", 4))
    assert os.listdir("/proc/self/fd") == before


def test_then_existing_names_ask_nobody(make_overlay: MakeOverlay) -> None:
    mounted = make_overlay({"app": {"lib": files(50)}}, counting=True, timeouts=60.0, xattrs=False)
    os.lstat(mounted.at("app"))  # tells the kernel, by asking for the first, that there are no attributes here
    list(read_anew(mounted.layers[0], LIB, 512))
    mounted.reset()
    for number in range(50):
        os.lstat(mounted.at(b"app/lib/f%04d" % number))
    assert mounted.asked() == 0
