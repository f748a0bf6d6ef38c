"""The NFS client's tracepoints as a heat source: a whole launch, many lookups, and what they cost."""

import os
import random
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from lab.guest import rpcs, server
from lab.guest.elsewhere import Elsewhere, elsewhere
from lab.guest.launch import launch
from lab.guest.measure import MANIFEST, say
from lab.guest.promoting import rules
from lab.guest.stack import Nfs, cool, mounted_nfs, overlay_on, upper_home
from lab.guest.tracing import Tracing, mount_tracefs
from lab.machine import BY_INSTRUCTIONS
from lab.manifest import Manifest
from promoterd.heat.base import Kind
from promoterd.policy.mounts import HeatPolicy
from support.daemons import RunningDaemon, mount_policy, wait_for
from support.overlays import MountedOverlay
from support.trees import files

MakeOverlay = Callable[..., MountedOverlay]
MakeDaemon = Callable[..., RunningDaemon]
COVERED = 0.99
MANY = 100_000
COLD, ROUNDS, UNTIMED = 20_000, 8, 500
COSTS_AT_MOST = 1.03
"""Times, with a server 1 ms away: the network's part is what makes a lookup dear."""
_LAUNCH = "import sys; from lab.guest.launch import launch; launch(sys.argv[1], sys.argv[2])"


@pytest.fixture(scope="module", autouse=True)
def _tracefs() -> None:
    mount_tracefs()


@pytest.fixture
def user() -> Iterator[Elsewhere]:
    with elsewhere() as process:
        yield process


@pytest.mark.parametrize("version", ["4.2", pytest.param("3", marks=pytest.mark.thorough)])
def test_what_is_hot_after_a_launch_covers_what_it_missed(
    version: str, user: Elsewhere, capfd: pytest.CaptureFixture[str]
) -> None:
    manifest = Manifest.load(MANIFEST)
    with ExitStack() as stack:
        layer = stack.enter_context(mounted_nfs(Nfs(version, "actimeo=600")))
        home = stack.enter_context(upper_home("tmpfs"))
        overlay = stack.enter_context(overlay_on([layer], home))
        heard = Tracing(overlay)
        stack.callback(heard.source.close)
        cool(overlay)
        with rpcs.counted() as counts:
            user.python(_LAUNCH, os.fsdecode(overlay.mountpoint), MANIFEST)
        heat = heard.drained()
    total: Counter[bytes] = Counter()
    for (path, _), weight in heat.items():
        total[path] += weight
    hot = {path for path, weight in total.items() if weight >= HeatPolicy().threshold}
    missed = sum(weight for (path, kind), weight in heat.items() if kind == Kind.MISS)
    in_hot = sum(weight for (path, kind), weight in heat.items() if kind == Kind.MISS and path in hot)
    stats = heard.source.stats()
    with capfd.disabled():
        say(f"trace {version}: a launch misses {counts.missing} names, {missed} heard, {in_hot} in hot directories")
    assert in_hot >= COVERED * counts.missing > 0
    assert missed <= counts.missing
    assert {os.fsencode(path) for path in manifest.only_missed} <= hot
    assert (stats.unattributed, stats.sampled) == (0, 0)


@pytest.mark.thorough
def test_what_a_launch_only_searches_would_be_promoted(make_daemon: MakeDaemon) -> None:
    """By a backend that only says so: the whole share takes a slow machine long. inotify finds none of them."""
    manifest = Manifest.load(MANIFEST)
    with ExitStack() as stack:
        layer = stack.enter_context(mounted_nfs(Nfs("4.2", "actimeo=600")))
        home = stack.enter_context(upper_home("tmpfs"))
        overlay = stack.enter_context(overlay_on([layer], home))
        heat = {"source": "nfs-trace", "settle": "0s"}
        policy = mount_policy(overlay, rules(manifest, [], "opaque"), backend="observe", heat=heat)
        daemon = make_daemon(policy).start()
        stack.callback(daemon.stop)
        wait_for(lambda: daemon.status()["heat_source"]["armed"] >= len(manifest.search_path))
        cool(overlay)
        launch(os.fsdecode(overlay.mountpoint), MANIFEST)
        lacking = {f"/{path}" for path in manifest.only_missed}
        wait_for(lambda: lacking <= {event["path"] for event in daemon.find("would_promote")})


