"""An upper layer goes below a metadata layer and back, and what users did stays theirs."""

import os
from collections.abc import Callable

from promoterd.overlay import xattrs
from support.layers import complete
from support.overlays import MountedOverlay
from support.trees import Tree, files

TREE: Tree = {"lib": {**files(6), "sub": {"x": b"x"}}, "doc": {"a": b"a", "b": b"b"}}


def contents(mounted: MountedOverlay) -> dict[str, tuple[int, bytes | list[str]]]:
    """Mode, and data or listing, of everything in the mount."""
    found: dict[str, tuple[int, bytes | list[str]]] = {}
    for root, below, names in os.walk(os.fsdecode(mounted.mountpoint)):
        where = os.path.relpath(root, os.fsdecode(mounted.mountpoint))
        found[where] = os.stat(root).st_mode, sorted(below + names)
        for name in names:
            with open(f"{root}/{name}", "rb") as file:
                found[f"{where}/{name}"] = os.fstat(file.fileno()).st_mode, file.read()
    return found


def edit(mounted: MountedOverlay, mark: str) -> None:
    """Everything that users do, to other files for each mark."""
    os.chmod(mounted.at(f"lib/f000{mark}"), 0o600)
    with open(mounted.at(f"lib/new{mark}"), "wb") as file:
        file.write(b"new")
    with open(mounted.at("lib/f0004"), "ab") as file:
        file.write(mark.encode())
    os.rename(mounted.at(f"lib/f000{mark}"), mounted.at(f"lib/moved{mark}"))
    os.unlink(mounted.at("doc/a" if mark == "1" else "lib/f0005"))


def test_over_and_back(make_overlay: Callable[..., MountedOverlay]) -> None:
    mounted = make_overlay(TREE, counting=True, layered=True, mount=False)
    halves, data = mounted.metadata, mounted.data_layers

    def mount(*, layered: bool) -> None:
        mounted.metadata, mounted.data_layers = (halves, data) if layered else ([], [])
        mounted.mount()

    mount(layered=False)
    edit(mounted, "1")
    plain = contents(mounted)
    mounted.umount()

    mount(layered=True)
    assert contents(mounted) == plain
    complete(mounted, b"lib")
    mounted.remount()
    assert contents(mounted) == plain
    edit(mounted, "2")
    edited = contents(mounted)
    assert xattrs.get(mounted.in_upper("lib/moved2"), xattrs.METACOPY) is not None, "its data stayed on the server"
    mounted.umount()

    mount(layered=False)
    assert contents(mounted) == edited
