"""A metadata layer and the book that is kept of it: whatever breaks off, nothing answers for lower unwatched."""

import asyncio
import errno
import os
import shutil
import stat
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, suppress
from dataclasses import replace

import pytest

from promoterd import promotion
from promoterd.activating import activate
from promoterd.backends.base import Busy, Plan
from promoterd.backends.layer import LayerBackend
from promoterd.backends.layer.placing import Placing
from promoterd.backends.layer.staging import Staging
from promoterd.errors import TripWire
from promoterd.inotify import IN_OPEN, Inotify
from promoterd.marking import complete
from promoterd.mounted import Mounted
from promoterd.overlay import activation, beneath, syscalls
from promoterd.overlay.listing import Layers
from promoterd.promotion import Outcome, promote, resync
from promoterd.reconcile import reconcile
from promoterd.staleness import follow, recheck
from promoterd.states import MARKED, State
from support.ballast import Ballast
from support.crashing import run_and_kill
from support.mounts import taken
from support.overlays import MountedOverlay
from support.promotions import Bench, View, assert_same_view, view_of
from support.soundness import assert_layer_is_sound, stage_leftovers
from support.trees import Node, Tree, files

MakeOverlay = Callable[..., MountedOverlay]
LIB, SUB, OTHER = b"app/lib", b"app/lib/sub", b"app/lib/other"
RULES = ({"path": "app", "growing": True}, {"path": "app/**", "min_age": "0s", "chain": False})
TREE: Tree = {"app": {"lib": {**files(4), "sub": files(2), "other": files(2)}}}


@pytest.fixture
def mounted(make_overlay: MakeOverlay) -> MountedOverlay:
    return make_overlay(TREE, layered=True, upper_fs="tmpfs")


def at_work(mounted: MountedOverlay) -> AbstractContextManager[Mounted]:
    return taken(mounted, RULES, backend="layer")


def write(path: bytes, content: bytes = b"new") -> None:
    with open(path, "wb") as file:
        file.write(content)


