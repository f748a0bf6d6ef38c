"""What every backend that marks has to keep, on real overlays."""

import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from promoterd.backends.base import Busy, DirectoryTerms, MarkState
from promoterd.errors import Refused
from promoterd.overlay.listing import LowerListing
from promoterd.paths import parent
from support.holding import Holder
from support.promotions import (
    SCRATCH,
    Bench,
    allow,
    assert_marks_are_sound,
    assert_same_view,
)
from support.rich import add_socket, rich_tree
from support.soundness import lower_names
from support.trees import Directory, Symlink, Tree, files

LIB = b"opt/lib"
MakeBench = Callable[..., Bench]


@pytest.fixture
def rich(make_bench: MakeBench) -> Bench:
    made = make_bench(rich_tree())
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


def untouched(bench: Bench) -> bool:
    """Whether nothing was shadowed, not even a directory."""
    return all(set(os.listdir(place)) <= {SCRATCH} for place in bench.places(""))


def shadowed(bench: Bench) -> int:
    """How many files are shadowed, in their place or beside it."""
    places = [bench.mounted.layer_home] if bench.mounted.metadata else bench.places(LIB)
    return sum(len(names) for place in places for _, _, names in os.walk(place))


def write(path: bytes, content: bytes) -> None:
    with open(path, "wb") as file:
        file.write(content)


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
        assert [directory for directory in marked if rich.on_disk(directory).in_effect is False] == []
        assert_marks_are_sound(rich.mounted)

    def test_access_times_stay(self, rich: Bench) -> None:
        """Those of directories, too, unless it is the server itself that counts a listing as an access."""
        before = access_times(rich.mounted.mountpoint)
        rich.promote(LIB)
        after = access_times(rich.mounted.mountpoint)
        if rich.mounted.countings:
            after = {path: at for path, at in after.items() if not os.path.isdir(rich.mounted.mountpoint + path)}
        assert {path: (before.get(path), at) for path, at in after.items() if before.get(path) != at} == {}

    def test_the_closure_is_marked_and_every_name_shadowed(self, rich: Bench) -> None:
        plan = rich.plan(LIB)
        assert rich.shadow(plan) >= plan.entries - len(plan.directories)
        marked = rich.backend.complete(plan)
        assert marked[-1] == LIB
        assert marked == [directory.path for directory in plan.directories]
        assert sorted(marked) == sorted(assert_marks_are_sound(rich.mounted))
        assert sum(len(lower_names(rich.mounted, path)) for path in marked) == plan.entries
        assert rich.leftovers() == []
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
        assert all(os.listdir(place) == [b"lib"] for place in rich.places("opt"))
        assert all(set(os.listdir(place)) <= {b"opt", SCRATCH} for place in rich.places(""))
        assert not rich.mounted.metadata or os.listdir(rich.mounted.upper) == [], "upper is none of its business"

    def test_nothing_is_marked_before_complete(self, rich: Bench) -> None:
        plan = rich.plan(LIB)
        rich.shadow(plan)
        assert assert_marks_are_sound(rich.mounted) == []
        assert rich.on_disk(LIB).mark is MarkState.NONE

    def test_a_forbidden_directory_is_refused_untouched(self, rich: Bench) -> None:
        """I3, I7."""
        with pytest.raises(Refused, match="it is growing") as refusal:
            rich.plan(LIB, of=allow(forbidden="it is growing"))
        assert "/opt/lib" in refusal.value.message
        assert untouched(rich)

    @pytest.mark.parametrize("forbidden", [b"opt/lib/sub", b"opt/lib/sub/deeper/deepest"])
    def test_a_forbidden_child_is_never_complete(self, rich: Bench, forbidden: bytes) -> None:
        """I3: either nothing is, untouched, or it goes on asking the server."""
        before = rich.view()

        def of(path: bytes) -> DirectoryTerms:
            return allow(forbidden="it is growing" if path == forbidden else None)(path)

        try:
            marked = rich.promote(LIB, of=of)
        except Refused as refusal:
            assert f"/{forbidden.decode()}" in refusal.message  # noqa: PT017 - the other way to keep it
            assert untouched(rich)
            return
        assert LIB in marked
        assert forbidden not in marked
        assert_marks_are_sound(rich.mounted)
        assert_same_view(before, rich.view())
        write(rich.mounted.on_server(forbidden + b"/new"), b"new")
        assert os.path.exists(rich.mounted.at(forbidden + b"/new"))

    def test_too_many_entries_refuse_untouched(self, rich: Bench) -> None:
        entries = rich.plan(LIB).entries
        assert rich.plan(LIB, max_entries=entries).entries == entries
        with pytest.raises(Refused, match=f"max_entries = {entries - 1}"):
            rich.plan(LIB, max_entries=entries - 1)
        assert untouched(rich)

    def test_batches_are_announced_before_they_are_done(self, make_bench: MakeBench) -> None:
        made = make_bench({"opt": {"lib": files(25)}}, batch=10)
        plan = made.plan(LIB)
        announced = 0
        for size in made.backend.shadow(plan):
            assert shadowed(made) == announced
            announced += size
        assert announced == shadowed(made) == 25
        made.backend.abandon(plan)

    def test_an_abandoned_promotion_can_be_begun_again(self, rich: Bench) -> None:
        before = rich.view()
        plan = rich.plan(LIB)
        steps = rich.backend.shadow(plan)
        next(steps)
        next(steps)
        steps.close()  # type: ignore[attr-defined]
        rich.backend.abandon(plan)
        assert rich.leftovers() == []
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
    def test_missing_names_and_listings_cost_the_server_nothing(self, make_bench: MakeBench) -> None:
        """I1's purpose. Through a descriptor, so that the ancestors' own revalidation does not count."""
        made = make_bench({"opt": {"lib": {**files(50), "sub": files(5)}}}, counting=True)
        made.promote(LIB)
        for path in (LIB, b"opt/lib/sub"):
            directory = os.open(made.mounted.at(path), os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.stat(directory)
                made.mounted.reset()
                for number in range(40):
                    with pytest.raises(FileNotFoundError):
                        os.stat(f"missing{number}", dir_fd=directory)
                names = os.listdir(directory)
                assert made.mounted.asked() == 0, made.mounted.counted.counts()
            finally:
                os.close(directory)
            assert len(names) == len(os.listdir(made.mounted.on_server(path)))

    @pytest.mark.needs("fuse")
    def test_before_the_promotion_they_do_cost(self, make_bench: MakeBench) -> None:
        made = make_bench({"opt": {"lib": files(50)}}, counting=True)
        directory = os.open(made.mounted.at(LIB), os.O_RDONLY | os.O_DIRECTORY)
        try:
            made.mounted.reset()
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
        with pytest.raises(Busy, match="the server changed"):
            rich.backend.complete(plan)
        assert assert_marks_are_sound(rich.mounted) == []
        rich.activate()
        assert os.path.exists(rich.mounted.at("opt/lib/new"))

    def test_a_name_that_a_listing_missed_is_noticed(self, rich: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        """The stamps say that nothing changed, and still the server has more: a mark would make it vanish."""
        add = LowerListing.add
        with monkeypatch.context() as patch:
            patch.setattr(LowerListing, "add", lambda self, name, *rest: name == "f0001" or add(self, name, *rest))
            plan = rich.plan(LIB)
        assert "f0001" not in plan.directories[-1].listing.entries
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

    def test_times_are_those_of_the_server(self, make_bench: MakeBench) -> None:
        made = make_bench({"opt": Directory({"lib": {"a": b"a"}}, mtime_ns=1_500_000_000_123_456_789)})
        made.promote(LIB)
        assert os.stat(made.mounted.at("opt")).st_mtime_ns == 1_500_000_000_123_456_789

    def test_upper_work_of_users_stays(self, make_bench: MakeBench) -> None:
        """What users changed before, and what they change once it is complete, through a reopening and a remount."""
        library: Tree = {**files(10), "link": Symlink("f0001"), "sub": files(3), "other": {"deep": files(2)}}
        bench = make_bench({"opt": {"lib": library, "else": files(3)}})
        users_at_work(bench, 0)
        before = bench.view()
        bench.promote(LIB)
        assert_same_view(before, bench.view())
        users_at_work(bench, 4)
        before = bench.view()
        for step in (bench.activate, bench.remount):
            step()
            assert_same_view(before, bench.view())
        bench.reopen(LIB)
        for step in (lambda: None, bench.activate, bench.remount):
            step()
            assert_same_view(before, bench.view())

    def test_who_holds_it_notices_nothing(self, rich: Bench) -> None:
        """By descriptor, as working directory, by a mapped file and in the middle of reading its names (I2)."""
        before = rich.view()
        with Holder(rich.mounted.at(LIB)) as holder:
            marked = rich.mark(LIB)
            rich.activate()
            assert_same_view(before, rich.view())
            holder.look()
            rich.reopen(*marked[::-1]) if rich.backend.reopens_live else None
            assert_same_view(before, rich.view())
            holder.look()
            assert holder.rest_of_names() == set(os.listdir(rich.mounted.at(LIB)))
        assert_same_view(before, rich.view())
        if rich.backend.reopens_live:
            rich.promote(LIB)
        assert {True} == set(rich.activated([LIB]).values()) or rich.backend.effect_shows_in_inode
        assert_same_view(before, rich.view())

    def test_deep_trees_of_long_names(self, make_bench: MakeBench) -> None:
        """Ten levels, as deep as a redirect can lead (`redirect_max` bounds what the kernel writes)."""
        long = "n" * 20
        tree: Tree = {"file": b"x", "link": Symlink("file")}
        for _ in range(10):
            tree = {long: tree, "file": b"x"}
        bench = make_bench({"opt": {"lib": tree}})
        before = bench.view()
        assert len(bench.promote(LIB)) == 11
        assert_same_view(before, bench.view())
        bench.remount()
        assert_same_view(before, bench.view())


def users_at_work(bench: Bench, first: int) -> None:
    """Some of everything, on files from this number on."""
    at = bench.mounted.at
    write(at(f"opt/lib/new{first}"), b"new")
    write(at(f"opt/lib/f{first:04}"), b"written")
    os.unlink(at(f"opt/lib/f{first + 1:04}"))
    os.rename(at(f"opt/lib/f{first + 2:04}"), at(f"opt/lib/renamed{first}"))
    os.chmod(at(f"opt/lib/f{first + 3:04}"), 0o600)
    if first:
        shutil.rmtree(at("opt/lib/sub"))
        os.mkdir(at("opt/lib/sub"))
        write(at("opt/lib/sub/mine"), b"mine")
    else:
        os.unlink(at("opt/lib/link"))
        os.makedirs(at("opt/lib/new dir/deep"))
