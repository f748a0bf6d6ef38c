"""What is reopened with what, in this process; the backend's own tests have what that does to the layers."""

import asyncio
import os
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from promoterd import reopen as reopening
from promoterd.activating import activate
from promoterd.backends.base import Busy
from promoterd.backends.quiet import QuietPeriod
from promoterd.backends.reopening import reopen_upper
from promoterd.errors import Deferred, MountGone, Refused
from promoterd.mounted import Mounted
from promoterd.promotion import promote
from promoterd.reopen import reopen, reopen_all, reopen_deferred, reopen_wanted, why_not_live
from support.mounts import taken
from support.overlays import MountedOverlay
from support.promotions import assert_marks_are_sound, assert_same_view, view_of
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


class TestAll:
    """Everything on a mount, after one quiet period."""

    @pytest.fixture
    def waits(self, monkeypatch: pytest.MonkeyPatch) -> list[float]:
        """The quiet periods that were waited for; none of them takes time."""
        waited: list[float] = []

        async def wait(_mount: Mounted, seconds: float) -> None:
            waited.append(seconds)

        monkeypatch.setattr(reopening, "_wait", wait)
        return waited

    def test_one_quiet_period_for_any_number_of_trees(self, make_overlay: MakeOverlay, waits: list[float]) -> None:
        mounted = make_overlay({f"r{number:02}": {"lib": files(1), **files(1)} for number in range(20)})
        before = view_of(mounted)

        async def work(mount: Mounted) -> None:
            await promoted(mount, *(b"r%02d" % number for number in range(20)))
            assert len(assert_marks_are_sound(mounted)) == 40
            done, waiting = await reopen_all(mount)
            assert (len(done), waiting) == (40, [])

        with taken(mounted, none("**"), quiet_period="30s") as mount:
            asyncio.run(work(mount))
            assert mount.upper_ledger.unfinished() == []
            assert mount.busy == set()
        assert waits == [30.0]
        assert assert_marks_are_sound(mounted) == []
        assert_same_view(before, view_of(mounted))

    def test_one_in_which_somebody_wrote_holds_up_what_is_below_it_and_no_other(
        self, make_overlay: MakeOverlay, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        above = {**files(1), "c": files(2), "d": {"e": files(2)}}
        mounted = make_overlay({"app": {"a": files(2), "b": above}, "lib": files(2)})

        async def write(_mount: Mounted, _seconds: float) -> None:
            os.unlink(mounted.at("app/b/f0000"))

        async def work(mount: Mounted) -> None:
            await promoted(mount, b"app", b"lib")
            await activate(mount)
            monkeypatch.setattr(reopening, "_wait", write)
            done, waiting = await reopen_all(mount)
            assert done == [b"app", b"app/a", b"lib"]
            assert [path for path, _ in waiting] == [b"app/b", b"app/b/c", b"app/b/d", b"app/b/d/e"]
            assert "somebody wrote there in the last 30 s" in waiting[0][1]
            assert waiting[1][1].startswith("/app/b stays complete: somebody wrote there")

        with taken(mounted, none("**"), quiet_period="30s") as mount:
            asyncio.run(work(mount))
            assert len(mount.upper_ledger.deferred()) == 4
            assert mount.upper_ledger.unfinished() == []
        assert len(assert_marks_are_sound(mounted, deleted=[b"app/b/f0000"])) == 4

    def test_one_that_is_refused_is_noted_as_well(self, make_overlay: MakeOverlay) -> None:
        """Where nobody writes any more `promoterd reopen --offline --deferred` does what is noted."""
        mounted = make_overlay({"app": {"sub": files(2), **files(300)}, "lib": files(2)})

        async def work() -> None:
            with taken(mounted, none("**"), limits={"entries_per_second": 300}, **QUIET) as mount:
                await promoted(mount, b"app/sub", b"lib")
                parent = asyncio.create_task(promote(mount, b"app"))
                await asyncio.sleep(0.1)
                assert await reopen_all(mount) == ([b"lib"], [(b"app/sub", "a promotion is under way there")])
                assert [deferred.path for deferred in mount.upper_ledger.deferred()] == [b"app/sub"]
                await parent
                await reopen_deferred(mount)
                assert mount.upper_ledger.deferred() == []

        asyncio.run(work())
        assert assert_marks_are_sound(mounted) == []

    @pytest.mark.parametrize("patience", [30.0, 0.05])
    def test_a_promotion_that_was_completing_when_it_was_retired_leaves_no_mark_that_nobody_undoes(
        self, make_overlay: MakeOverlay, monkeypatch: pytest.MonkeyPatch, patience: float
    ) -> None:
        mounted = make_overlay(TREE)
        monkeypatch.setattr(reopening, "_PATIENCE", patience)

        async def work() -> None:
            with taken(mounted, none("**"), **QUIET) as mount:
                complete = mount.backend.complete

                completing = threading.Event()

                def slowly(plan: Any) -> list[bytes]:
                    completing.set()
                    time.sleep(0.5)
                    return complete(plan)

                monkeypatch.setattr(mount.backend, "complete", slowly)
                promotion = asyncio.create_task(promote(mount, b"lib"))
                await asyncio.to_thread(completing.wait)
                mount.retire()
                done, waiting = await reopen_all(mount)
                await promotion
                if patience > 1:
                    assert (done, waiting) == ([b"lib"], [])
                else:
                    assert (done, waiting) == ([], [(b"lib", "a promotion is under way there")])
                    assert [deferred.path for deferred in mount.upper_ledger.deferred()] == [b"lib"]
                    await reopen_deferred(mount)

        asyncio.run(work())
        assert assert_marks_are_sound(mounted) == []


class TestTheQuietPeriod:
    """It takes no thread, pins nothing, and may be broken off."""

    @pytest.fixture
    def begun(self, monkeypatch: pytest.MonkeyPatch) -> threading.Event:
        """Set when a period has begun."""
        event, begin = threading.Event(), QuietPeriod.begin

        def beginning(period: QuietPeriod) -> None:
            begin(period)
            event.set()

        monkeypatch.setattr(QuietPeriod, "begin", beginning)
        return event

    @staticmethod
    async def until(begun: threading.Event) -> None:
        await asyncio.to_thread(begun.wait)
        await asyncio.sleep(0.05)

    def test_it_is_no_call_and_holds_nothing(self, make_overlay: MakeOverlay, begun: threading.Event) -> None:
        mounted = make_overlay(TREE)

        async def work(mount: Mounted) -> None:
            await promote(mount, b"lib")
            before = assert_marks_are_sound(mounted)
            open_before = descriptors()
            work = asyncio.create_task(reopen(mount, b"lib"))
            await self.until(begun)
            assert mount.pool.running == 0
            held = {os.readlink(f"/proc/self/fd/{number}") for number in descriptors() - open_before}
            assert held == {"anon_inode:inotify"}
            mounted.umount()
            with pytest.raises(MountGone):
                await work
            assert mount.busy == set()
            assert mount.upper_ledger.unfinished() == []
            mounted.mount()
            assert assert_marks_are_sound(mounted) == before

        with taken(mounted, none("**"), quiet_period="0.5s") as mount:
            asyncio.run(work(mount))

    @pytest.mark.parametrize("how", ["cancelled", "stopping"])
    def test_it_may_be_broken_off(self, make_overlay: MakeOverlay, begun: threading.Event, how: str) -> None:
        mounted = make_overlay(TREE)

        async def work(mount: Mounted) -> None:
            await promote(mount, b"lib")
            before = descriptors()
            work = asyncio.create_task(reopen(mount, b"lib"))
            await self.until(begun)
            assert descriptors() - before
            if how == "cancelled":
                work.cancel()
            else:
                mount.stopping = True
            started = time.monotonic()
            with pytest.raises(asyncio.CancelledError if how == "cancelled" else MountGone):
                await work
            assert time.monotonic() - started < 5
            assert descriptors() <= before
            assert mount.busy == set()
            assert not mount.changing.locked()
            assert mount.upper_ledger.unfinished() == []

        with taken(mounted, none("**"), quiet_period="60s") as mount:
            asyncio.run(work(mount))
            assert len(assert_marks_are_sound(mounted)) == 1

    def test_a_period_that_ends_before_it_has_begun_leaves_nothing_open(self, make_overlay: MakeOverlay) -> None:
        mounted = make_overlay(TREE)
        with taken(mounted, none("**")) as mount:
            before = descriptors()
            period = QuietPeriod(mount.overlay, [b"lib"], 0.0)
            period.close()
            period.begin()
            assert descriptors() == before
            with pytest.raises(Busy, match="nobody watches it"):
                reopen_upper(mount.overlay, [b""], check_quiet=lambda: period.check([b""]))


def descriptors() -> set[int]:
    """What this process holds open."""
    found = {int(name) for name in os.listdir("/proc/self/fd")}
    return {number for number in found if os.path.lexists(f"/proc/self/fd/{number}")}
