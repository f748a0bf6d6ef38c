"""One promotion at a time, in this process: what stops it, and what it leaves."""

import asyncio
import errno
import os
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from promoterd.backends.base import Plan
from promoterd.errors import LedgerError, Refused, TripWire
from promoterd.promotion import RETRY_FIRST, Outcome, Promotion, promote
from promoterd.queueing import is_due
from promoterd.reconcile import reconcile
from promoterd.states import State
from support.mounts import taken
from support.overlays import MountedOverlay
from support.promotions import assert_marks_are_sound, assert_same_view, scratch_leftovers, view_of
from support.soundness import REDIRECT
from support.trees import files

MakeOverlay = Callable[..., MountedOverlay]
LIB = b"app/lib"


def at_the_end(do: Callable[[], Any]) -> Callable[[int, int], None]:
    """A progress that does something when the last batch is about to be copied."""

    def progress(done: int, of: int) -> None:
        if done >= of:
            do()

    return progress


def test_its_outcome_and_its_states(make_overlay: MakeOverlay) -> None:
    mounted = make_overlay({"app": {"lib": {**files(3), "sub": files(2)}}})
    view = view_of(mounted)
    with taken(mounted) as mount:
        done = asyncio.run(promote(mount, LIB))
        assert done == Promotion(LIB, Outcome.MARKED, (LIB + b"/sub", LIB), 6)
        assert {record.path: (record.state, record.entries) for record in mount.book.in_states(set(State))} == {
            LIB: (State.COMPLETE, 4),
            LIB + b"/sub": (State.COMPLETE, 2),
        }
        assert mount.upper_ledger.unfinished() == []
        assert mount.followed == {b"app"}
        assert mount.busy == set()
        assert scratch_leftovers(mounted) == []
        assert_same_view(view, view_of(mounted))


def test_a_pause_in_the_last_batch_stops_it_before_the_mark(make_overlay: MakeOverlay) -> None:
    mounted = make_overlay({"app": {"lib": files(5)}})
    with taken(mounted) as mount:
        with pytest.raises(TripWire, match="by hand"):
            asyncio.run(promote(mount, LIB, progress=at_the_end(lambda: mount.pause("paused by hand"))))
        assert assert_marks_are_sound(mounted) == []
        assert mount.book.state(LIB) is State.HOT
        assert [entry.path for entry in mount.upper_ledger.unfinished()] == [LIB], "the next start goes on with it"
        with pytest.raises(TripWire):
            asyncio.run(promote(mount, LIB))
        mount.resume()
        assert asyncio.run(promote(mount, LIB)).outcome is Outcome.MARKED
        assert mount.upper_ledger.unfinished() == []


def test_a_shadow_that_reads_wrong_is_never_marked(make_overlay: MakeOverlay, monkeypatch: pytest.MonkeyPatch) -> None:
    mounted = make_overlay({"app": {"lib": files(5)}})

    def spoil_and(complete: Callable[[Plan], list[bytes]], plan: Plan) -> list[bytes]:
        os.setxattr(mounted.in_upper("app/lib/f0001"), REDIRECT, b"/no/such/file")
        mounted.cool()
        return complete(plan)

    with taken(mounted) as mount:
        monkeypatch.setattr(mount.backend, "complete", partial(spoil_and, mount.backend.complete))
        assert asyncio.run(promote(mount, LIB)).outcome is not Outcome.MARKED
        assert assert_marks_are_sound(mounted) == []


@pytest.mark.parametrize(("error", "trips"), [(errno.EIO, True), (errno.ESTALE, True), (errno.ENOSPC, False)])
def test_what_fails_when_the_shadows_are_verified(
    make_overlay: MakeOverlay, monkeypatch: pytest.MonkeyPatch, error: int, trips: bool
) -> None:
    """EIO and ESTALE come from a disk, or from what we copied up ourselves: that trips the wire (R15)."""
    mounted = make_overlay({"app": {"lib": files(2)}})

    def fail(_plan: Plan) -> list[bytes]:
        raise OSError(error, os.strerror(error))

    with taken(mounted) as mount:
        monkeypatch.setattr(mount.backend, "complete", fail)
        if trips:
            with pytest.raises(TripWire, match="its shadows were verified"):
                asyncio.run(promote(mount, LIB))
        else:
            assert asyncio.run(promote(mount, LIB)).outcome is Outcome.FAILED
    with taken(mounted) as mount:
        assert mount.tripped is trips, "a restart is no reason to go on"


