"""What is claimed of RPCs is counted right, and a complete directory asks the server nothing for a missing name."""

import os
from collections.abc import Callable
from contextlib import suppress

import pytest

from lab.guest import rpcs
from lab.guest.lookups import find, miss
from lab.guest.stack import Nfs, cool
from support.daemons import RunningDaemon, mount_policy
from support.overlays import MountedOverlay
from support.trees import Symlink, Tree, files

MakeOverlay = Callable[..., MountedOverlay]
MakeDaemon = Callable[..., RunningDaemon]
NAMES = 40


@pytest.mark.parametrize("version", ["4.2", "3"])
def test_missing_names_are_lookups_that_fail(make_overlay: MakeOverlay, version: str) -> None:
    mounted = make_overlay({"lib": files(NAMES)}, Nfs(version, "actimeo=600"))
    for work, missing in ((miss, NAMES), (find, 0)):
        cool(mounted)
        with rpcs.counted() as counts:
            work(mounted.at("lib"), NAMES)
        assert counts.missing == missing
        assert NAMES <= counts.operations["LOOKUP"] <= NAMES + 2, "and those of the directory itself"
        assert counts.at_server >= counts.total, "the client counts nothing that the server did not see"


@pytest.mark.parametrize("version", ["4.2", pytest.param("3", marks=pytest.mark.thorough)])
def test_a_complete_directory_answers_for_what_is_missing(
    make_overlay: MakeOverlay, make_daemon: MakeDaemon, version: str
) -> None:
    mounted = make_overlay({"lib": files(NAMES), "other": files(2)}, Nfs(version, "actimeo=600"))
    policy = mount_policy(mounted, [{"path": "lib", "promote": "always", "recheck": "1h"}])
    make_daemon(policy).start().wait_state("active", b"lib")
    cool(mounted)
    with rpcs.counted() as counts:
        miss(mounted.at("lib"), NAMES)
    assert counts.missing == 0
    assert counts.total <= 6, "only for the directories on the way"
    cool(mounted)
    with rpcs.counted() as counts:
        assert len(os.listdir(mounted.at("lib"))) == NAMES
    assert not {name for name in counts.operations if counts.operations[name] and name.startswith("READDIR")}


def test_what_a_completion_makes_dearer(make_overlay: MakeOverlay, make_daemon: MakeDaemon) -> None:
    mounted = make_overlay({"lib": files(NAMES)}, Nfs("4.2", "actimeo=600"))
    cool(mounted)
    with rpcs.counted() as before:
        find(mounted.at("lib"), NAMES)
    policy = mount_policy(mounted, [{"path": "lib", "promote": "always", "recheck": "1h"}])
    make_daemon(policy).start().wait_state("active", b"lib")
    cool(mounted)
    with rpcs.counted() as after:
        find(mounted.at("lib"), NAMES)
    assert after.operations["LOOKUP"] >= NAMES
    assert after.operations["GETATTR"] - before.operations["GETATTR"] >= NAMES, "one more for each file: say so"


@pytest.mark.parametrize("version", ["4.2", "3"])
def test_opening_symlinks_misses_nothing(make_overlay: MakeOverlay, version: str) -> None:
    tree: Tree = {"lib": {**files(NAMES), **{f"l{number}": Symlink(f"f{number:04}") for number in range(NAMES)}}}
    mounted = make_overlay(tree, Nfs(version, "actimeo=600"))
    for directory in (mounted.layers[0] + b"/lib", mounted.at("lib")):
        for name, missing in (("l%d", 0), ("no%d", NAMES)):
            cool(mounted)
            with rpcs.counted() as counts:
                for number in range(NAMES):
                    with suppress(FileNotFoundError), open(directory + b"/" + (name % number).encode(), "rb"):
                        pass
            assert counts.missing == missing, (directory, name)
