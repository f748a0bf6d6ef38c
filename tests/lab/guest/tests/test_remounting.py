"""What is complete stays complete over a remount, and asks the server nothing from the first lookup on."""

from collections.abc import Callable

from lab.guest import rpcs
from lab.guest.lookups import miss
from lab.guest.stack import Nfs, cool
from support.daemons import SLOWNESS, RunningDaemon, mount_policy
from support.overlays import MountedOverlay, unmount
from support.promotions import assert_same_view, view_of
from support.trees import files

MakeOverlay = Callable[..., MountedOverlay]
MakeDaemon = Callable[..., RunningDaemon]


def test_complete_over_a_remount(make_overlay: MakeOverlay, make_daemon: MakeDaemon) -> None:
    mounted = make_overlay({"lib": {**files(5), "sub": files(3)}}, Nfs("4.2", "actimeo=600"))
    before = view_of(mounted)
    policy = mount_policy(mounted, [{"path": "**", "promote": "always", "recheck": "1h"}])
    daemon = make_daemon(policy).start()
    daemon.wait_state("active", b"lib", b"lib/sub")
    assert unmount(mounted.mountpoint, patience=1.0 * SLOWNESS), "nobody holds an idle mount"
    daemon.wait_phase("absent")
    mounted.mount()
    daemon.wait_phase("working")
    cool(mounted)
    with rpcs.counted() as counts:
        miss(mounted.at("lib/sub"), 40)
    assert counts.missing == 0
    daemon.wait_for(lambda: daemon.status()["states"]["active"] == 2)
    assert_same_view(before, view_of(mounted))