@pytest.mark.parametrize("change", ["replaced", "deleted", "written in"])
@pytest.mark.parametrize(("error", "trips"), [(errno.EIO, True), (errno.ESTALE, False)])
def test_a_stale_handle_of_what_the_server_changed_is_a_failure_like_any_other(
    make_overlay: MakeOverlay, monkeypatch: pytest.MonkeyPatch, change: str, error: int, *, trips: bool
) -> None:
    """R15: a server that exchanges a release meanwhile is no reason to stop; what is broken without a change is."""
    mounted = make_overlay({"app": {"lib": files(2)}})
    lower = mounted.on_server("app/lib")

    def change_and_fail(_plan: Plan) -> list[bytes]:
        if change == "written in":
            os.mkdir(lower + b"/new")
        else:
            os.rename(lower, mounted.on_server("app/before"))
        if change == "replaced":
            os.mkdir(lower)
        raise OSError(error, os.strerror(error))

    with taken(mounted) as mount:
        monkeypatch.setattr(mount.backend, "complete", change_and_fail)
        if trips:
            with pytest.raises(TripWire, match="its shadows were verified"):
                asyncio.run(promote(mount, LIB))
        else:
            assert asyncio.run(promote(mount, LIB)).outcome is Outcome.FAILED
            assert mount.book.state(LIB) is State.FAILED
        assert mount.tripped is trips


def test_the_end_of_the_daemon_stops_it_between_two_batches(make_overlay: MakeOverlay) -> None:
    mounted = make_overlay({"app": {"lib": files(5)}})
    with taken(mounted) as mount:

        def stop(_done: int, _of: int) -> None:
            mount.stopping = True

        done = asyncio.run(promote(mount, LIB, progress=stop))
        assert (done.outcome, "the daemon is stopping" in (done.reason or "")) == (Outcome.BUSY, True)
        assert assert_marks_are_sound(mounted) == []


def test_an_upper_layer_that_fills_up_meanwhile(make_overlay: MakeOverlay) -> None:
    mounted = make_overlay({"app": {"lib": files(5)}}, upper_fs="tmpfs", upper_size=4 << 20)
    with taken(mounted, limits={"min_free_space": "2MiB", "concurrency": 1}) as mount:

        def fill() -> None:
            with open(mounted.at("filler"), "wb") as file:
                file.write(b"x" * (3 << 20))

        filled = False

        def progress(done: int, of: int) -> None:
            nonlocal filled
            if not filled:
                fill()
            filled = True
            del done, of

        done = asyncio.run(promote(mount, LIB, progress=progress))
        assert done.outcome is Outcome.BUSY
        assert "less free space than limits.min_free_space" in (done.reason or "")
        record = mount.book.get(LIB)
        assert record is not None
        assert record.state is State.FAILED
        assert record.retry_at is not None
        assert record.retry_at - record.since >= RETRY_FIRST - 1
        os.unlink(mounted.at("filler"))
        assert asyncio.run(promote(mount, LIB)).outcome is Outcome.MARKED


def test_each_failure_waits_longer(make_overlay: MakeOverlay) -> None:
    mounted = make_overlay({"app": {"lib": files(2)}}, upper_fs="tmpfs", upper_size=4 << 20)
    with open(mounted.at("filler"), "wb") as file:
        file.write(b"x" * 8192)
    with taken(mounted, limits={"min_free_space": "100%"}) as mount:
        waits = []
        for _ in range(4):
            begun = mount.clock()
            asyncio.run(promote(mount, LIB))
            record = mount.book.get(LIB)
            assert record is not None
            assert record.retry_at is not None
            waits.append(round((record.retry_at - begun) / RETRY_FIRST))
        assert waits == [1, 2, 4, 8]


