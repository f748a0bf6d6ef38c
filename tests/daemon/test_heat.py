"""Nobody tells the daemon what is hot (issue of heat: signal, tracker, policy, queue, promotion)."""

import os
from collections.abc import Callable

from support.daemons import RunningDaemon, mount_policy
from support.overlays import MountedOverlay
from support.trees import files

Make = Callable[..., MountedOverlay]
MakeDaemon = Callable[..., RunningDaemon]


def test_listing_a_directory_makes_it_active(make_overlay: Make, make_daemon: MakeDaemon) -> None:
    mounted = make_overlay({"app": {"lib": files(20), "doc": files(3)}}, counting=True)
    daemon = make_daemon(mount_policy(mounted)).start(watching=3)
    for _ in range(3):
        os.listdir(mounted.at("app/lib"))
    daemon.wait_state("active", b"app/lib")
    lookups = mounted.counted.counts()
    for n in range(50):
        assert not os.path.exists(mounted.at(f"app/lib/missing{n}"))
    print(lookups, mounted.counted.counts())
    print(daemon.tail(100))
    print(daemon.status())
    print(daemon.scrape())
