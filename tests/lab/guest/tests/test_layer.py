"""What a metadata layer costs the server and spares it, counted in RPCs, and who answers when the server is gone."""

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from lab.guest import rpcs, server
from lab.guest.lookups import find, miss
from lab.guest.stack import Nfs, cool
from support.daemons import RunningDaemon, mount_policy
from support.overlays import MountedOverlay
from support.promotions import Bench, allow, assert_same_view, view_below, view_of
from support.trees import Symlink, Tree, files

MakeOverlay = Callable[..., MountedOverlay]
NAMES = 500
LIB = b"app/1.0/lib"
TREE: Tree = {"app": {"1.0": {"lib": {**files(NAMES), "sub": files(3)}}}}
VERSIONS = pytest.mark.parametrize("nfs", [Nfs("4.2", "actimeo=600"), Nfs("3", "actimeo=600,noacl")], ids=["4.2", "3"])


def skip() -> Any:
    """Demands of now, without attributes."""
    return allow(copy_xattrs=False)


@VERSIONS
def test_building_costs_next_to_nothing(make_overlay: MakeOverlay, nfs: Nfs) -> None:
    """One listing with attributes; a second of names alone; and what is asked once for each directory."""
    entries = 2000
    mounted = make_overlay({"app": {"lib": files(entries)}}, nfs, layered=True)
    bench = Bench(mounted, "layer")
    cool(mounted)
    with rpcs.counted() as counts:
        bench.mark(b"app/lib", of=skip())
    assert counts.at_server <= 0.02 * entries + 12, counts.operations


@VERSIONS
@pytest.mark.parametrize("chain", [True, pytest.param(False, marks=pytest.mark.thorough)])
def test_what_is_complete_asks_nothing(make_overlay: MakeOverlay, nfs: Nfs, *, chain: bool) -> None:
    mounted = make_overlay(TREE, nfs, layered=True)
    bench = Bench(mounted, "layer")
    bench.promote(LIB, of=allow(copy_xattrs=False, chain=chain))
    assert_same_view(view_below(mounted.lowers[0]), view_of(mounted))
    directory = mounted.at(LIB)
    for work in (
        lambda: find(directory, NAMES),
        lambda: miss(directory, NAMES),
        lambda: [os.access(directory + b"/f%04d" % number, os.R_OK) for number in range(NAMES)],
        lambda: os.listdir(directory),
        lambda: [entry.stat(follow_symlinks=False) for entry in os.scandir(directory)],
    ):
        cool(mounted)
        with rpcs.counted() as counts:
            work()
        assert counts.at_server <= (0 if chain else 4), counts.operations


def test_the_server_may_be_gone(make_overlay: MakeOverlay, make_daemon: Callable[..., RunningDaemon]) -> None:
    """Where all ancestors are complete, everything but lazy data answers at once."""
    mounted = make_overlay(TREE, Nfs("4.2", "actimeo=2"), layered=True)
    section = mount_policy(mounted, [{"path": "**", "xattrs": "skip", "recheck": "1h"}], backend="layer")
    with make_daemon(section).start() as daemon:
        daemon.ask("promote", mounted.at(LIB))
        daemon.wait_state("active", LIB, b"app", b"app/1.0")
    cool(mounted)
    asked = """
import os, sys
directory = os.fsencode(sys.argv[1])
for number in range(20):
    os.lstat(directory + b"/f%04d" % number)
    assert not os.path.lexists(directory + b"/missing%d" % number)
    assert os.access(directory + b"/f%04d" % number, os.R_OK)
    assert len(os.listdir(directory)) == 501
    assert len([entry.stat(follow_symlinks=False) for entry in os.scandir(directory + b"/sub")]) == 3
"""
    server.pause()
    try:
        ask = [sys.executable, "-c", asked, os.fsdecode(mounted.at(LIB))]
        subprocess.run(ask, check=True, timeout=60)
    finally:
        server.resume()


def test_links_are_asked_for_one_by_one(make_overlay: MakeOverlay) -> None:
    """What a listing does not tell: where a symlink leads."""
    links: Tree = {f"l{number}": Symlink("f0000") for number in range(100)}
    mounted = make_overlay({"app": {"lib": {**files(100), **links}}}, Nfs("4.2", "actimeo=600"), layered=True)
    bench = Bench(mounted, "layer")
    cool(mounted)
    with rpcs.counted() as counts:
        bench.promote(b"app/lib", of=skip())
    assert counts.operations["READLINK"] == len(links)
    assert counts.at_server <= len(links) + 0.02 * 200 + 40, counts.operations
