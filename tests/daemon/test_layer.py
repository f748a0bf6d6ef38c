"""The daemon with a metadata layer: what the server does while directories are complete, and what readers then see."""

import contextlib
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from promoterd.demo.view import differences
from promoterd.errors import Refused
from support.commands import promoterd
from support.daemons import PATIENCE, RunningDaemon, mount_policy, sleeping_process, use, wait_for
from support.overlays import MountedOverlay
from support.promotions import assert_same_view, view_below, view_of
from support.soundness import PROVENANCE, xattr
from support.trees import File, Symlink

LIB, SUB, OTHER = b"apps/v1/lib", b"apps/v1/lib/sub", b"apps/v2/lib"
TREE: dict[str, Any] = {
    "apps": {
        version: {
            "lib": {
                **{f"m{number}.py": File(b"x" * number) for number in range(20)},
                "link": Symlink("m1.py"),
                "sub": {"deep.py": File(b"deep")},
            }
        }
        for version in ("v1", "v2")
    }
}
OPAQUE = "trusted.overlay.opaque"
RULES = ({"path": "apps", "growing": True}, {"path": "apps/**"})


@pytest.fixture
def mounted(make_overlay: Callable[..., MountedOverlay]) -> MountedOverlay:
    return make_overlay(TREE, counting=True, layered=True)


@pytest.fixture
def daemon(mounted: MountedOverlay, make_daemon: Callable[..., RunningDaemon]) -> RunningDaemon:
    return make_daemon(mount_policy(mounted, RULES, backend="layer")).start()


def write_file(path: bytes, content: bytes) -> None:
    with open(path, "wb") as file:
        file.write(content)


def complete(mounted: MountedOverlay, path: bytes) -> bool:
    return xattr(mounted.in_rest(path), OPAQUE) == b"y" and xattr(mounted.in_rest(path), PROVENANCE) is not None


def promote(daemon: RunningDaemon, mounted: MountedOverlay, *paths: bytes) -> None:
    for path in paths:
        daemon.ask("promote", mounted.at(path))
    daemon.wait_state("active", *paths)


def test_heat_makes_it_complete_and_then_nothing_is_asked(
    make_daemon: Callable[..., RunningDaemon], mounted: MountedOverlay
) -> None:
    rules = [{**rule, "recheck": "1h"} for rule in RULES]
    daemon = make_daemon(mount_policy(mounted, rules, backend="layer")).start(watching=4)
    before = view_of(mounted)
    use(mounted, LIB, times=3)
    daemon.wait_state("active", LIB, SUB)
    assert complete(mounted, b"apps/v1"), "the chain"
    assert not complete(mounted, b"apps"), "it grows"
    assert os.listdir(mounted.upper) == [], "upper is never touched"
    assert_same_view(before, view_of(mounted))
    mounted.cool()  # a file whose data was read has that looked up again as well
    directory = os.open(mounted.at(LIB), os.O_PATH)
    try:
        mounted.reset()
        for name in (b"m1.py", b"link", b"missing.so", b"sub/deep.py", b"sub/missing.so"):
            with contextlib.suppress(FileNotFoundError):
                os.stat(name, dir_fd=directory, follow_symlinks=False)
        assert mounted.asked() == 0
    finally:
        os.close(directory)


Change = Callable[[bytes], None]


def steps(*changes: Callable[[bytes], object]) -> Change:
    """One after the other, each given the directory."""

    def do(lib: bytes) -> None:
        for change in changes:
            change(lib)

    return do


def at(name: bytes, change: Callable[..., object], *more: object) -> Callable[[bytes], object]:
    """Something done to an entry of the directory."""
    return lambda lib: change(os.path.join(lib, name), *more)


def link_to(path: bytes, target: bytes) -> None:
    os.symlink(target, path)


def release(lib: bytes) -> str:
    return os.fsdecode(os.path.dirname(lib))


