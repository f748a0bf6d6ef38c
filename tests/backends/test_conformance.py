"""What every backend that marks has to keep, on real overlays."""

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from promoterd.backends.base import Busy, MarkState, Plan
from promoterd.errors import Refused
from promoterd.overlay import xattrs
from promoterd.overlay.listing import Layers
from promoterd.paths import parent
from support.overlays import MountedOverlay
from support.promotions import (
    Bench,
    allow,
    assert_marks_are_sound,
    assert_same_view,
    scratch_leftovers,
    upper_directories,
)
from support.rich import add_socket, rich_tree
from support.soundness import lower_names
from support.trees import Directory, files

LIB = b"opt/lib"
MakeOverlay = Callable[..., MountedOverlay]
MakeBench = Callable[..., Bench]


@pytest.fixture(params=["opaque", "field"])
def bench(request: pytest.FixtureRequest, make_overlay: MakeOverlay, third_party: None) -> MakeBench:
    del third_party

    def make(*lowers: object, **options: object) -> Bench:
        return Bench(make_overlay(*lowers, **options), request.param)

    return make


@pytest.fixture
def rich(bench: MakeBench) -> Bench:
    made = bench(rich_tree())
    add_socket(made.mounted.on_server("opt/lib"))
    add_socket(made.mounted.on_server("opt/lib/sub"))
    return made


def access_times(top: bytes) -> dict[bytes, int]:
    """The access time of every entry; read so that none changes."""
    found = {}

    def look(descriptor: int, path: bytes) -> None:
        for name in map(os.fsencode, os.listdir(descriptor)):
            status = os.stat(name, dir_fd=descriptor, follow_symlinks=False)
            found[path + b"/" + name] = status.st_atime_ns
            if stat.S_ISDIR(status.st_mode):
                below = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOATIME, dir_fd=descriptor)
                try:
                    look(below, path + b"/" + name)
                finally:
                    os.close(below)

    root = os.open(top, os.O_RDONLY | os.O_DIRECTORY | os.O_NOATIME)
    try:
        look(root, b"")
    finally:
        os.close(root)
    return {path: at for path, at in found.items() if not path.startswith(b"/.promoterd")}


