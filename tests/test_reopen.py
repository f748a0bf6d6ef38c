"""What is reopened with what, in this process; the backend's own tests have what that does to the layers."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from promoterd.errors import Deferred, Refused
from promoterd.mounted import Mounted
from promoterd.promotion import promote
from promoterd.reopen import reopen, reopen_wanted, why_not_live
from support.mounts import taken
from support.overlays import MountedOverlay
from support.promotions import assert_marks_are_sound
from support.trees import files

MakeOverlay = Callable[..., MountedOverlay]
TREE = {"app": {"a": files(2), "b": {"c": files(2), "d": {"e": files(2)}}}, "lib": files(2)}
QUIET: dict[str, Any] = {"quiet_period": "0s"}


def none(*paths: str) -> list[dict[str, str]]:
    return [{"path": path, "writers": "none"} for path in paths]


async def promoted(mount: Mounted, *paths: bytes) -> None:
    for path in paths:
        await promote(mount, path)


def test_complete_ancestors_of_all_and_nothing_else(make_overlay: MakeOverlay) -> None:
    mounted = make_overlay(TREE)

    async def work(mount: Mounted) -> None:
        await promoted(mount, b"app", b"lib")
        assert await reopen(mount, b"app/b/d/e", b"app/b/c") == [
            *(b"app", b"app/b", b"app/b/c", b"app/b/d", b"app/b/d/e")
        ]

    with taken(mounted, none("**"), **QUIET) as mount:
        asyncio.run(work(mount))
        assert sorted(assert_marks_are_sound(mounted)) == [b"app/a", b"lib"]
        assert mount.followed >= {b"app", b"app/b", b"app/b/d/e"}
        assert mount.upper_ledger.unfinished() == []
        assert mount.busy == set()


def test_one_rule_that_allows_writers_defers_the_whole_chain(make_overlay: MakeOverlay) -> None:
    mounted = make_overlay(TREE)

    async def work(mount: Mounted) -> None:
        await promoted(mount, b"app")
        with pytest.raises(Deferred, match="somebody may write in /app meanwhile"):
            await reopen_wanted(mount, b"app/b/c", b"app/b/d")

    with taken(mounted, [*none("app/**"), {"path": "app"}], **QUIET) as mount:
        asyncio.run(work(mount))
        assert len(assert_marks_are_sound(mounted)) == 6
        assert [deferred.path for deferred in mount.upper_ledger.deferred()] == [b"app/b/c", b"app/b/d"]
    with taken(mounted) as mount:
        assert len(mount.upper_ledger.deferred()) == 2, "also after a restart"


@pytest.mark.parametrize(("chain", "safe"), [([b"a"], True), ([b"a", b"a/b"], False), ([b"z"], False), ([], True)])
def test_why_not_live(make_overlay: MakeOverlay, chain: Sequence[bytes], safe: bool) -> None:
    with taken(make_overlay({}), [*none("a"), {"path": "a/b"}], backend="observe") as mount:
        assert (why_not_live(mount, chain) is None) is safe


def test_not_while_a_promotion_is_under_way_there(make_overlay: MakeOverlay) -> None:
    """A parent that is being marked relies on its complete children."""
    mounted = make_overlay({"app": {"lib": {"sub": files(2), **files(300)}}})

    async def work() -> None:
        with taken(mounted, none("**"), limits={"entries_per_second": 300}, **QUIET) as mount:
            await promote(mount, b"app/lib/sub")
            parent = asyncio.create_task(promote(mount, b"app/lib"))
            await asyncio.sleep(0.1)
            with pytest.raises(Refused, match="a promotion is under way there"):
                await reopen(mount, b"app/lib/sub")
            await parent
            assert await reopen(mount, b"app/lib/sub") == [b"app/lib", b"app/lib/sub"]

    asyncio.run(work())


def test_a_promotion_has_to_wait_as_well(make_overlay: MakeOverlay) -> None:
    mounted = make_overlay(TREE)

    async def work() -> None:
        with taken(mounted, none("**"), quiet_period="0.5s") as mount:
            await promote(mount, b"lib")
            reopening = asyncio.create_task(reopen(mount, b"lib"))
            await asyncio.sleep(0.2)
            with pytest.raises(Refused, match="it is being worked on already"):
                await promote(mount, b"lib")
            assert await reopening == [b"lib"]

    asyncio.run(work())
