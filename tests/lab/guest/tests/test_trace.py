"""The NFS client's tracepoints as a heat source: what is attributed to which directory, and what is only counted."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lab.guest import server
from lab.guest.elsewhere import Elsewhere, elsewhere
from lab.guest.stack import Nfs, cool, mounted_nfs, overlay_on, upper_home
from lab.guest.tracing import INSTANCES, Tracing, mount_tracefs
from promoterd import threads
from promoterd.errors import NoHeatSource
from promoterd.heat import attribution, nfs_trace, tracefs
from promoterd.heat.base import Kind
from promoterd.heat.nfs_trace import NfsTraceSource
from promoterd.heatlist import read_list
from promoterd.overlay.fitness_of_hosts import NEEDED_CAPABILITIES
from support.daemons import RunningDaemon, mount_policy, wait_for
from support.hearing import Sink, found_below, view_of
from support.overlays import MountedOverlay, unmount
from support.trees import Tree, build, files

MakeOverlay = Callable[..., MountedOverlay]
MakeDaemon = Callable[..., RunningDaemon]

_NFS_3 = Nfs("3", "actimeo=600")
BOTH = pytest.mark.parametrize("nfs", [Nfs("4.2", "actimeo=600"), _NFS_3], ids=["4.2", "3"])
BOTH_IF_THOROUGH = pytest.mark.parametrize(
    "nfs", [Nfs("4.2", "actimeo=600"), pytest.param(_NFS_3, marks=pytest.mark.thorough)], ids=["4.2", "3"]
)
TREE: Tree = {"app": {"lib": {**files(20), "sub": files(5)}, "bin": files(5)}, "doc": files(3), "never": files(3)}


@pytest.fixture(scope="module", autouse=True)
def _tracefs() -> None:
    mount_tracefs()


@pytest.fixture
def user() -> Iterator[Elsewhere]:
    with elsewhere() as process:
        yield process


@pytest.fixture
def trace() -> Iterator[Callable[..., Tracing]]:
    with ExitStack() as stack:

        def make(overlay: MountedOverlay, *paths: bytes) -> Tracing:
            made = Tracing(overlay, paths)
            stack.callback(made.source.close)
            return made

        yield make
    assert os.listdir(INSTANCES) == []


def names(overlay: MountedOverlay, directory: str, missing: int, found: int = 0) -> list[str]:
    """Names to look up in a directory, misses and others in turn."""
    place = os.fsdecode(overlay.at(directory))
    misses = [f"{place}/missing{number}" for number in range(missing)]
    finds = [f"{place}/f{number:04}" for number in range(found)]
    both = min(missing, found)
    mixed = [name for pair in zip(misses, finds, strict=False) for name in pair]
    return mixed + misses[both:] + finds[both:]


@BOTH
def test_each_lookup_belongs_to_its_directory(
    make_overlay: MakeOverlay, trace: Callable[..., Tracing], user: Elsewhere, nfs: Nfs
) -> None:
    overlay = make_overlay(TREE, nfs)
    heard = trace(overlay)
    cool(overlay)
    user.look_up(names(overlay, "app/lib", 7, 9))
    user.look_up(names(overlay, "app/bin", 3))
    user.look_up(names(overlay, "doc", 0, 2))
    ancestors = {(b"", Kind.FOUND): 2, (b"app", Kind.FOUND): 2}  # app and doc; lib and bin
    assert heard.drained() == {
        **ancestors,
        (b"app/lib", Kind.MISS): 7,
        (b"app/lib", Kind.FOUND): 9,
        (b"app/bin", Kind.MISS): 3,
        (b"doc", Kind.FOUND): 2,
    }
    user.look_up(names(overlay, "app/lib", 7, 9))
    assert heard.drained() == {}, "they are in the client's cache"
    assert heard.source.stats().unattributed == 0
    assert heard.source.stats().events == 7 + 9 + 3 + 2 + sum(ancestors.values())


@BOTH_IF_THOROUGH
def test_a_renamed_directory_is_another_path(
    make_overlay: MakeOverlay, trace: Callable[..., Tracing], user: Elsewhere, nfs: Nfs
) -> None:
    overlay = make_overlay(TREE, nfs)
    os.rename(overlay.at("app/lib"), overlay.at("app/moved"))
    heard = trace(overlay, b"app", b"app/moved", b"app/moved/sub")
    cool(overlay)
    user.look_up([*names(overlay, "app/moved", 4), *names(overlay, "app/moved/sub", 3)])
    heat = heard.drained()
    assert (heat[b"app/moved", Kind.MISS], heat[b"app/moved/sub", Kind.MISS]) == (4, 3)
    assert b"app/lib" not in {path for path, _ in heat}
    os.rename(overlay.at("app/moved"), overlay.at("app/again"))
    time.sleep(attribution.CONFIRMED_FOR + 1)
    user.look_up(names(overlay, "app/again", 5)[4:])
    assert {path for path, _ in heard.drained()} <= {b"app"}, "nobody has said yet where it is"
    assert b"app/moved" in heard.sink.vanishings
    assert b"app" in heard.sink.appearances
    heard.source.arm(found_below(overlay, b"app"))
    assert heard.drained()[b"app/again", Kind.MISS] == 1, "it was heard before it was known where"


@BOTH
def test_bind_mounts_are_the_same_directories(
    make_overlay: MakeOverlay, trace: Callable[..., Tracing], user: Elsewhere, nfs: Nfs, tmp_path: Any
) -> None:
    plain = make_overlay(TREE, nfs)
    lower, above = os.fsencode(tmp_path / "lower"), tmp_path / "above"
    os.mkdir(lower)
    above.mkdir()
    subprocess.run(["mount", "--bind", os.fsdecode(plain.layers[0]) + "/app", os.fsdecode(lower)], check=True)
    with ExitStack() as stack:
        stack.callback(unmount, lower)
        plain.umount()
        home = stack.enter_context(upper_home("tmpfs", b"/mnt/bound/local"))
        overlay = stack.enter_context(overlay_on([lower], home, on_server=[plain.on_server(b"app")], at=b"/mnt/bound"))
        heard = trace(overlay)
        subprocess.run(["mount", "--bind", os.fsdecode(overlay.at("lib")), str(above)], check=True)
        stack.callback(unmount, os.fsencode(above))
        user.look_up(f"{above}/missing{number}" for number in range(6))
        assert heard.drained() == {(b"lib", Kind.MISS): 6}
        heard.source.close()


def test_several_mounts_at_once(make_overlay: MakeOverlay, trace: Callable[..., Tracing], user: Elsewhere) -> None:
    overlays = [make_overlay(TREE, Nfs(version, "actimeo=600,nosharecache")) for version in ("4.2", "3", "4.2")]
    heard = [trace(overlay) for overlay in overlays]
    cool(*overlays)
    user.look_up(
        name
        for turn in zip(*(names(overlay, "app/lib", 5 * at, 4) for at, overlay in enumerate(overlays)), strict=False)
        for name in turn
    )
    for at, overlay in enumerate(overlays):
        user.look_up(names(overlay, "app/bin", 10 + at))
    for at, one in enumerate(heard):
        heat = one.drained()
        assert heat[b"app/bin", Kind.MISS] == 10 + at
        assert {path for path, _ in heat} <= {b"", b"app", b"app/lib", b"app/bin"}
        assert one.source.stats().unattributed == 0


@BOTH_IF_THOROUGH
def test_several_servers(trace: Callable[..., Tracing], user: Elsewhere, nfs: Nfs) -> None:
    """Both export the same, so that a directory has one inode number; the third overlay has a layer from each."""
    place, at = server.EXPORT + b"/servers", b"/mnt/servers"
    build(place, {"one": TREE, "two": TREE})
    with ExitStack() as stack:

        def overlay(name: bytes, *layers: bytes) -> MountedOverlay:
            home = stack.enter_context(upper_home("tmpfs", at + name + b"/local"))
            return stack.enter_context(overlay_on(layers, home, on_server=[place] * len(layers), at=at + name))

        far_away = replace(nfs, inside=stack.enter_context(server.second()))
        near = stack.enter_context(mounted_nfs(nfs, place, at + b"/near"))
        far = stack.enter_context(mounted_nfs(far_away, place, at + b"/far"))
        ours, theirs = os.stat(near + b"/one"), os.stat(far + b"/one")
        assert (ours.st_ino == theirs.st_ino, ours.st_dev == theirs.st_dev) == (True, False)
        overlays = [
            overlay(b"/a", near + b"/one"),
            overlay(b"/b", far + b"/one"),
            overlay(b"/c", near + b"/two", far + b"/two"),
        ]
        heard = [trace(one) for one in overlays]
        cool(*overlays)
        first, second, both = overlays
        user.look_up([*names(first, "app/lib", 3), *names(second, "app/lib", 5, 2), *names(both, "app/lib", 7, 2)])
        user.look_up([*names(first, "doc", 11), *names(second, "app/bin", 13)])
        root, app, lib = b"", b"app", b"app/lib"
        assert [one.drained() for one in heard] == [
            {(root, Kind.FOUND): 2, (app, Kind.FOUND): 1, (lib, Kind.MISS): 3, (b"doc", Kind.MISS): 11},
            {
                (root, Kind.FOUND): 1,
                (app, Kind.FOUND): 2,
                (lib, Kind.MISS): 5,
                (lib, Kind.FOUND): 2,
                (b"app/bin", Kind.MISS): 13,
            },
            {(root, Kind.FOUND): 2, (app, Kind.FOUND): 2, (lib, Kind.MISS): 14, (lib, Kind.FOUND): 2},
        ]
        assert [one.source.stats().unattributed for one in heard] == [0, 0, 0]
        for one in heard:
            one.source.close()


def test_what_two_overlays_show_belongs_to_neither(
    make_overlay: MakeOverlay, trace: Callable[..., Tracing], user: Elsewhere
) -> None:
    overlay = make_overlay(TREE, Nfs("4.2", "actimeo=600"))
    with upper_home("tmpfs", b"/mnt/other/local") as home:
        lower = overlay.layers[0] + b"/app"
        with overlay_on([lower], home, on_server=[overlay.on_server(b"app")], at=b"/mnt/other"):
            heard = trace(overlay)
            cool(overlay)
            user.look_up([*names(overlay, "app/lib", 6), *names(overlay, "doc", 2)])
            # the other overlay keeps its root known, so only doc is looked up in ours
            assert heard.drained() == {(b"", Kind.FOUND): 1, (b"doc", Kind.MISS): 2}
            assert heard.source.stats().unattributed == 6 + 1
            heard.source.close()


@BOTH
def test_what_we_do_ourselves_is_no_heat(
    make_overlay: MakeOverlay, trace: Callable[..., Tracing], user: Elsewhere, nfs: Nfs
) -> None:
    """Whichever thread does it; a program that is started from here is an application as any other."""
    overlay = make_overlay(TREE, nfs)
    may_begin = threading.Event()

    def work(directory: str) -> None:
        may_begin.wait()
        for name in names(overlay, directory, 5, 5):
            os.path.lexists(name)

    before = threads.start(work, "app/lib", name="before")
    heard = trace(overlay)
    cool(overlay)
    may_begin.set()
    for thread in (before, threads.start(work, "app/bin", name="after")):
        thread.join()
    work("app/lib/sub")
    lower = os.fsdecode(overlay.layers[0])
    os.path.lexists(f"{lower}/never/f0000/x")  # not through the overlay
    assert heard.drained() == {}
    assert heard.source.stats().events == 0
    user.look_up(names(overlay, "app/lib/sub", 6)[5:])
    assert heard.drained()[b"app/lib/sub", Kind.MISS] == 1, "the others are in the client's cache"
    user.look_up(names(overlay, "doc", 1))
    assert (b"doc", Kind.MISS) in heard.drained()
    subprocess.run(["stat", *names(overlay, "doc", 0, 2)], check=True, capture_output=True)
    assert heard.drained()[b"doc", Kind.FOUND] == 2


@BOTH
def test_what_cannot_be_attributed_is_counted(
    make_overlay: MakeOverlay,
    trace: Callable[..., Tracing],
    user: Elsewhere,
    nfs: Nfs,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(attribution, "HELD_FOR", 0.0)
    overlay = make_overlay(TREE, nfs)
    heard = trace(overlay, b"", b"app")
    cool(overlay)
    user.look_up(names(overlay, "app/lib", 6, 2))
    assert heard.drained() == {(b"", Kind.FOUND): 1, (b"app", Kind.FOUND): 1}
    assert heard.source.stats().unattributed == 8
    lower = os.fsdecode(overlay.layers[0])
    user.look_up(f"{lower}/doc/{name}/x" for name in ("f0000", "f0001"))  # not the last name of a path
    user.look_up([f"{lower}/doc/"])
    assert heard.drained() == {}
    assert heard.source.stats().unattributed > 8


@BOTH
def test_more_directories_than_there_is_room_for(
    make_overlay: MakeOverlay,
    trace: Callable[..., Tracing],
    user: Elsewhere,
    nfs: Nfs,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(nfs_trace, "DIRECTORIES", 128)
    many = 300
    overlay = make_overlay({"apps": {f"d{number}": files(1) for number in range(many)}}, nfs)
    heard = trace(overlay)
    cool(overlay)
    for _ in range(2):
        user.look_up(name for number in range(many) for name in names(overlay, f"apps/d{number}", 1))
        before = heard.source.stats().sampled
        heat = heard.drained()
        misses = sum(count for (_, kind), count in heat.items() if kind == Kind.MISS)
        sampled = heard.source.stats().sampled - before
        assert 128 - 2 <= misses < many
        assert sampled > 0
        assert all(count == 1 for (path, _), count in heat.items() if path.startswith(b"apps/"))
        cool(overlay)
    assert heard.source.stats().overflows == 2
    user.look_up(names(overlay, "apps/d7", 5))
    assert heard.drained()[b"apps/d7", Kind.MISS] == 5, "it was emptied"


def test_an_overlay_without_nfs_is_refused(tmp_path: Any) -> None:
    for name in ("lower", "base"):
        (tmp_path / name).mkdir()
    with upper_home("tmpfs", b"/mnt/local/local") as home:
        os.mkdir(home + b"/lower")
        with overlay_on([home + b"/lower"], home, on_server=[home + b"/lower"], at=b"/mnt/local") as overlay:
            with pytest.raises(NoHeatSource, match="lies on NFS"):
                NfsTraceSource(view_of(overlay), Sink()).start()
            assert os.listdir(INSTANCES) == []


@BOTH_IF_THOROUGH
def test_the_capabilities_that_the_daemon_needs_are_enough(make_overlay: MakeOverlay, nfs: Nfs) -> None:
    overlay = make_overlay(TREE, nfs)
    code = """\
