"""The daemon finds by itself what is hot and completes it, over every kind of NFS mount and upper file system."""

import os
from collections.abc import Callable
from typing import Any

import pytest

from lab.guest.stack import Nfs
from promoterd.demo.reader import Known, Reader
from support.daemons import RunningDaemon, mount_policy, use
from support.overlays import MountedOverlay
from support.promotions import SCRATCH, assert_marks_are_sound, assert_same_view, view_of
from support.trees import OLD, Directory, File, Symlink, Tree, files, odd_files

MakeOverlay = Callable[..., MountedOverlay]
MakeDaemon = Callable[..., RunningDaemon]

LONG = 200
"""Longer names make paths for which overlayfs writes no redirect (`redirect_max`)."""
TREE: Tree = {
    "apps": {
        "tool": {
            "1.0": {
                "lib": {
                    **files(20),
                    **{name: node for name, node in odd_files().items() if len(name) < LONG},
                    "libx.so": Symlink("libx.so.1"),
                    "libx.so.1": b"library",
                    "suid": File(b"#!/bin/sh\n", mode=0o4755, uid=1000, gid=1000),
                    "sub": Directory(files(5), mode=0o2750, gid=1000, mtime_ns=OLD + 7),
                },
                "bin": files(5),
            },
            "1.1": {"lib": files(5)},
        }
    }
}
RULES: list[dict[str, Any]] = [
    {"path": "apps", "growing": True},
    {"path": "apps/tool", "growing": True},
    {"path": "apps/*/*/**"},
]
HOT = "apps/tool/1.0/lib"
CASES = [
    pytest.param(Nfs("4.2"), "ext4", id="4.2,ext4"),
    pytest.param(Nfs("4.2", "nconnect=2,actimeo=3600,nocto"), "xfs", id="4.2,nconnect,xfs", marks=pytest.mark.thorough),
    pytest.param(Nfs("4.1", "lookupcache=pos,actimeo=1"), "tmpfs", id="4.1,pos,tmpfs", marks=pytest.mark.thorough),
    pytest.param(Nfs("3", "lookupcache=none"), "ext4", id="3,none,ext4", marks=pytest.mark.thorough),
    pytest.param(Nfs("3", "nocto,actimeo=3600"), "tmpfs", id="3,nocto,tmpfs"),
]


@pytest.mark.parametrize(("nfs", "upper"), CASES)
def test_it_promotes_what_is_hot_and_nobody_notices(
    make_overlay: MakeOverlay, make_daemon: MakeDaemon, nfs: Nfs, upper: str
) -> None:
    mounted = make_overlay(TREE, nfs, upper)
    before = view_of(mounted)
    # what it reads is hot as well, so it reads nothing else
    known = Known.of(mounted.on_server(HOT), [b"never", b"sub/never"])
    reader = Reader(mounted.at(HOT), known, think=0.05)
    daemon = make_daemon(mount_policy(mounted, RULES, heat={"threshold": 12})).start(watching=4)
    with reader:
        use(mounted, HOT, HOT + "/sub", times=8)
        daemon.wait_state("active", HOT.encode(), HOT.encode() + b"/sub")
        assert reader.stop() == []
    assert reader.requests > 10
    assert set(assert_marks_are_sound(mounted)) == {HOT.encode(), HOT.encode() + b"/sub"}
    assert daemon.states().get("/apps/tool/1.1/lib", "cold") == "cold", "nobody used it"
    assert_same_view(before, view_of(mounted))
    daemon.stop()
    mounted.remount()
    assert_same_view(before, view_of(mounted))
    assert SCRATCH not in os.listdir(mounted.mountpoint)
