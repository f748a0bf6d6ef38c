"""On a real client: how many requests are outstanding at most, what is reckoned, and what is known of answers."""

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from lab.guest import rpcs, server
from lab.guest.stack import Nfs, cool
from support.daemons import RunningDaemon, mount_policy
from support.overlays import MountedOverlay
from support.trees import Tree, files

MakeOverlay = Callable[..., MountedOverlay]
MakeDaemon = Callable[..., RunningDaemon]
TREE: Tree = {f"lib{number}": {**files(60), "big": b"x" * 700_000} for number in range(8)}
RULES = [{"path": "lib*", "promote": "always", "recheck": "1h", "xattrs": "skip"}]
OWN = "127.0.0.9"
"""An address of the server that nobody else uses: its connection is of this test alone."""


@contextmanager
def far_away() -> Iterator[None]:
    server.delay(4.0)
    try:
        yield
    finally:
        server.delay(0)


def most_outstanding(mountpoint: bytes) -> int:
    """The most requests that ever had a slot at once on the mount's connection, of which the client keeps two.

    ``max_slots`` of xs_tcp_print_stats(), net/sunrpc/xprtsock.c.
    """
    with open(rpcs.MOUNTSTATS, encoding="utf-8") as file:
        blocks = re.split(r"^device ", file.read(), flags=re.MULTILINE)
    (block,) = [block for block in blocks if f" mounted on {os.fsdecode(mountpoint)} " in block]
    found = re.search(r"^\s+xprt:\s+tcp (?:\d+ ){10}(\d+)", block, re.MULTILINE)
    assert found is not None
    return int(found[1])


@pytest.mark.parametrize(
    ("backend", "most"),
    [("opaque", 3), *(pytest.param(*case, marks=pytest.mark.thorough) for case in (("opaque", 6), ("layer", 3)))],
)
def test_never_more_are_outstanding_than_policy_says(
    make_overlay: MakeOverlay, make_daemon: MakeDaemon, backend: str, most: int
) -> None:
    nfs = Nfs("4.2", "actimeo=600,rsize=65536", address=OWN)  # a chunk of what is copied is one READ
    mounted = make_overlay(TREE, nfs, layered=backend == "layer")
    limits = {"max_outstanding": most, "concurrency": 4}
    data = {"copy_data": {"max_size": "1MiB", "budget": "64MiB"}} if backend == "layer" else {}
    with far_away():
        daemon = make_daemon(mount_policy(mounted, RULES, backend=backend, limits=limits, **data)).start()
        daemon.wait_state("active", *(b"lib%d" % number for number in range(8)))
    assert 2 <= most_outstanding(mounted.layers[0]) <= most
    assert most == 3 or most_outstanding(mounted.layers[0]) > 3, "they are made use of"


@pytest.mark.parametrize("backend", [pytest.param("opaque", marks=pytest.mark.thorough), "layer"])
def test_what_is_reckoned_is_about_what_is_asked(
    make_overlay: MakeOverlay, make_daemon: MakeDaemon, backend: str
) -> None:
    mounted = make_overlay({"lib": files(400)}, Nfs("4.2", "actimeo=600"), layered=backend == "layer")
    cool(mounted)
    policy = mount_policy(mounted, [{"path": "lib", "promote": "always", "recheck": "1h", "xattrs": "skip"}])
    policy["backend"] = backend
    with rpcs.counted() as counts:
        daemon = make_daemon(policy).start()
        daemon.wait_state("active", b"lib")
        daemon.wait_for(lambda: daemon.metric("promoterd_requests_total") > 0)
        reckoned = daemon.status()["heat_source"] and daemon.metric("promoterd_requests_total")
    assert counts.total / 3 <= reckoned <= 3 * counts.total, dict(counts.operations)
    if backend == "layer":
        assert counts.operations["LOOKUP"] < 10, "entries are told with the listing, whoever else walks over the tree"


def test_the_rate_follows_what_the_client_counts(make_overlay: MakeOverlay, make_daemon: MakeDaemon) -> None:
    mounted = make_overlay({"lib": files(300)}, Nfs("4.2", "actimeo=600"))
    rules = [{"path": "lib", "promote": "always", "recheck": "1h"}]
    daemon = make_daemon(mount_policy(mounted, rules, limits={"adaptive": True})).start()
    daemon.wait_for(lambda: (daemon.status()["pace"] or {}).get("answer_seconds"))
    pace = daemon.status()["pace"]
    assert 0 < pace["usual_seconds"] < 0.2
    assert pace["requests_per_second"] >= 20
    with far_away():
        daemon.wait_for(lambda: daemon.metric("promoterd_rate_cuts_total") > 0)
    assert daemon.metric("promoterd_answer_seconds") > 0
