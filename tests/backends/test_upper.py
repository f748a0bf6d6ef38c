"""What the backends that shadow in the upper layer owe besides: copy-ups, and the order of what is written."""

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from promoterd.backends.base import Plan
from promoterd.errors import Refused
from promoterd.overlay import xattrs
from promoterd.overlay.listing import Layers
from support.overlays import MountedOverlay
from support.promotions import Bench, allow, assert_marks_are_sound, assert_same_view, upper_directories
from support.rich import add_socket, rich_tree
from support.trees import files

LIB = b"opt/lib"


@pytest.fixture
def rich(make_overlay: Callable[..., MountedOverlay]) -> Bench:
    made = Bench(make_overlay(rich_tree()))
    add_socket(made.mounted.on_server("opt/lib"))
    add_socket(made.mounted.on_server("opt/lib/sub"))
    return made


class TestUpper:
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

    @pytest.mark.parametrize("forbidden", [b"opt/lib/sub", b"opt/lib/sub/deeper/deepest"])
    def test_a_forbidden_directory_in_the_closure_refuses_it_untouched(self, rich: Bench, forbidden: bytes) -> None:
        """I3, I7: the blocking directory is named, and nothing has been copied up."""
        with pytest.raises(Refused) as refusal:
            rich.plan(LIB, of=lambda path: allow(forbidden="it is growing" if path == forbidden else None)(path))
        assert "it is growing" in refusal.value.message
        assert "/opt/lib" in refusal.value.message
        assert f"/{forbidden.decode()}" in refusal.value.message
        assert list(upper_directories(rich.mounted)) == [b""]

    def test_batches_are_announced_before_they_are_done(self, make_overlay: Callable[..., MountedOverlay]) -> None:
        made = Bench(make_overlay({"opt": {"lib": files(25)}}), batch=10)
        inside = made.mounted.in_upper("opt/lib")
        done = [(size, len(os.listdir(inside))) for size in made.backend.shadow(made.plan(LIB))]
        assert done == [(0, 0), (20, 0), (5, 20)]  # the directory is no entry of its own; then two lanes of a batch


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