class TestConformance:
    def test_everything_looks_as_before_at_every_step(self, rich: Bench) -> None:
        before = rich.view()
        plan = rich.plan(LIB)
        assert_same_view(before, rich.view())
        for _ in rich.backend.shadow(plan):
            pass
        assert_same_view(before, rich.view())
        marked = rich.backend.complete(plan)
        assert_same_view(before, rich.view())
        rich.activate()
        assert_same_view(before, rich.view())
        assert LIB in marked
        rich.remount()
        assert_same_view(before, rich.view())
        assert {directory for directory in marked if rich.on_disk(directory).in_effect} == set(marked)

    def test_access_times_stay(self, rich: Bench) -> None:
        before = access_times(rich.mounted.mountpoint)
        rich.promote(LIB)
        after = access_times(rich.mounted.mountpoint)
        assert {path: (before.get(path), at) for path, at in after.items() if before.get(path) != at} == {}

    def test_the_closure_is_marked_and_every_name_shadowed(self, rich: Bench) -> None:
        plan = rich.plan(LIB)
        assert rich.shadow(plan) >= plan.entries - len(plan.directories)
        marked = rich.backend.complete(plan)
        assert marked[-1] == LIB
        assert marked == [directory.path for directory in plan.directories]
        assert sorted(marked) == sorted(assert_marks_are_sound(rich.mounted))
        assert sum(len(lower_names(rich.mounted, path)) for path in marked) == plan.entries
        assert scratch_leftovers(rich.mounted) == []
        for path in marked:
            found = rich.on_disk(path)
            assert found.mark is MarkState.OURS
            assert found.provenance is not None
            assert found.provenance.backend == rich.backend.name
            assert found.provenance.is_at(path)

    def test_children_are_planned_before_their_parents(self, rich: Bench) -> None:
        order = [directory.path for directory in rich.plan(LIB).directories]
        for path in order:
            assert path == LIB or order.index(parent(path)) > order.index(path)

    def test_nothing_outside_the_closure_is_copied_up_but_ancestors(self, rich: Bench) -> None:
        rich.promote(LIB)
        assert os.listdir(rich.mounted.in_upper("opt")) == [b"lib"]

    def test_nothing_is_marked_before_complete(self, rich: Bench) -> None:
        plan = rich.plan(LIB)
        rich.shadow(plan)
        assert assert_marks_are_sound(rich.mounted) == []
        assert rich.on_disk(LIB).mark is MarkState.NONE

    def test_what_shadow_left_out_is_done_by_complete(self, rich: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        """For whatever reason it did: complete looks for itself and never believes."""
        before = rich.view()
        plan = rich.plan(LIB)
        _shadow_half(rich, plan, monkeypatch)
        rich.backend.complete(plan)
        assert len(assert_marks_are_sound(rich.mounted)) == len(plan.directories)
        rich.activate()
        assert_same_view(before, rich.view())

    def test_what_the_mark_relies_on_is_durable_before_it(self, rich: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        """I4: after the last copy-up and the provenance a sync, then the mark; and a child's before its parent's."""
        plan = rich.plan(LIB)
        rich.shadow(plan)
        log: list[tuple[str, bytes]] = []
        with _spied(monkeypatch, log):
            rich.backend.complete(plan)
        marks = [at for at, (what, _) in enumerate(log) if what == xattrs.OPAQUE]
        provenance = [at for at, (what, _) in enumerate(log) if what == xattrs.PROVENANCE]
        syncs = [at for at, (what, _) in enumerate(log) if what == "sync"]
        assert len(marks) == len(provenance) == len(plan.directories)
        assert any(max(provenance) < at < min(marks) for at in syncs), log
        assert syncs[-1] > max(marks)
        for at in marks:
            for later in marks:
                child, ancestor = log[at][1], log[later][1]
                if child.startswith(ancestor + b"/"):
                    assert any(at < sync < later for sync in syncs), (child, ancestor)

    def test_copy_ups_of_the_last_pass_are_durable_before_the_mark(
        self, rich: Bench, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        plan = rich.plan(LIB)
        _shadow_half(rich, plan, monkeypatch)
        log: list[tuple[str, bytes]] = []
        with _spied(monkeypatch, log):
            rich.backend.complete(plan)
        copies = [at for at, (what, _) in enumerate(log) if what == "copy"]
        marks = [at for at, (what, _) in enumerate(log) if what == xattrs.OPAQUE]
        assert copies
        assert any(max(copies) < at < min(marks) for at, (what, _) in enumerate(log) if what == "sync")

    @pytest.mark.parametrize("forbidden", [LIB, b"opt/lib/sub", b"opt/lib/sub/deeper/deepest"])
    def test_a_forbidden_directory_in_the_closure_refuses_it_untouched(self, rich: Bench, forbidden: bytes) -> None:
        """I3, I7: the blocking directory is named, and nothing has been copied up."""

        def of(path: bytes) -> object:
            return allow(forbidden="it is growing" if path == forbidden else None)(path)

        with pytest.raises(Refused) as refusal:
            rich.plan(LIB, of=of)  # type: ignore[arg-type]
        assert "it is growing" in refusal.value.message
        assert "/opt/lib" in refusal.value.message
        assert f"/{forbidden.decode()}" in refusal.value.message
        assert list(upper_directories(rich.mounted)) == [b""]

    def test_too_many_entries_refuse_untouched(self, rich: Bench) -> None:
        entries = rich.plan(LIB).entries
        assert rich.plan(LIB, max_entries=entries).entries == entries
        with pytest.raises(Refused, match=f"max_entries = {entries - 1}"):
            rich.plan(LIB, max_entries=entries - 1)
        assert list(upper_directories(rich.mounted)) == [b""]

    def test_children_first_where_the_rule_is_not_recursive(self, rich: Bench) -> None:
        with pytest.raises(Refused, match="recursive: false"):
            rich.plan(LIB, recursive=False)
        children = [b"opt/lib/" + os.fsencode(name) for name in os.listdir(rich.mounted.at("opt/lib"))]
        for child in [b"opt/lib/sub/deeper/deepest", b"opt/lib/sub/deeper", *sorted(children)]:
            if stat.S_ISDIR(os.lstat(rich.mounted.at(child)).st_mode):
                rich.promote(child, recursive=False)
        assert [directory.path for directory in rich.plan(LIB, recursive=False).directories] == [LIB]
        rich.promote(LIB, recursive=False)
        assert_marks_are_sound(rich.mounted)

    def test_batches_are_announced_before_they_are_done(self, bench: MakeBench) -> None:
        made = Bench(bench({"opt": {"lib": files(25)}}).mounted, batch=10)
        inside = made.mounted.in_upper("opt/lib")
        done = [(size, len(os.listdir(inside))) for size in made.backend.shadow(made.plan(LIB))]
        assert done == [(0, 0), (20, 0), (5, 20)]  # the directory is no entry of its own; then two lanes of a batch

    def test_an_abandoned_promotion_can_be_begun_again(self, rich: Bench) -> None:
        before = rich.view()
        steps = rich.backend.shadow(rich.plan(LIB))
        next(steps)
        next(steps)
        steps.close()  # type: ignore[attr-defined]
        assert_same_view(before, rich.view())
        rich.promote(LIB)
        assert_same_view(before, rich.view())
        assert_marks_are_sound(rich.mounted)

    def test_a_complete_directory_is_not_done_again(self, rich: Bench) -> None:
        rich.promote(LIB)
        os.unlink(rich.mounted.at("opt/lib/f0001"))
        before = rich.view()
        provenance = rich.on_disk(LIB).provenance
        plan = rich.plan(LIB)
        assert plan.directories == []
        rich.shadow(plan)
        assert rich.backend.complete(plan) == []
        assert rich.on_disk(LIB).provenance == provenance
        assert_same_view(before, rich.view())

    def test_a_complete_child_is_left_out_of_the_closure(self, rich: Bench) -> None:
        rich.promote(b"opt/lib/sub")
        rest = rich.plan(LIB)
        assert not [directory.path for directory in rest.directories if directory.path.startswith(b"opt/lib/sub")]
        rich.promote(LIB)
        assert_marks_are_sound(rich.mounted)

    @pytest.mark.needs("fuse")
    def test_missing_names_and_listings_cost_the_server_nothing(self, bench: MakeBench) -> None:
        """I1's purpose. Through a descriptor, so that the ancestors' own revalidation does not count."""
        made = bench({"opt": {"lib": {**files(50), "sub": files(5)}}}, counting=True)
        made.promote(LIB)
        for path in (LIB, b"opt/lib/sub"):
            directory = os.open(made.mounted.at(path), os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.stat(directory)
                made.mounted.counted.reset()
                for number in range(40):
                    with pytest.raises(FileNotFoundError):
                        os.stat(f"missing{number}", dir_fd=directory)
                names = os.listdir(directory)
                assert made.mounted.counted.total() == 0, made.mounted.counted.counts()
            finally:
                os.close(directory)
            assert len(names) == len(os.listdir(made.mounted.on_server(path)))

    @pytest.mark.needs("fuse")
    def test_before_the_promotion_they_do_cost(self, bench: MakeBench) -> None:
        made = bench({"opt": {"lib": files(50)}}, counting=True)
        directory = os.open(made.mounted.at(LIB), os.O_RDONLY | os.O_DIRECTORY)
        try:
            made.mounted.counted.reset()
            for number in range(40):
                with pytest.raises(FileNotFoundError):
                    os.stat(f"missing{number}", dir_fd=directory)
            assert made.mounted.counted.counts()["LOOKUP_NEGATIVE"] >= 40
        finally:
            os.close(directory)

    def test_the_server_changing_meanwhile_is_noticed(self, rich: Bench) -> None:
        plan = rich.plan(LIB)
        rich.shadow(plan)
        Path(os.fsdecode(rich.mounted.on_server("opt/lib/new"))).write_bytes(b"new")
        with pytest.raises(Busy, match="the server changed /opt/lib"):
            rich.backend.complete(plan)
        assert assert_marks_are_sound(rich.mounted) == []
        rich.activate()
        assert os.path.exists(rich.mounted.at("opt/lib/new"))

    def test_a_name_that_a_listing_missed_is_noticed(self, rich: Bench) -> None:
        """The stamps say that nothing changed, and still the overlay shows more: a mark would make it vanish."""
        plan = rich.plan(LIB)
        del plan.directories[-1].listing.entries["f0001"]
        rich.shadow(plan)
        with pytest.raises(Busy):
            rich.backend.complete(plan)
        assert assert_marks_are_sound(rich.mounted) == []
        rich.activate()
        assert os.path.exists(rich.mounted.at("opt/lib/f0001"))

    def test_reopening_gives_the_merged_view_back(self, rich: Bench) -> None:
        before = rich.view()
        rich.promote(LIB)
        rich.reopen(LIB)
        assert rich.on_disk(LIB).mark is MarkState.NONE
        assert_same_view(before, rich.view())
        Path(os.fsdecode(rich.mounted.on_server("opt/lib/new"))).write_bytes(b"new")
        assert os.path.exists(rich.mounted.at("opt/lib/new"))
        rich.remount()
        assert os.path.exists(rich.mounted.at("opt/lib/new"))
        os.unlink(rich.mounted.on_server("opt/lib/new"))
        os.utime(rich.mounted.on_server("opt/lib"), ns=(before[LIB].mtime_ns, before[LIB].mtime_ns))
        rich.activate()
        assert_same_view(before, rich.view())

    def test_times_are_those_of_the_server(self, bench: MakeBench) -> None:
        made = bench({"opt": Directory({"lib": {"a": b"a"}}, mtime_ns=1_500_000_000_123_456_789)})
        made.promote(LIB)
        assert os.stat(made.mounted.at("opt")).st_mtime_ns == 1_500_000_000_123_456_789


def _shadow_half(bench: Bench, plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shadow, but lose every second entry."""
    with monkeypatch.context() as patch:
        whole = bench.backend._copy_pieces_up  # type: ignore[attr-defined]
        patch.setattr(
            bench.backend, "_copy_pieces_up", lambda pieces: whole([(path, names[::2]) for path, names in pieces])
        )
        bench.shadow(plan)


@contextmanager
def _spied(monkeypatch: pytest.MonkeyPatch, log: list[tuple[str, bytes]]) -> Iterator[None]:
    """Write down syncs of the upper layer, copy-ups and the attributes that are set, in their order."""
    from promoterd.overlay import copyup  # noqa: PLC0415

    sync, put, copy = Layers.sync_upper, xattrs.put, copyup.copy_up

    def spy_sync(self: Layers) -> None:
        sync(self)
        log.append(("sync", b""))

    def spy_put(path: bytes, attribute: str, value: bytes) -> None:
        where = os.fsencode(os.readlink(path)) if path.count(b"/") == 4 else path
        put(path, attribute, value)
        log.append((attribute, where))

    def spy_copy(directory: int, name: str, mode: int, scratch: int) -> bool:
        done = copy(directory, name, mode, scratch)
        log.append(("copy", os.fsencode(name)))
        return done

    with monkeypatch.context() as patch:
        patch.setattr(Layers, "sync_upper", spy_sync)
        patch.setattr(xattrs, "put", spy_put)
        patch.setattr(copyup, "copy_up", spy_copy)
        yield