CHANGES: dict[str, Change] = {
    "added": steps(at(b"new.py", write_file, b"new")),
    "removed": steps(at(b"m2.py", os.unlink)),
    "replaced": steps(at(b"tmp", write_file, b"other"), lambda lib: os.rename(lib + b"/tmp", lib + b"/m3.py")),
    "link replaced": steps(at(b"link", os.unlink), at(b"link", link_to, b"m5.py")),
    "file becomes directory": steps(at(b"m4.py", os.unlink), at(b"m4.py", os.mkdir)),
    "file becomes link": steps(at(b"m4.py", os.unlink), at(b"m4.py", link_to, b"m5.py")),
    "link becomes file": steps(at(b"link", os.unlink), at(b"link", write_file, b"file")),
    "link becomes directory": steps(at(b"link", os.unlink), at(b"link", os.mkdir)),
    "directory becomes file": steps(at(b"sub", shutil.rmtree), at(b"sub", write_file, b"file")),
    "directory becomes link": steps(at(b"sub", shutil.rmtree), at(b"sub", link_to, b"m5.py")),
    "directory removed": steps(at(b"sub", shutil.rmtree)),
    "directory added": steps(at(b"more", os.mkdir), at(b"more/f", write_file, b"f")),
    "mode of a file and the directory": steps(at(b"m6.py", os.chmod, 0o600), at(b"", os.chmod, 0o750)),
    "hard link added": steps(lambda lib: os.link(lib + b"/m7.py", lib + b"/m7-too.py")),
    "release removed": steps(lambda lib: shutil.rmtree(release(lib))),
    "release added": steps(lambda lib: shutil.copytree(release(lib), release(lib) + "-next")),
}


def library(number: int) -> bytes:
    return b"apps/r%d/lib" % number


@pytest.fixture
def many(make_overlay: Callable[..., MountedOverlay]) -> MountedOverlay:
    """A release for every change, with so much in each that what vanishes is no large share of it (R1)."""
    library = TREE["apps"]["v1"]["lib"] | {f"d{number}": {"f": b"f"} for number in range(5)}
    releases = {f"r{number}": {"lib": library} for number in range(len(CHANGES))}
    return make_overlay({"apps": releases}, counting=True, layered=True)


def wait_until_true_to_server(mounted: MountedOverlay) -> None:
    deadline = time.monotonic() + 2 * PATIENCE
    while differences(view_below(mounted.lowers[0]), view_of(mounted)) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert_same_view(view_below(mounted.lowers[0]), view_of(mounted))


@pytest.mark.parametrize("pinned", [False, True], ids=["free", "pinned"])
def test_every_change_on_the_server_is_seen(
    make_daemon: Callable[..., RunningDaemon], many: MountedOverlay, *, pinned: bool
) -> None:
    """Also where a process holds the directory, unless all of it is gone."""
    daemon = make_daemon(mount_policy(many, RULES, backend="layer")).start()
    promote(daemon, many, *map(library, range(len(CHANGES))))
    view_of(many)  # everything is in the kernel's caches
    with contextlib.ExitStack() as held:
        for number, name in enumerate(CHANGES):
            if pinned and name != "release removed":
                held.enter_context(hold(many.at(library(number))))
        for number, change in enumerate(CHANGES.values()):
            change(many.on_server(library(number)))
        wait_until_true_to_server(many)
    wait_until_true_to_server(many)


@contextlib.contextmanager
def hold(path: bytes) -> Iterator[None]:
    """A process that has the directory as its working directory."""
    with sleeping_process("-c", "import sys; print('there', flush=True); sys.stdin.read()", cwd=path):
        yield


def test_reopening_gives_the_server_back(daemon: RunningDaemon, mounted: MountedOverlay) -> None:
    before = view_of(mounted)
    promote(daemon, mounted, LIB, OTHER)
    answer = daemon.ask("reopen", mounted.at(LIB))
    assert sorted(answer["reopened"]) == ["/apps/v1/lib", "/apps/v1/lib/sub"]
    assert os.listdir(mounted.in_files(LIB)) == [], "gone"
    assert xattr(mounted.in_rest(LIB), "trusted.overlay.redirect") == b"/apps/v1/lib", "a stub in a complete parent"
    assert complete(mounted, OTHER)
    daemon.ask("reopen", all=True)
    assert_same_view(before, view_of(mounted))
    write_file(mounted.on_server(OTHER) + b"/at-once", b"new")
    assert os.path.exists(mounted.at(OTHER) + b"/at-once")
    wait_for(lambda: not os.listdir(mounted.layer_home + b"/promoterd.graveyard"))


def test_what_a_user_did_survives(daemon: RunningDaemon, mounted: MountedOverlay) -> None:
    promote(daemon, mounted, LIB)
    at = mounted.at(LIB)
    with open(at + b"/m1.py", "ab") as file:
        file.write(b"user")
    os.unlink(at + b"/m2.py")
    os.rename(at + b"/m3.py", at + b"/mine.py")
    os.chmod(at + b"/m4.py", 0o700)
    shutil.rmtree(at + b"/sub")
    os.mkdir(at + b"/sub")
    write_file(at + b"/sub/own", b"own")
    before = view_of(mounted)
    write_file(mounted.on_server(LIB) + b"/new.py", b"new")
    wait_for(lambda: os.path.exists(at + b"/new.py"))
    os.unlink(mounted.on_server(LIB) + b"/new.py")
    wait_for(lambda: not os.path.exists(at + b"/new.py"))
    daemon.wait_state("active", LIB)
    mounted.cool()
    after = {path: entry for path, entry in view_of(mounted).items() if path != LIB}
    assert_same_view({path: entry for path, entry in before.items() if path != LIB}, after)
    daemon.ask("reopen", all=True)
    mounted.cool()
    after = {path: entry for path, entry in view_of(mounted).items() if path != LIB}
    assert_same_view({path: entry for path, entry in before.items() if path != LIB}, after)