class TestStopped:
    def test_what_was_completed_before_it_stopped_is_looked_after(
        self, mounted: MountedOverlay, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A directory that is there already is brought in line after its children were put into place."""
        with at_work(mounted) as mount:
            assert asyncio.run(promote(mount, SUB)).outcome is Outcome.MARKED
            with monkeypatch.context() as patch:
                patch.setattr(Placing, "merge", full)
                done = asyncio.run(promote(mount, LIB))
            assert done.outcome is Outcome.FAILED
            assert "the layer's file system is full" in str(done.reason)
            assert sorted(assert_layer_is_sound(mounted)) == [OTHER, SUB]
            assert mount.book.is_marked(OTHER), "else nobody would compare it with the server"
            write(mounted.on_server(OTHER + b"/new"))
            asyncio.run(recheck(mount, [OTHER]))
            asyncio.run(activate(mount))
            assert os.path.exists(mounted.at(OTHER + b"/new"))

    @pytest.mark.parametrize("error", [errno.EIO, errno.ENOSPC])
    @pytest.mark.parametrize("sync", [1, 2, 3])
    def test_a_half_without_its_twin_does_not_stay(
        self, mounted: MountedOverlay, monkeypatch: pytest.MonkeyPatch, sync: int, error: int
    ) -> None:
        """syncfs(2) tells of an error that hit any write before it: before, between and after the two renames."""
        before = view_of(mounted)
        real, syncs = syscalls.syncfs, 0

        def fails(descriptor: int) -> None:
            nonlocal syncs
            syncs += 1
            if syncs == sync:
                raise OSError(error, os.strerror(error))
            real(descriptor)

        with at_work(mounted) as mount:
            with monkeypatch.context() as patch:
                patch.setattr(syscalls, "syncfs", fails)
                with suppress(TripWire):
                    assert asyncio.run(promote(mount, LIB)).outcome is Outcome.FAILED
            assert mount.tripped is (error == errno.EIO)
            marked = assert_layer_is_sound(mounted)
            assert bool(marked) is (sync == 3)
            assert {record.path for record in mount.book.in_states(MARKED)} == set(marked)
            assert_same_view(without_times(before), without_times(view_of(mounted)))
            assert stage_leftovers(mounted) == []

    def test_a_resync_that_stops_lets_go_of_what_the_kernel_has_cached(
        self, mounted: MountedOverlay, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with at_work(mounted) as mount:
            asyncio.run(promote(mount, LIB))
            asyncio.run(activate(mount))
            write(mounted.on_server(LIB + b"/new"))
            mount.unsettled = False
            with monkeypatch.context() as patch:
                patch.setattr(Placing, "merge", full)
                with pytest.raises(OSError, match="No space"):
                    asyncio.run(resync(mount, LIB))
            assert mount.unsettled

    @pytest.mark.parametrize("limit", [True, False], ids=["by policy", "in truth"])
    def test_without_room_to_bring_it_in_line_it_is_reopened(
        self, mounted: MountedOverlay, monkeypatch: pytest.MonkeyPatch, *, limit: bool
    ) -> None:
        """It would hide what the server has added for as long as the disk is full."""
        with at_work(mounted) as mount:
            asyncio.run(promote(mount, LIB))
            asyncio.run(activate(mount))
            write(mounted.on_server(LIB + b"/new"))
            with monkeypatch.context() as patch:
                if limit:
                    patch.setattr(mount, "free_space_lack", lambda: "there is too little")
                else:
                    patch.setattr(Staging, "build", full)
                assert LIB in asyncio.run(recheck(mount, [LIB]))
            assert not mount.book.is_marked(LIB)
            assert os.path.exists(mounted.at(LIB + b"/new"))
            assert LIB not in assert_layer_is_sound(mounted)


def full(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class TestKilled:
    def test_in_the_removal_of_a_ghost(self, mounted: MountedOverlay) -> None:
        """R1: half of it would be a ghost for ever, since no mark tells of it."""
        with at_work(mounted) as mount:
            asyncio.run(promote(mount, LIB))
            asyncio.run(activate(mount))
        shutil.rmtree(mounted.on_server(LIB))
        bench = Bench(mounted, "layer")

        def remove() -> None:
            with bench.layers() as layers:
                bench.backend.remove_ghost(layers, LIB)

        run_and_kill(remove, lambda: has_one_half(mounted, LIB))
        assert has_one_half(mounted, LIB)
        with at_work(mounted) as mount:
            asyncio.run(reconcile(mount, rebuild=False))
            assert mount.unsettled
            asyncio.run(activate(mount))
        assert not os.path.lexists(mounted.at(LIB))
        assert assert_layer_is_sound(mounted) == []

    def test_in_a_promotion_of_which_the_ledger_was_lost(self, mounted: MountedOverlay) -> None:
        """I5: without its twin, nothing says whose the files half is, and nobody would keep it true."""
        before = view_of(mounted)
        bench = Bench(mounted, "layer")
        run_and_kill(lambda: bench.mark(LIB), lambda: has_one_half(mounted, LIB))
        assert has_one_half(mounted, LIB)
        assert_same_view(before, view_of(mounted))
        with at_work(mounted) as mount:
            asyncio.run(reconcile(mount, rebuild=True))
        assert assert_layer_is_sound(mounted) == []
        assert stage_leftovers(mounted) == []
        assert_same_view(before, view_of(mounted))

    def test_in_a_resync_that_was_done_but_for_its_effect(self, mounted: MountedOverlay) -> None:
        """The record is right already, so that the recheck finds nothing to do; a name once missed stays missing."""
        with at_work(mounted) as mount:
            asyncio.run(promote(mount, LIB))
            asyncio.run(activate(mount))
        assert not os.path.lexists(mounted.at(LIB + b"/new"))
        write(mounted.on_server(LIB + b"/new"))
        run_and_kill(lambda: Bench(mounted, "layer").resync(LIB), None)
        with at_work(mounted) as mount:
            asyncio.run(reconcile(mount, rebuild=False))
            assert mount.unsettled
            asyncio.run(activate(mount))
        assert os.path.lexists(mounted.at(LIB + b"/new"))


def has_one_half(mounted: MountedOverlay, path: bytes) -> bool:
    return os.path.exists(mounted.in_files(path)) and not os.path.exists(mounted.in_rest(path))


def test_no_proof_where_a_directory_could_not_be_looked_at(
    mounted: MountedOverlay, monkeypatch: pytest.MonkeyPatch
) -> None:
    """R13: another inode than before is proof, and that there was nothing to be seen before is none."""
    with at_work(mounted) as mount:
        assert isinstance(mount.backend, LayerBackend)
        asyncio.run(promote(mount, LIB))
        inodes, times = activation.inodes, 0

        def fails_first(layers: Layers, paths: Iterable[bytes]) -> dict[bytes, int]:
            nonlocal times
            times += 1
            return {} if times == 1 else inodes(layers, paths)

        with monkeypatch.context() as patch:
            patch.setattr(activation, "inodes", fails_first)
            assert LIB not in asyncio.run(activate(mount)).active
        assert LIB in asyncio.run(activate(mount)).active


def test_a_watch_of_ours_does_not_keep_what_is_young_from_asking_the_server(mounted: MountedOverlay) -> None:
    """R7, R11."""
    rules = ({"path": "app", "growing": True}, {"path": "app/**", "min_age": "0s", "chain": False})
    with taken(mounted, rules, backend="layer") as mount, Inotify() as ours:
        asyncio.run(promote(mount, LIB))
        asyncio.run(activate(mount))
        with Layers(mount.overlay) as layers, beneath.opened(layers.root, LIB) as directory:
            watch = ours.add(directory, IN_OPEN)
        mount.disarm = lambda paths: ours.remove(watch) if LIB in paths else None
        write(mounted.on_server(LIB + b"/new"))
        mount.policy = mount.policy.model_copy(
            update={"rules": [rule.model_copy(update={"min_age": 3600.0}) for rule in mount.policy.rules]}
        )
        asyncio.run(recheck(mount, [LIB]))
        assert mount.book.state(LIB) is State.STALE
        assert mount.unsettled
        asyncio.run(activate(mount))
        write(mounted.on_server(LIB + b"/soon after"))
        assert os.path.exists(mounted.at(LIB + b"/soon after"))


def test_what_comes_into_the_layer_beside_a_promotion_is_heard_anew(
    mounted: MountedOverlay, monkeypatch: pytest.MonkeyPatch
) -> None:
    """R11: also where something else was brought into effect between the plan and the marks."""
    rules: list[dict[str, object]] = [{"path": "app/lib/other", "promote": "never"}, *RULES]
    heard: list[bytes] = []
    with taken(mounted, rules, backend="layer") as mount:
        mount.heard, mount.rearm = (lambda: [LIB, SUB, OTHER]), heard.extend

        async def late(mount: Mounted, plan: Plan) -> list[bytes]:
            await activate(mount)
            heard.clear()
            return await complete(mount, plan)

        monkeypatch.setattr(promotion, "complete", late)
        asyncio.run(promote(mount, LIB))
        assert heard == []
        asyncio.run(activate(mount))
        assert not mount.book.is_marked(OTHER)
        assert {LIB, SUB, OTHER} <= set(heard)
        assert mount.renewing == set()


def test_below_a_directory_that_is_held_as_it_was_nothing_is_taken_for_new(mounted: MountedOverlay) -> None:
    """R11, R13: it gets another inode, but is looked up in the layers that the one above it was made of."""
    with at_work(mounted) as mount:
        mount.heard = lambda: [LIB, SUB, OTHER]
        held = os.open(mounted.at("app"), os.O_RDONLY)
        try:
            asyncio.run(promote(mount, SUB))
            found = asyncio.run(activate(mount))
            assert (found.active, found.pinned) == ((), (SUB,))
            assert mount.renewing == {b"app", LIB}
        finally:
            os.close(held)
        assert asyncio.run(activate(mount)).active == (SUB,)
        assert mount.renewing == set()


def test_what_an_activation_keeps_unheard_is_to_be_heard_all_the_same(
    mounted: MountedOverlay, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who promotes something beside it meanwhile would leave it out else, and its watch would go dead the next time."""
    heard, seen = {OTHER, SUB}, set[bytes]()
    with taken(mounted, RULES, backend="layer") as mount:
        mount.heard, mount.disarm, mount.rearm = (lambda: [*heard]), heard.difference_update, heard.update

        def sweep(_: Layers) -> int:
            seen.update(mount.to_be_heard())
            assert OTHER not in heard
            mount.renew([OTHER])
            return 0

        monkeypatch.setattr(mount.backend, "sweep", sweep)
        mount.renew([OTHER])
        asyncio.run(activate(mount))
        assert seen == {OTHER, SUB}
        assert mount.renewing == {OTHER}, "for the next time"
        assert mount.rehearing == frozenset()
        assert heard == {OTHER, SUB}


@pytest.mark.parametrize("what", ["inodes", "blocks"])
def test_a_full_disk(make_overlay: MakeOverlay, what: str) -> None:
    """I5, ENOSPC on the layer's file system: a little more room each time, so that it is another step that fails."""
    more: dict[str | bytes, Node] = {f"d{number}": files(2) for number in range(40)}
    tree: Tree = {"app": {"lib": {**files(4), "sub": files(2), "other": {**files(2), **more}}}}
    mounted = make_overlay(tree, layered=True, upper_fs="ext4", upper_size=4 * 1024 * 1024)
    before = view_of(mounted)
    outcomes = set()
    with at_work(mounted) as mount:
        asyncio.run(promote(mount, SUB))
        for leave in range(0, 400, 7):
            ballast = Ballast(mounted)
            (ballast.fill_inodes if what == "inodes" else ballast.fill_blocks)(leave)
            outcome = asyncio.run(promote(mount, LIB)).outcome
            outcomes.add(outcome)
            assert_same_view(without_times(before), without_times(view_of(mounted)))
            ballast.clear()
            assert_layer_is_sound(mounted)
            for path in (LIB, OTHER):
                if mount.book.state(path) is State.STALE:
                    asyncio.run(recheck(mount, [path]))
            if mount.book.is_marked(LIB):
                break
        assert Outcome.FAILED in outcomes
        assert mount.book.is_marked(LIB)
        asyncio.run(activate(mount))
        asyncio.run(follow(mount, [b"app"]))
        assert {LIB, SUB, OTHER} <= set(assert_layer_is_sound(mounted))
        assert_same_view(before, view_of(mounted))


@pytest.mark.needs("fuse")
@pytest.mark.parametrize("error", [errno.EIO, errno.ESTALE, errno.EDQUOT])
def test_a_server_that_fails(make_overlay: MakeOverlay, error: int) -> None:
    """While it is planned, while it is built and while it is verified; nothing is marked, and the next time it is."""
    mounted = make_overlay(TREE, layered=True, counting=True)
    before = view_of(mounted)
    bench = Bench(mounted, "layer", batch=2)
    failed_at = []
    for after in (0, 1, 2, 3, 99):
        plan, batches = None, 0
        try:
            if not after:
                mounted.counted.fail(error)
            plan = bench.plan(LIB)
            for _ in bench.backend.shadow(plan):
                batches += 1
                if batches == after:
                    mounted.counted.fail(error)
            mounted.counted.fail(error)
            with pytest.raises((OSError, Busy)):
                bench.backend.complete(plan)
        except OSError:
            failed_at.append(after)
        finally:
            mounted.counted.fail(0)
            if plan is not None:
                bench.backend.abandon(plan)
        assert assert_layer_is_sound(mounted) == []
        assert stage_leftovers(mounted) == []
        bench.activate()
        assert_same_view(before, view_of(mounted))
    assert failed_at == [0, 1, 2, 3], "and then only when it was verified"
    bench.promote(LIB)
    assert_same_view(before, view_of(mounted))


def without_times(view: View) -> View:
    return {path: replace(entry, mtime_ns=0) if stat.S_ISDIR(entry.mode) else entry for path, entry in view.items()}
