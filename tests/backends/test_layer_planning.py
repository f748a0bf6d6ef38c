"""What a plan for the metadata layer takes in, leaves out and refuses."""

import os
from collections.abc import Callable

import pytest

from promoterd.backends.base import DirectoryTerms
from promoterd.backends.layer.plans import LayerPlan
from promoterd.backends.obstacles import TooYoung
from promoterd.errors import Refused
from support.overlays import MountedOverlay
from support.promotions import Bench, allow
from support.rich import acl
from support.soundness import OPAQUE, REDIRECT, assert_layer_is_sound, xattr
from support.trees import Tree, files

MakeOverlay = Callable[..., MountedOverlay]
LIB, SUB, DEEP = b"opt/app/lib", b"opt/app/lib/sub", b"opt/app/lib/sub/deep"
TREE: Tree = {"opt": {"app": {"lib": {**files(4), "sub": {**files(2), "deep": files(2)}}, "beside": files(2)}}}
NAMES = 4


@pytest.fixture
def bench(make_overlay: MakeOverlay) -> Bench:
    return Bench(make_overlay(TREE, counting=True, layered=True), "layer")


def planned(bench: Bench, path: bytes = LIB, **terms: object) -> list[bytes]:
    plan = bench.plan(path, **terms)  # type: ignore[arg-type]
    assert isinstance(plan, LayerPlan)
    return [directory.path for directory in plan.directories]


def by_path(**demands: DirectoryTerms) -> Callable[[bytes], DirectoryTerms]:
    """Demands of one's own for directories by the last part of their path."""
    usual = allow(chain=True)
    return lambda path: demands.get(os.fsdecode(path.rpartition(b"/")[2]), usual(path))


def test_children_first_and_then_the_chain(bench: Bench) -> None:
    assert planned(bench, of=allow(chain=True)) == [DEEP, SUB, LIB, b"opt/app", b"opt"]
    assert planned(bench, of=allow(chain=False)) == [DEEP, SUB, LIB]
    assert planned(bench, of=allow(chain=True), recursive=False) == [LIB, b"opt/app", b"opt"]


def test_what_policy_forbids_is_a_stub_and_no_obstacle(bench: Bench) -> None:
    forbidden = DirectoryTerms(forbidden="it is growing")
    of = by_path(sub=forbidden, app=forbidden)
    assert planned(bench, of=of) == [LIB, b"opt"]
    bench.promote(LIB, of=of)
    mounted = bench.mounted
    for path in (SUB, b"opt/app"):
        assert xattr(mounted.in_rest(path), OPAQUE) is None
        assert xattr(mounted.in_rest(path), REDIRECT) == b"/" + path
    assert xattr(mounted.in_rest("opt/app/beside"), REDIRECT) is None, "what it is in is not complete"
    assert_layer_is_sound(mounted)
    with pytest.raises(Refused, match="it is growing"):
        bench.plan(SUB, of=of)


def test_what_is_young_is_a_stub_and_refused_by_itself(bench: Bench) -> None:
    young = DirectoryTerms(oldest_allowed_ns=0)
    assert planned(bench, of=by_path(sub=young)) == [LIB, b"opt/app", b"opt"]
    with pytest.raises(TooYoung):
        bench.plan(SUB, of=by_path(sub=young))
    with pytest.raises(TooYoung):
        bench.plan(LIB, of=by_path(lib=young))


def test_too_many_entries(bench: Bench) -> None:
    with pytest.raises(Refused, match="max_entries = 8"):
        bench.plan(LIB, max_entries=NAMES + 1 + 2 + 1)
    assert planned(bench, of=allow(chain=True), max_entries=NAMES + 1 + 2 + 1 + 2)[-1] == b"opt"


def test_attributes_are_left_out_only_where_there_can_be_none(bench: Bench) -> None:
    """An ACL or a capability that is left out would let other people do other things than on the server.

    Where there can be none, which is a matter of the server's file system, the lab's tests leave them out.
    """
    with pytest.raises(Refused, match=r"xattrs: skip.*posix_acl_access and security.capability") as refusal:
        bench.plan(LIB, of=allow(copy_xattrs=False))
    assert "noacl" in str(refusal.value.hint)


def test_attributes_that_are_copied_cost_a_request_for_each_entry(bench: Bench) -> None:
    server = bench.mounted.on_server(LIB)
    os.setxattr(server + b"/f0001", "user.origin", b"here")
    os.setxattr(server + b"/f0002", "system.posix_acl_access", acl(1234, 6))
    plan = bench.plan(LIB, recursive=False)
    bench.mounted.reset()
    bench.shadow(plan)
    assert bench.mounted.counted.counts()["LISTXATTR"] >= NAMES
    bench.backend.complete(plan)
    bench.activate()
    at = bench.mounted.at(LIB)
    assert os.getxattr(at + b"/f0001", "user.origin") == b"here"
    assert os.getxattr(at + b"/f0002", "system.posix_acl_access") == acl(1234, 6)


def test_what_is_complete_already_is_not_planned_again(bench: Bench) -> None:
    bench.promote(SUB, of=allow(chain=False))
    assert planned(bench, SUB) == []
    assert planned(bench, of=allow(chain=False)) == [LIB]
    bench.promote(LIB, of=allow(chain=True))
    assert sorted(assert_layer_is_sound(bench.mounted)) == sorted([b"opt", b"opt/app", LIB, SUB, DEEP])
