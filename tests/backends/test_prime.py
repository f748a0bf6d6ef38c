"""``prime`` on real overlays: what it refuses, and that it changes nothing."""

import errno
import os
import time
from collections.abc import Callable
from dataclasses import replace

import pytest

from promoterd.backends import base
from promoterd.backends.base import MarkState
from promoterd.backends.prime import PrimeBackend
from promoterd.errors import Refused
from promoterd.overlay import mounts, probe
from promoterd.overlay.fitness import Severity, is_fit
from promoterd.overlay.nfs import Lifetimes, NfsLayer
from support.facts import GOOD_FACTS, described
from support.overlays import MountedOverlay
from support.promotions import Bench, allow, assert_same_view, upper_directories
from support.trees import Hardlink, files

MakeOverlay = Callable[..., MountedOverlay]
D = b"app/d"
TREE = {"app": {"d": {**files(20), "sub": files(5)}}}


def look(mounted: MountedOverlay) -> int:
    """Look at every file through the overlay; how many requests that cost."""
    mounted.reset()
    for number in range(20):
        os.lstat(mounted.at(D + b"/f%04d" % number))
    return mounted.asked()


def test_what_was_read_asks_nobody_until_it_expires(make_overlay: MakeOverlay) -> None:
    mounted = make_overlay(TREE, counting=True, timeouts=1.0, xattrs=False)
    assert Bench(mounted, "prime").shadow(Bench(mounted, "prime").plan(D)) == 21
    time.sleep(1.1)
    assert look(mounted) >= 20, "all of it has expired"
    lasting = make_overlay(TREE, counting=True, timeouts=60.0, xattrs=False)
    bench = Bench(lasting, "prime")
    assert bench.shadow(bench.plan(D)) == 21
    assert look(lasting) == 0


def test_it_changes_nothing(make_overlay: MakeOverlay) -> None:
    bench = Bench(make_overlay(TREE), "prime")
    before = bench.view()
    plan = bench.plan(D)
    assert [directory.path for directory in plan.directories] == [D], "not the directories in it"
    assert bench.shadow(plan) == 21
    assert bench.backend.complete(plan) == []
    bench.reopen(D)
    assert list(upper_directories(bench.mounted)) == [b""]
    assert bench.on_disk(D).mark is MarkState.NONE
    assert_same_view(before, bench.view())
    assert not base.load("prime").marks


def test_what_keeps_a_mark_off_does_not_keep_it_off(make_overlay: MakeOverlay) -> None:
    """Hard links, what is too young, and children that are not complete are all the same to it."""
    bench = Bench(make_overlay({"app": {"d": {"a": b"", "b": Hardlink("app/d/a"), "sub": files(2)}}}), "prime")
    assert bench.shadow(bench.plan(D, recursive=False, of=allow(oldest_allowed_ns=0))) == 3


def test_what_policy_forbids_is_not_read(make_overlay: MakeOverlay) -> None:
    bench = Bench(make_overlay(TREE), "prime")
    with pytest.raises(Refused, match="because I say so"):
        bench.plan(D, of=allow(forbidden="because I say so"))


def test_a_directory_that_only_this_machine_has(make_overlay: MakeOverlay) -> None:
    mounted = make_overlay(TREE)
    os.mkdir(mounted.at("app/made"))
    with pytest.raises(Refused, match="no lower layer has such a directory"):
        Bench(mounted, "prime").plan(b"app/made")


def test_more_entries_than_policy_allows(make_overlay: MakeOverlay) -> None:
    bench = Bench(make_overlay(TREE), "prime", batch=4)
    with pytest.raises(Refused, match="max_entries = 10"):
        bench.shadow(bench.plan(D, max_entries=10))
    assert bench.shadow(bench.plan(D, max_entries=21)) == 21


def test_every_layer_is_read(make_overlay: MakeOverlay) -> None:
    mounted = make_overlay([{"app": {"d": files(3)}}, {"app": {"d": files(5)}}])
    bench = Bench(mounted, "prime")
    assert bench.shadow(bench.plan(D)) == 8


def test_a_server_that_keeps_root_out(make_overlay: MakeOverlay) -> None:
    mounted = make_overlay(TREE, counting=True)
    bench = Bench(mounted, "prime")
    plan = bench.plan(D)
    mounted.counted.fail(errno.EACCES)
    try:
        with pytest.raises(Refused, match="denies this machine's root permission") as refused:
            bench.shadow(plan)
    finally:
        mounted.counted.fail(0)
    assert "no_root_squash" in (refused.value.hint or "")


def test_what_lies_above_many_is_asked_for_once(make_overlay: MakeOverlay) -> None:
    mounted = make_overlay({"app": {f"d{number}": files(1) for number in range(20)}}, counting=True, timeouts=60.0)
    bench = Bench(mounted, "prime")
    plans = [bench.plan(b"app/d%d" % number) for number in range(20)]
    bench.shadow(plans[0])
    mounted.reset()
    for plan in plans[1:]:
        bench.shadow(plan)
    assert mounted.counted.counts()["GETATTR"] <= 2 * 19, "for the directory and its file, and for none above"


def test_an_overlay_that_is_fit_for_nothing_else(make_overlay: MakeOverlay) -> None:
    mounted = make_overlay(TREE, options="metacopy=off,redirect_dir=off")
    overlay = mounts.overlay_at(mounted.mountpoint)
    assert is_fit(PrimeBackend.findings(overlay, probe.gather(overlay)))


def test_on_what_is_not_nfs_it_says_what_it_takes_for_granted() -> None:
    (found,) = PrimeBackend.findings(described(), GOOD_FACTS)
    assert found.severity is Severity.INFO
    assert "NFS" in found.message


def test_a_client_that_keeps_nothing_makes_it_unfit() -> None:
    layer = NfsLayer(b"/l", Lifetimes(0, 0), "noac")
    (found,) = PrimeBackend.findings(described(), replace(GOOD_FACTS, nfs=(layer,)))
    assert (found.severity, found.option) == (Severity.REFUSE, "noac")
    assert "/l" in found.message
    assert PrimeBackend.findings(described(), replace(GOOD_FACTS, nfs=(NfsLayer(b"/l", Lifetimes()),))) == []


def test_a_server_that_does_not_answer_makes_it_unfit() -> None:
    assert not is_fit(PrimeBackend.findings(described(), replace(GOOD_FACTS, unanswered=(b"/l",))))


def test_when_it_reads_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Just after the end of a lifetime that can still grow, and before the end of the longest."""

    def of(lifetimes: Lifetimes | None) -> list[float | None]:
        monkeypatch.setattr("promoterd.backends.prime.shortest_lifetimes", lambda _: lifetimes)
        backend = PrimeBackend(described(), scratch=b".s")
        return [backend.lasts(times) for times in (1, 2, 3, 4, 5, 6, 7, 1000)]

    assert of(Lifetimes()) == [3.5, 6.5, 12.5, 24.5, 48.5, 45, 45, 45]
    assert of(Lifetimes(600, 600)) == [450] * 8
    assert of(None) == [45] * 8, "where no option says"
