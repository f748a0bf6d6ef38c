"""How many directories there are in a directory, from the source's watches or from the server."""

import asyncio
import os
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

from promoterd.families import Families
from support.mounts import taken
from support.overlays import MountedOverlay
from support.trees import files
from test_worker import until

MakeOverlay = Callable[..., MountedOverlay]
RULES: list[dict[str, Any]] = [
    {"path": "never", "promote": "never"},
    {"path": "app/no*", "growing": True},
    {"path": "**"},
]


def test_a_source_that_watches_each_directory_knows_by_itself(make_overlay: MakeOverlay) -> None:
    with taken(make_overlay({"app": files(1)})) as mount:
        families = Families(mount, mount.policy.may_promote)
        watched = [b"", b"app", b"app/lib", b"app/bin", b"app/lib/deep"]
        families.source = cast("Any", SimpleNamespace(arms=True, paths=lambda: watched))
        assert families.counts({b"", b"app", b"app/bin", b"unknown"}) == {b"": 1, b"app": 2}


def test_otherwise_the_server_is_asked_once(make_overlay: MakeOverlay) -> None:
    tree = {"app": {"lib": files(1), "bin": {}, "not": {}, "file": "x"}, "never": {"sub": {}}, "empty": {}}
    mounted = make_overlay(tree, counting=True)
    with taken(mounted, RULES) as mount:
        families = Families(mount, mount.policy.may_promote)
        heads = {b"app", b"never", b"empty", b"gone"}

        async def ask() -> None:
            finding = asyncio.create_task(families.run())
            assert families.counts(heads) is None
            for _ in range(500):
                if families.counts(heads) is not None:
                    break
                await asyncio.sleep(0.01)
            assert families.counts(heads) == {b"app": 2, b"never": 0, b"empty": 0, b"gone": 0}
            assert mounted.counted.counts()["READDIR"] > 0
            mounted.counted.reset()
            assert families.counts(heads) is not None
            assert mounted.counted.counts()["READDIR"] == 0
            clock = mount.clock
            mount.clock = lambda: clock() + 4000
            assert families.counts(heads) is None, "after an hour it may be so no more"
            finding.cancel()
            await asyncio.wait({finding})

        asyncio.run(ask())


def test_a_layer_that_cannot_be_looked_at_for_a_moment_ends_nothing(make_overlay: MakeOverlay) -> None:
    mounted = make_overlay({"app": {"lib": files(1), "bin": files(1)}})
    layer = mounted.layers[0]
    with taken(mounted) as mount:
        families = Families(mount, lambda _: True)

        async def count() -> None:
            work = asyncio.create_task(families.run())
            os.rename(layer, layer + b".away")
            assert families.counts([b"app"]) is None
            await asyncio.sleep(0.3)
            os.rename(layer + b".away", layer)
            assert not work.done()
            await until(lambda: families.counts([b"app"]) == {b"app": 2})
            work.cancel()

        asyncio.run(count())
