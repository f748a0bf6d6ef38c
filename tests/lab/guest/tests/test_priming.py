"""What is primed is known to the NFS client before anybody asks, and stays known; counted in RPCs."""

import os
import time
from collections.abc import Callable

import pytest

from lab.guest import rpcs
from lab.guest.lookups import find, miss
from lab.guest.stack import Nfs, cool
from promoterd.overlay.refresh import read_anew
from support.daemons import RunningDaemon, mount_policy
from support.overlays import MountedOverlay
from support.trees import Tree, files

MakeOverlay = Callable[..., MountedOverlay]
MakeDaemon = Callable[..., RunningDaemon]
NAMES = 500
LIB = b"app/lib"
TREE: Tree = {"app": {"lib": files(NAMES)}}
MOST = 0.02 * NAMES + 12
"""RPCs that reading it may cost; looking at each file would cost one for each."""
RULES = ({"path": "app/lib", "promote": "always", "recheck": "1h"},)
VERSIONS = ["4.2", pytest.param("3", marks=pytest.mark.thorough)]


def read(mounted: MountedOverlay) -> rpcs.Counts:
    """Once, as the daemon does it."""
    with rpcs.counted() as counts:
        assert sum(read_anew(mounted.layers[0], LIB, 128, (b"", b"app"))) == NAMES
    return counts


def look(mounted: MountedOverlay) -> rpcs.Counts:
    """At every file, through the overlay."""
    with rpcs.counted() as counts:
        find(mounted.at(LIB), NAMES)
    return counts


@pytest.mark.parametrize("version", VERSIONS)
def test_reading_it_costs_little_and_renews_before_it_expires(make_overlay: MakeOverlay, version: str) -> None:
    life = 8.0
    mounted = make_overlay(TREE, Nfs(version, f"actimeo={life:.0f}"))
    cool(mounted)
    first = time.monotonic()
    assert read(mounted).at_server <= MOST
    assert look(mounted).at_server == 0
    time.sleep(first + 0.6 * life - time.monotonic())
    second = time.monotonic()
    again = read(mounted)
    assert 0 < again.at_server <= MOST, "or the server was not asked, and nothing renewed"
    time.sleep(first + 1.1 * life - time.monotonic())
    assert time.monotonic() < second + life, "this machine is too slow for this test"
    assert look(mounted).at_server == 0, "what was read first has expired"
    time.sleep(second + 1.1 * life - time.monotonic())
    assert look(mounted).at_server >= NAMES, "and so has what was read then, since nobody read again"


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.thorough
def test_the_daemon_keeps_it_known(make_overlay: MakeOverlay, make_daemon: MakeDaemon, version: str) -> None:
    life = 8.0
    mounted = make_overlay(TREE, Nfs(version, f"actimeo={life:.0f}"))
    daemon = make_daemon(mount_policy(mounted, RULES, backend="prime")).start()
    daemon.wait_state("primed", LIB)
    assert os.listdir(mounted.upper) == []
    with rpcs.counted() as all_of_it:
        looked = []
        for _ in range(3):
            time.sleep(0.6 * life)
            looked.append(look(mounted).at_server)
    assert looked == [0] * 3
    passes = all_of_it.seconds / (0.75 * life) + 1
    assert all_of_it.at_server <= passes * MOST
    with rpcs.counted() as counts:
        miss(mounted.at(LIB), 40)
    assert counts.missing == 40, "names that do not exist are none of its business"
    daemon.ask("pause", mounted.mountpoint)
    time.sleep(1.2 * life)
    assert look(mounted).at_server >= NAMES, "nobody keeps it known any more"


@pytest.mark.thorough
def test_lifetimes_grow_while_it_is_kept_known(make_overlay: MakeOverlay, make_daemon: MakeDaemon) -> None:
    mounted = make_overlay(TREE, Nfs("4.2", "acregmin=2,acregmax=16"))
    daemon = make_daemon(mount_policy(mounted, RULES, backend="prime")).start()
    daemon.wait_state("primed", LIB)
    daemon.wait_for(lambda: daemon.reason(LIB) == "its entries are read anew every 12s", patience=60.0)
    with rpcs.counted() as counts:
        for _ in range(4):
            time.sleep(8.0)
            find(mounted.at(LIB), NAMES)
    assert counts.at_server <= 4 * MOST


@pytest.mark.thorough
def test_auto_primes_on_nfs_unless_enough_is_missed(make_overlay: MakeOverlay, make_daemon: MakeDaemon) -> None:
    mounted = make_overlay(TREE)
    daemon = make_daemon(mount_policy(mounted, RULES, backend="auto")).start()
    assert daemon.status()["backend"] == "prime"
    assert "`expect` in the policy" in daemon.status()["reason"]
    daemon.stop()
    daemon.policy["mounts"] = [mount_policy(mounted, RULES, backend="auto", expect={"misses_per_entry": 9})]
    daemon.start().wait_state("active", LIB)
    assert daemon.status()["backend"] == "opaque"