@pytest.mark.thorough
@pytest.mark.timeout(900)
def test_no_lookup_of_very_many_is_attributed_to_another_directory(make_overlay: MakeOverlay, user: Elsewhere) -> None:
    chance = random.Random(1)
    tree = {f"d{number:02}": {"in": files(3), "aside": files(2)} for number in range(50)}
    overlay, bystander = (make_overlay(tree, Nfs(version, "actimeo=600,nosharecache")) for version in ("4.2", "3"))
    heard, not_heard = Tracing(overlay), Tracing(bystander)
    with ExitStack() as stack:
        stack.callback(heard.source.close)
        stack.callback(not_heard.source.close)
        cool(overlay, bystander)
        expected: Counter[bytes] = Counter()
        got: Counter[tuple[bytes, str]] = Counter()
        for turn in range(50):
            names = []
            for number in range(MANY // 50):
                directory = b"d%02d/in" % chance.randrange(50)
                expected[directory] += 1
                names.append(overlay.at(directory + b"/%d-%d" % (turn, number)))
            user.look_up(names)
            for number in range(50):  # what this process does itself is nobody's
                os.path.lexists(overlay.at(b"d%02d/aside/%d" % (number, turn)))
            got += heard.drained()
        misses = {path: weight for (path, kind), weight in got.items() if kind == Kind.MISS}
        assert misses == expected
        assert {path for path, _ in got} <= {b"", *(b"d%02d" % number for number in range(50)), *expected}
        assert not_heard.drained() == {}
        assert heard.source.stats().unattributed == 0


@pytest.mark.thorough
@pytest.mark.timeout(900)
@pytest.mark.parametrize("round_trip_ms", [0, 1])
@pytest.mark.parametrize("version", ["4.2", "3"])
def test_what_counting_costs(
    make_overlay: MakeOverlay, user: Elsewhere, version: str, round_trip_ms: int, capfd: pytest.CaptureFixture[str]
) -> None:
    """Rounds with and without take turns, and are told as ratios: an emulated machine is noisy.

    It is not where its clock counts instructions (``make lab ARGS=--instructions``).
    """
    with ExitStack() as stack:
        stack.callback(server.delay, 0)
        server.delay(round_trip_ms)
        heard, seconds = _counted_in_turn(make_overlay({"lib": files(3)}, Nfs(version, "actimeo=600")), user)
    assert heard == COLD + UNTIMED * ROUNDS
    pairs = [on / off for on, off in zip(seconds[True], seconds[False], strict=True)]
    total, best = (how(seconds[True]) / how(seconds[False]) for how in (sum, min))
    with capfd.disabled():
        say(
            f"trace {version}, server {round_trip_ms} ms away: {COLD} cold lookups take {total:.3f} times as long when "
            f"they are counted, the median pair of rounds {statistics.median(pairs):.3f}, the best rounds {best:.3f}; "
            f"{seconds}"
        )
    if round_trip_ms and BY_INSTRUCTIONS in Path("/proc/cmdline").read_text("ascii").split():
        assert total <= COSTS_AT_MOST


def _counted_in_turn(overlay: MountedOverlay, user: Elsewhere) -> tuple[int, dict[bool, list[float]]]:
    """Misses that were heard, and the seconds of rounds in which they were counted and were not."""
    seconds: dict[bool, list[float]] = {True: [], False: []}
    each = COLD // ROUNDS
    heard = 0
    user.look_up(overlay.at(b"lib/warm-%d" % number) for number in range(each))
    for turn in range(2 * ROUNDS):
        on = (turn + turn // 2) % 2 == 0  # neither is always the first of a pair
        names = [overlay.at(b"lib/%d-%d" % (turn, number)) for number in range(each)]
        tracing = Tracing(overlay) if on else None
        # what the kernel patches in its code for a tracepoint, an emulator has to translate anew
        user.look_up(overlay.at(b"lib/u%d-%d" % (turn, number)) for number in range(UNTIMED))
        begun = time.perf_counter()
        user.look_up(names)
        seconds[on].append(time.perf_counter() - begun)
        if tracing is not None:
            heard += tracing.drained()[b"lib", Kind.MISS]
            tracing.source.close()
    return heard, seconds