import sys
from promoterd.heat.counting import LookupCounter
from promoterd.heat.nfs_devices import devices_of
counter = LookupCounter(devices_of([sys.argv[1].encode()]), 128)
assert counter.take().events == 0
counter.close()
"""
    names = (name.removeprefix("CAP_").lower() for name in NEEDED_CAPABILITIES)
    bounding = ",".join(["-all", *(f"+{name}" for name in names)])
    restricted = ["setpriv", f"--bounding-set={bounding}", "--inh-caps=-all", "--no-new-privs", sys.executable]
    done = subprocess.run(
        [*restricted, "-c", code, os.fsdecode(overlay.layers[0])], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert os.listdir(INSTANCES) == []


@BOTH_IF_THOROUGH
def test_a_recorded_command_is_heard_although_it_is_a_child(
    make_overlay: MakeOverlay, nfs: Nfs, tmp_path: Path
) -> None:
    """To the last name that is missing; which names exist, the client knows from the recorder's own walk."""
    overlay = make_overlay(TREE, nfs)
    searched = " ".join(names(overlay, "app/lib", 7, 9) + names(overlay, "app/bin", 3))
    command = [sys.executable, "-m", "promoterd", "record", "--with", "nfs-trace", "-o", str(tmp_path / "heat.yaml")]
    command += ["--mount", os.fsdecode(overlay.mountpoint)]
    script = f"for name in {searched}; do test -e $name; done; true"
    done = subprocess.run([*command, "--", "sh", "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    heard = read_list([str(tmp_path / "heat.yaml")]).mounts[overlay.mountpoint]
    assert (heard[b"app/lib"].misses, heard[b"app/bin"].misses) == (7, 3)
    assert os.listdir(INSTANCES) == []


@BOTH_IF_THOROUGH
def test_the_instance_goes_with_the_daemon(make_overlay: MakeOverlay, make_daemon: MakeDaemon, nfs: Nfs) -> None:
    overlay = make_overlay(TREE, nfs)
    daemon = make_daemon(mount_policy(overlay, heat={"source": "nfs-trace"}, backend="observe")).start(watching=5)
    (first,) = os.listdir(INSTANCES)
    tasks = Path(f"/proc/{daemon.pid}/task")
    assert all((task / "comm").read_text().startswith(threads.NAME) for task in tasks.iterdir())
    daemon.kill()
    assert os.listdir(INSTANCES) == [first], "a crash leaves it"
    daemon.start(watching=5)
    (second,) = os.listdir(INSTANCES)
    assert second != first
    daemon.stop()
    assert os.listdir(INSTANCES) == []
    with open(f"{tracefs.ROOT}/synthetic_events", encoding="utf-8") as file:
        assert file.read() == ""


@BOTH_IF_THOROUGH
def test_directories_in_which_nothing_is_found_are_promoted(
    make_overlay: MakeOverlay, make_daemon: MakeDaemon, nfs: Nfs
) -> None:
    overlay = make_overlay(TREE, nfs)
    policy = mount_policy(overlay, [{"path": "app/**"}], heat={"source": "nfs-trace", "threshold": 12})
    daemon = make_daemon(policy).start(watching=3)
    with elsewhere() as user:
        user.look_up(names(overlay, "app/bin", 30))
        daemon.wait_state("active", b"app/bin")
        assert daemon.states().get("/app/lib", "cold") == "cold"
        before = daemon.metric("promoterd_heat_events_total", kind="miss")
        assert before == 30
        cool(overlay)
        user.look_up(names(overlay, "app/bin", 30))
    wait_for(lambda: daemon.metric("promoterd_heat_events_total", kind="found") >= 0)
    time.sleep(3)
    assert daemon.metric("promoterd_heat_events_total", kind="miss") == before, "it is complete"
