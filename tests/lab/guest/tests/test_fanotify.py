"""What it costs an NFS server that fanotify hears opens, and that inotify does: what `auto` decides by."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lab.guest import rpcs
from lab.guest.rpcs import Counts
from lab.guest.stack import Nfs
from promoterd.heat.base import Kind
from promoterd.heat.choice import Lower
from promoterd.heat.combined import lower_of
from promoterd.heat.inotify import InotifySource
from support.daemons import RunningDaemon, mount_policy
from support.hearing import TREE, Sink, view_of
from support.opening import Hearing, use
from support.overlays import MountedOverlay
from support.promotions import assert_marks_are_sound
from support.trees import files

MakeOverlay = Callable[..., MountedOverlay]
MakeDaemon = Callable[..., RunningDaemon]
NAMES = 40
CLOSED = 1.0
"""Seconds after which the client has closed what is no longer open: it does so when it comes to it (nfs4_do_close)."""
LEASES = Path("/proc/sys/fs/leases-enable")
VERSIONS = ["4.2", "3"]


def opens(mounted: MountedOverlay) -> list[str | bytes]:
    return [word for number in range(NAMES) for word in ("open", mounted.at(f"lib/f{number:04}"))]


def asked(mounted: MountedOverlay) -> Counts:
    """What the server is asked when an application opens all files, which it has done before."""
    use(*opens(mounted))
    time.sleep(CLOSED)
    with rpcs.counted() as counts:
        use(*opens(mounted))
        time.sleep(CLOSED)
    return counts


@pytest.fixture
def _no_delegations() -> Iterator[None]:
    """Who holds a delegation opens files without asking; the server has none to give without leases (nfs4state.c)."""
    before = LEASES.read_text("ascii")
    LEASES.write_text("0", "ascii")
    yield
    LEASES.write_text(before, "ascii")


@contextmanager
def hearing_on(mounted: MountedOverlay) -> Iterator[Hearing]:
    hearing = Hearing(mounted)
    try:
        yield hearing
    finally:
        hearing.close()


@pytest.mark.usefixtures("_no_delegations")
@pytest.mark.parametrize("version", VERSIONS)
def test_what_hearing_costs_the_server(make_overlay: MakeOverlay, version: str) -> None:
    mounted = make_overlay({**TREE, "lib": files(NAMES)}, Nfs(version, "actimeo=600"))
    unheard = asked(mounted)
    sink = Sink()
    source = InotifySource(view_of(mounted), sink)
    source.start()
    try:
        source.arm([b"lib"])
        with_inotify = asked(mounted)
        source.drain()
        assert sink.heat == {(b"lib", Kind.OPEN): 2 * NAMES}
    finally:
        source.close()
    with hearing_on(mounted) as hearing:
        use(*opens(mounted))
        hearing.heat()
        time.sleep(CLOSED)
        with_fanotify = asked_heard(mounted, hearing)
    assert abs(with_inotify.total - unheard.total) <= 2, "inotify costs nothing"
    more = with_fanotify.operations - unheard.operations
    if version == "3":
        assert more.total() <= 2, "the client asks when a name is opened, not when an open file is opened once more"
    else:
        assert more["OPEN"] + more["OPEN_NOATTR"] == more["CLOSE"] == NAMES, "and v4 opens and closes it once more"
        assert more.total() <= 2 * NAMES + 2


def asked_heard(mounted: MountedOverlay, hearing: Hearing) -> Counts:
    with rpcs.counted() as counts:
        use(*opens(mounted))
        assert hearing.heat() == {(b"lib", Kind.OPEN): NAMES}
        time.sleep(CLOSED)
    return counts


@pytest.mark.parametrize(("version", "lower"), [("4.2", Lower.NFS4), ("4.1", Lower.NFS4), ("3", Lower.NFS3)])
def test_auto_knows_nfs(make_overlay: MakeOverlay, version: str, lower: Lower) -> None:
    assert lower_of(make_overlay(TREE, Nfs(version)).layers) is lower


@pytest.mark.thorough
def test_the_daemon_promotes_by_fanotify(make_overlay: MakeOverlay, make_daemon: MakeDaemon) -> None:
    mounted = make_overlay({"lib": files(NAMES), "other": files(2)})
    daemon = make_daemon(mount_policy(mounted, heat={"source": "fanotify"})).start()
    use(*opens(mounted))
    daemon.wait_state("active", b"lib")
    assert set(assert_marks_are_sound(mounted)) == {b"lib"}
    assert [part["name"] for part in daemon.status()["heat_sources"]] == ["fanotify"]