def test_a_restart_finds_everything_and_proves_it_anew(daemon: RunningDaemon, mounted: MountedOverlay) -> None:
    promote(daemon, mounted, LIB)
    daemon.restart()
    daemon.wait_state("active", LIB, SUB, b"apps/v1")
    daemon.stop()
    shutil.rmtree(daemon.state_dir)
    daemon.start()
    daemon.wait_state("active", LIB, SUB, b"apps/v1")


def test_a_mount_that_another_backend_has_completed_is_not_taken_over(
    daemon: RunningDaemon, mounted: MountedOverlay
) -> None:
    promote(daemon, mounted, LIB)
    daemon.stop()
    daemon.policy["mounts"][0]["backend"] = "opaque"
    daemon.launch()
    event = daemon.wait_phase("unfit")
    assert "complete by the backend layer" in event["reason"]
    daemon.signal(signal.SIGTERM)
    daemon.running.wait()
    daemon.process = None


def test_offline_everything_is_taken_out(daemon: RunningDaemon, mounted: MountedOverlay) -> None:
    before = view_of(mounted)
    promote(daemon, mounted, LIB, OTHER)
    daemon.stop()
    mounted.umount()
    offline = ("reopen", "--offline", "--upper", mounted.upper, "--config", daemon.policy_file)
    ran = promoterd(*offline, b"/" + LIB, "--json")
    assert ran.code == 0, ran.out
    assert sorted(ran.json["reopened"]) == ["/apps/v1/lib", "/apps/v1/lib/sub"]
    assert complete(mounted, OTHER)
    assert complete(mounted, b"apps/v1")
    mounted.mount()
    assert_same_view(before, view_of(mounted))
    mounted.umount()
    ran = promoterd(*offline, "--all")
    assert ran.code == 0, ran.err
    for half in mounted.metadata:
        assert os.listdir(half) == []
    mounted.mount()
    assert_same_view(before, view_of(mounted))


WATCH = """
import sys, time
sys.path.insert(0, sys.argv[2])
from promoterd.inotify import IN_OPEN, Inotify
import os
instance = Inotify()
descriptor = os.open(sys.argv[1], os.O_PATH)
instance.add(descriptor, IN_OPEN)
os.close(descriptor)
print("there", flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def watch(path: bytes) -> Iterator[None]:
    """Another process that watches one inode."""
    root = str(Path(__file__).parents[2])
    with sleeping_process("-c", WATCH, os.fsdecode(path), root):
        yield


@pytest.mark.parametrize("watched", [LIB, b"apps", b"apps/v1", LIB + b"/m1.py"])
def test_what_another_process_watches_is_refused(
    daemon: RunningDaemon, mounted: MountedOverlay, watched: bytes
) -> None:
    """R11: also above it, and a file in it: they would be other inodes, and the watch dead."""
    with watch(mounted.at(watched)):
        with pytest.raises(Refused, match="watches"):
            daemon.ask("promote", mounted.at(LIB))
        assert not complete(mounted, LIB)
    promote(daemon, mounted, LIB)


def test_a_kept_inode_that_upper_has_changed_since_holds_up_reopening(
    make_daemon: Callable[..., RunningDaemon], mounted: MountedOverlay
) -> None:
    """Where policy says `watched: ignore`: the kernel would find the kept inode, and answer ESTALE."""
    rules = [{**rule, "watched": "ignore"} for rule in RULES]
    daemon = make_daemon(mount_policy(mounted, rules, backend="layer")).start()
    with watch(mounted.at(LIB)), watch(mounted.at(LIB) + b"/m1.py"):
        promote(daemon, mounted, LIB)
        os.chmod(mounted.at(LIB) + b"/m1.py", 0o700)
        answer = daemon.ask("reopen", all=True)
        assert "ESTALE" in answer["deferred"][0]["reason"]
        assert complete(mounted, LIB)
        assert os.stat(mounted.at(LIB) + b"/m1.py").st_mode & 0o777 == 0o700
    daemon.ask("reopen", all=True)
    assert os.stat(mounted.at(LIB) + b"/m1.py").st_mode & 0o777 == 0o700
    assert not os.path.lexists(mounted.in_files(LIB))