def test_two_that_would_meet(make_overlay: MakeOverlay) -> None:
    mounted = make_overlay({"app": {"lib": {"sub": files(300)}, "bin": files(2)}})

    async def both() -> None:
        with taken(mounted, limits={"entries_per_second": 300}) as mount:
            first = asyncio.create_task(promote(mount, LIB))
            await asyncio.sleep(0.1)
            for path in (LIB, LIB + b"/sub", b"app"):
                with pytest.raises(Refused, match="it is being worked on already"):
                    await promote(mount, path)
            assert (await promote(mount, b"app/bin")).outcome is Outcome.MARKED
            assert (await first).outcome is Outcome.MARKED

    asyncio.run(both())


def test_what_is_complete_on_disk_is_taken_up(make_overlay: MakeOverlay) -> None:
    """A ledger that has forgotten one directory only: nothing is done twice, and nothing goes round in circles."""
    mounted = make_overlay({"app": {"lib": files(2)}})
    with taken(mounted) as mount:
        asyncio.run(promote(mount, LIB))
        mount.book.forget([LIB], reason="forgotten")
        done = asyncio.run(promote(mount, LIB))
        assert (done.outcome, done.entries) == (Outcome.MARKED, 0)
        assert mount.book.is_marked(LIB)


def test_what_is_not_there(make_overlay: MakeOverlay) -> None:
    mounted = make_overlay({"app": {"lib": files(2)}})
    with taken(mounted) as mount:
        done = asyncio.run(promote(mount, b"app/none"))
        assert done.outcome is Outcome.GONE
        assert mount.book.get(b"app/none") is None, "it is not tried again"
        assert mount.upper_ledger.unfinished() == []
        assert mount.paused is None


@pytest.mark.parametrize("full_from", ["the start", "the copying", "the mark"])
def test_a_ledger_that_cannot_be_written_leaves_nothing_that_is_never_tried_again(
    make_overlay: MakeOverlay, monkeypatch: pytest.MonkeyPatch, full_from: str
) -> None:
    mounted = make_overlay({"app": {"lib": {**files(2), "sub": files(2)}}})

    def fail(*_: object) -> None:
        raise LedgerError(path="/state/ledger.sqlite", reason="database or disk is full")

    with taken(mounted) as mount, monkeypatch.context() as full:

        def fill() -> None:
            for name in ("write", "write_many"):
                full.setattr(mount.upper_ledger._database, name, fail)

        def fill_and(complete: Callable[[Plan], list[bytes]], plan: Plan) -> list[bytes]:
            marked = complete(plan)
            fill()
            return marked

        if full_from == "the start":
            mount.book.move(LIB, State.HOT, now=mount.clock())
            fill()
        elif full_from == "the mark":
            full.setattr(mount.backend, "complete", partial(fill_and, mount.backend.complete))
        with pytest.raises(LedgerError):
            asyncio.run(promote(mount, LIB, progress=at_the_end(fill) if full_from == "the copying" else None))
        full.undo()
        assert mount.busy == set()
        assert mount.book.state(LIB + b"/sub") is not State.SHADOWING
        if full_from == "the mark":
            assert mount.book.is_marked(LIB), "what is on disk is known (R10)"
            assert mount.book.is_marked(LIB + b"/sub")
        else:
            assert mount.book.state(LIB) is State.FAILED
            assert is_due(mount.book.get(LIB), mount.clock() + 2 * RETRY_FIRST)
            assert asyncio.run(promote(mount, LIB)).outcome is Outcome.MARKED
    with taken(mounted) as mount:
        again = asyncio.run(reconcile(mount, rebuild=False))
        assert again == ([LIB] if full_from == "the mark" else [])
        assert mount.book.is_marked(LIB)
        assert mount.book.is_marked(LIB + b"/sub")
