import errno
import fcntl
import os
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from promoterd.errors import MountGone
from promoterd.heat.base import Armed, Kind, MountView
from promoterd.heat.inotify import InotifySource
from promoterd.heat.watchtable import STRUCTURE
from promoterd.inotify import Inotify, watch_limit
from promoterd.overlay import beneath, syscalls, xattrs
from promoterd.paths import is_below
from promoterd.units import Amount, Share
from support.overlays import MountedOverlay
from support.trees import ODD_NAMES, Tree

HALF = Share(0.5)
TREE: Tree = {
    "app": {"lib": {"a": "1", "b": "2", "sub": {"c": "3"}}, "doc": {"d": "4"}},
    "never": {"e": {"f": "5"}},
}


class Sink:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.heat: Counter[tuple[bytes, str]] = Counter()
        self.appearances: list[bytes] = []
        self.vanishings: list[bytes] = []
        self.overflows = 0

    def touched(self, path: bytes, weight: float, kind: str) -> None:
        self.heat[path, kind] += int(weight)

    def overflowed(self) -> None:
        self.overflows += 1

    def appeared(self, path: bytes) -> None:
        self.appearances.append(path)

    def vanished(self, path: bytes) -> None:
        self.vanishings.append(path)

    def nothing(self) -> bool:
        return not (self.heat or self.appearances or self.vanishings or self.overflows)


class Heard:
    """A source on an overlay with its sink; every question drains it first."""

    def __init__(self, overlay: MountedOverlay, max_watches: Share | Amount) -> None:
        self.overlay = overlay
        self._sink = Sink()
        self.source = InotifySource(view_of(overlay, max_watches), self._sink)
        self.source.start()

    @property
    def sink(self) -> Sink:
        while self.source.drain():
            pass
        return self._sink


def view_of(overlay: MountedOverlay, max_watches: Share | Amount = HALF) -> MountView:
    device = os.stat(overlay.mountpoint).st_dev

    def allowed(path: bytes) -> bool:
        return not is_below(path, b"never")

    return MountView(
        overlay.mountpoint,
        (os.major(device), os.minor(device)),
        allowed,
        allowed,
        layers=(overlay.upper, *overlay.layers),
        max_watches=max_watches,
    )


Listen = Callable[..., Heard]


@pytest.fixture
def overlay(make_overlay: Callable[..., MountedOverlay]) -> MountedOverlay:
    return make_overlay(TREE)


@pytest.fixture
def listen(overlay: MountedOverlay) -> Iterator[Listen]:
    with ExitStack() as stack:

        def make(*paths: bytes, on: MountedOverlay = overlay, max_watches: Share | Amount = HALF) -> Heard:
            heard = Heard(on, max_watches)
            stack.callback(heard.source.close)
            assert heard.source.arm(paths) == Armed()
            return heard

        yield make


def complete(overlay: MountedOverlay, path: bytes) -> None:
    """Copy a directory of regular files up and mark it, as the opaque backend does."""
    os.mkdir(overlay.at("never/scratch"))
    for name in os.listdir(overlay.at(path)):
        os.link(overlay.at(path + b"/" + name), overlay.at("never/scratch/x"))
        os.unlink(overlay.at("never/scratch/x"))
    os.rmdir(overlay.at("never/scratch"))
    os.setxattr(overlay.in_upper(path), xattrs.OPAQUE, xattrs.OPAQUE_YES)


def open_descriptors() -> set[int]:
    """Without the one that the listing itself takes."""
    listed = map(int, os.listdir("/proc/self/fd"))
    return {descriptor for descriptor in listed if os.path.lexists(f"/proc/self/fd/{descriptor}")}


# what is heat, and what is none


def test_opening_an_entry_and_listing_the_directory_are_heat(listen: Listen, overlay: MountedOverlay) -> None:
    heard = listen(b"app/lib", b"app/doc")
    with open(overlay.at("app/lib/a"), "rb") as file:
        file.read()
    os.listdir(overlay.at("app/lib"))
    assert heard.sink.heat == {(b"app/lib", Kind.OPEN): 1, (b"app/lib", Kind.LIST): 1}


def test_another_process_is_heard(listen: Listen, overlay: MountedOverlay) -> None:
    heard = listen(b"app/lib")
    subprocess.run(["cat", overlay.at("app/lib/a"), overlay.at("app/lib/b")], check=True, capture_output=True)
    assert heard.sink.heat == {(b"app/lib", Kind.OPEN): 2}


def test_execution_is_heat(listen: Listen, overlay: MountedOverlay) -> None:
    with open(overlay.at("app/doc/script"), "w") as script:
        script.write("#!/bin/true\n")
    os.chmod(overlay.at("app/doc/script"), 0o700)
    heard = listen(b"app/doc")
    subprocess.run([overlay.at("app/doc/script")], check=True)
    assert heard.sink.heat[b"app/doc", Kind.OPEN] >= 1


def test_a_file_read_in_many_pieces_is_opened_once(listen: Listen, overlay: MountedOverlay) -> None:
    heard = listen(b"app/lib")
    descriptor = os.open(overlay.at("app/lib/a"), os.O_RDONLY)
    for _ in range(100):
        os.pread(descriptor, 1, 0)
    os.close(descriptor)
    assert heard.sink.heat == {(b"app/lib", Kind.OPEN): 1}


def test_a_child_that_is_listed_does_not_heat_its_parent(listen: Listen, overlay: MountedOverlay) -> None:
    heard = listen(b"app/lib", b"app/lib/sub")
    os.listdir(overlay.at("app/lib/sub"))
    assert heard.sink.heat == {(b"app/lib/sub", Kind.LIST): 1}


def test_o_path_opens_are_never_heat_but_a_readdir_is(listen: Listen, overlay: MountedOverlay) -> None:
    heard = listen(b"", b"app", b"app/lib", b"app/lib/sub")
    root = beneath.open_root(overlay.mountpoint)
    for path in (b"app", b"app/lib", b"app/lib/sub"):
        with beneath.opened(root, path) as directory:
            os.fstat(directory)
            syscalls.statx(directory)
            for name in ("a", "sub", "missing"):
                try:
                    os.stat(name, dir_fd=directory)
                    os.close(os.open(name, os.O_PATH, dir_fd=directory))
                except FileNotFoundError:
                    continue
    with pytest.raises(FileNotFoundError):
        beneath.open_beneath(root, b"app/missing")
    assert heard.sink.nothing()
    with beneath.opened(root, b"app/lib", beneath.READ_DIRECTORY) as directory:
        os.listdir(directory)
    os.close(root)
    assert heard.sink.heat == {(b"app/lib", Kind.LIST): 1}


def test_arming_itself_is_never_heard(listen: Listen) -> None:
    heard = listen(b"", b"app", b"app/lib")
    heard.source.arm([b"app/lib/sub", b"app/doc"])
    heard.source.rearm([b"", b"app", b"app/lib"])
    assert heard.sink.nothing()


def test_copying_up_is_never_heard(listen: Listen, overlay: MountedOverlay) -> None:
    heard = listen(b"", b"app", b"app/lib/sub")
    syscalls.utimensat_keep_mtime(-100, overlay.at("app/lib/sub"), 1)
    root = beneath.open_root(overlay.mountpoint)
    os.mkdir(overlay.at("never/scratch"))
    with beneath.opened(root, b"app/lib/sub") as directory, beneath.opened(root, b"never/scratch") as scratch:
        os.link("c", "x", src_dir_fd=directory, dst_dir_fd=scratch)
        os.unlink("x", dir_fd=scratch)
    os.close(root)
    assert os.path.exists(overlay.in_upper("app/lib/sub/c"))
    assert heard.sink.nothing()


def test_what_is_not_armed_is_not_heard(listen: Listen, overlay: MountedOverlay) -> None:
    heard = listen(b"app/lib")
    os.listdir(overlay.at("app/doc"))
    os.listdir(overlay.at("app"))
    os.listdir(overlay.at("never"))
    assert heard.sink.nothing()
    assert heard.source.watched() == 1


def test_what_policy_cannot_promote_is_not_armed(listen: Listen) -> None:
    heard = listen()
    assert heard.source.arm([b"never", b"never/e"]) == Armed()
    assert heard.source.paths() == []


# odd names, symlinks, mounts


def test_odd_names_are_heard(listen: Listen, make_overlay: Callable[..., MountedOverlay]) -> None:
    overlay = make_overlay({name: {b"in\xff": "x"} for name in ODD_NAMES})
    heard = listen(*ODD_NAMES, on=overlay)
    for name in ODD_NAMES:
        os.close(os.open(overlay.at(name) + b"/in\xff", os.O_RDONLY))
    assert heard.sink.heat == {(name, Kind.OPEN): 1 for name in ODD_NAMES}


def test_an_oddly_named_directory_appears_as_it_is(listen: Listen, overlay: MountedOverlay) -> None:
    heard = listen(b"app/lib")
    for name in ODD_NAMES:
        os.mkdir(overlay.at("app/lib") + b"/" + name)
    assert heard.sink.appearances == [b"app/lib/" + name for name in ODD_NAMES]


def test_symlinks_files_and_other_mounts_are_gone_for_arming(
    listen: Listen, overlay: MountedOverlay, tmp_path: Path
) -> None:
    os.symlink(tmp_path, overlay.at("app/out"))
    os.symlink("lib", overlay.at("app/alias"))
    syscalls.mount(bytes(tmp_path), overlay.at("app/doc"), b"", syscalls.MS_BIND)
    heard = listen(b"app/lib")
    wrong = (b"app/out", b"app/alias", b"app/lib/a", b"app/doc", b"app/none", b"x/y", b"app/" + b"z" * 300)
    found = heard.source.arm([*wrong, b"app/lib/sub"])
    syscalls.umount(overlay.at("app/doc"))
    assert found == Armed(gone=wrong)
    assert sorted(heard.source.paths()) == [b"app/lib", b"app/lib/sub"]


def test_an_overlay_on_a_counting_server_is_heard_as_well(
    listen: Listen, make_overlay: Callable[..., MountedOverlay]
) -> None:
    overlay = make_overlay(TREE, counting=True)
    heard = listen(b"app/lib", on=overlay)
    os.listdir(overlay.at("app/lib"))
    overlay.cool()
    os.close(os.open(overlay.at("app/lib/a"), os.O_RDONLY))
    assert heard.sink.heat == {(b"app/lib", Kind.LIST): 1, (b"app/lib", Kind.OPEN): 1}


# directories that come, go and move


def test_directories_made_and_removed_through_the_mount_are_reported(listen: Listen, overlay: MountedOverlay) -> None:
    heard = listen(b"app/lib")
    os.mkdir(overlay.at("app/lib/new"))
    assert heard.sink.appearances == [b"app/lib/new"]
    assert heard.source.arm([b"app/lib/new"]) == Armed()
    os.rmdir(overlay.at("app/lib/new"))
    assert heard.sink.vanishings == [b"app/lib/new"]
    assert heard.source.paths() == [b"app/lib"]
    os.mkdir(overlay.at("never/new"))
    assert heard.sink.appearances == [b"app/lib/new"]


@pytest.mark.parametrize("renamed", ["app/lib", "app"])
def test_a_renamed_directory_is_not_charged_under_its_old_path(
    listen: Listen, overlay: MountedOverlay, renamed: str
) -> None:
    heard = listen(b"app/lib", b"app/lib/sub", b"app/doc")
    moved = overlay.at("moved")
    os.rename(overlay.at(renamed), moved)
    for directory, _, files in os.walk(moved):
        for name in files:
            os.close(os.open(directory + b"/" + name, os.O_RDONLY))
    sink = heard.sink
    gone = {b"app/lib", b"app/lib/sub"} | ({b"app", b"app/doc"} if renamed == "app" else set())
    assert sink.heat == {}
    assert set(sink.vanishings) == gone
    assert sink.appearances == [b"moved"]
    assert gone.isdisjoint(heard.source.paths())
    assert heard.source.arm([b"moved"]) == Armed()
    os.listdir(moved)
    assert heard.sink.heat == {(b"moved", Kind.LIST): 1}


def test_an_ancestor_need_not_be_armed_for_its_renaming_to_be_noticed(listen: Listen, overlay: MountedOverlay) -> None:
    heard = listen(b"app/lib/sub")
    assert heard.source.stats().watches == 4  # the root, app, app/lib and app/lib/sub
    os.rename(overlay.at("app"), overlay.at("never/app"))
    os.listdir(overlay.at("never/app/lib/sub"))
    assert heard.sink.heat == {}
    assert b"app/lib/sub" in heard.sink.vanishings
    assert heard.source.watched() == 0


def test_a_directory_that_was_renamed_before_the_watch_was_there_is_gone(
    listen: Listen, overlay: MountedOverlay, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard = listen()
    add = Inotify.add

    def rename_and_add(self: Inotify, descriptor: int, mask: int) -> int:
        if os.path.exists(overlay.at("app/lib/sub")) and os.readlink(f"/proc/self/fd/{descriptor}").endswith("lib/sub"):
            os.rename(overlay.at("app/lib"), overlay.at("app/moved"))
        return add(self, descriptor, mask)

    monkeypatch.setattr(Inotify, "add", rename_and_add)
    assert b"app/lib/sub" in heard.source.arm([b"app/lib/sub"]).gone
    os.listdir(overlay.at("app/moved/sub"))
    assert heard.sink.heat == {}
    assert heard.source.paths() == []


def test_a_directory_that_was_renamed_unheard_gives_up_its_old_path(listen: Listen, overlay: MountedOverlay) -> None:
    heard = listen(b"app/lib", b"app/lib/sub")
    os.rename(overlay.at("app/lib"), overlay.at("app/moved"))
    # arming comes before the events of the renaming are read
    assert set(heard.source.arm([b"app/moved"]).gone) == {b"app/lib", b"app/lib/sub"}
    assert heard.source.paths() == [b"app/moved"]
    # the events of the renaming are older than the watch, which cannot be known: it is reported and armed once more
    assert heard.sink.appearances == [b"app/moved"]
    heard.source.arm([b"app/moved"])
    os.listdir(overlay.at("app/moved"))
    assert heard.sink.heat == {(b"app/moved", Kind.LIST): 1}


def test_rearming_what_is_no_longer_there_forgets_all_below_it(listen: Listen, overlay: MountedOverlay) -> None:
    heard = listen(b"app/lib", b"app/lib/sub", b"app/doc")
    os.rename(overlay.at("app/lib"), overlay.at("app/moved"))
    assert set(heard.source.rearm([b"app/lib"]).gone) == {b"app/lib", b"app/lib/sub"}
    assert heard.source.paths() == [b"app/doc"]


# activation


def test_a_watch_goes_dead_with_the_mark_and_rearming_revives_it(listen: Listen, overlay: MountedOverlay) -> None:
    heard = listen(b"app/doc")
    overlay.cool()
    os.listdir(overlay.at("app/doc"))
    assert heard.sink.heat[b"app/doc", Kind.LIST] == 1  # copy-up alone, or a cool cache, does no harm
    complete(overlay, b"app/doc")
    overlay.cool()
    heard.sink.heat.clear()
    os.listdir(overlay.at("app/doc"))
    os.close(os.open(overlay.at("app/doc/d"), os.O_RDONLY))
    assert heard.sink.nothing()
    assert heard.source.arm([b"app/doc"]) == Armed()
    os.listdir(overlay.at("app/doc"))
    assert heard.sink.nothing()  # arming alone takes the dead watch for a living one
    watches = heard.source.stats().watches
    assert heard.source.rearm([b"app/doc"]) == Armed()
    os.listdir(overlay.at("app/doc"))
    os.close(os.open(overlay.at("app/doc/d"), os.O_RDONLY))
    assert heard.sink.heat == {(b"app/doc", Kind.LIST): 1, (b"app/doc", Kind.OPEN): 1}
    assert heard.source.stats().watches == watches


def test_our_watches_keep_no_mark_from_taking_effect(listen: Listen, overlay: MountedOverlay) -> None:
    listen(b"app/doc")
    complete(overlay, b"app/doc")
    overlay.cool()
    with open(overlay.on_server("app/doc/published"), "w"):
        pass
    assert os.listdir(overlay.at("app/doc")) == [b"d"]
    assert os.stat(overlay.at("app/doc")).st_nlink >= 2


def test_disarmed_directories_stay_silent_until_rearmed(listen: Listen, overlay: MountedOverlay) -> None:
    heard = listen(b"app/lib", b"app/doc")
    heard.source.disarm([b"app/lib", b"app/never-armed"])
    assert heard.source.arm([b"app/lib"]) == Armed()
    os.listdir(overlay.at("app/lib"))
    os.listdir(overlay.at("app/doc"))
    assert heard.sink.heat == {(b"app/doc", Kind.LIST): 1}
    assert heard.source.rearm([b"app/lib"]) == Armed()
    os.listdir(overlay.at("app/lib"))
    assert heard.sink.heat == {(b"app/doc", Kind.LIST): 1, (b"app/lib", Kind.LIST): 1}


def test_quiet_work_is_no_heat_and_others_are_heard_again_after_it(listen: Listen, overlay: MountedOverlay) -> None:
    heard = listen(b"app/lib", b"app/doc")
    os.listdir(overlay.at("app/lib"))
    with heard.source.quiet([b"app/lib"]):
        os.listdir(overlay.at("app/lib"))
        assert heard.source.paths() == [b"app/doc"]
    assert heard.sink.heat == {}
    os.listdir(overlay.at("app/lib"))
    assert heard.sink.heat == {(b"app/lib", Kind.LIST): 1}


def test_a_directory_that_is_made_anew_is_not_silent_because_its_namesake_was(
    listen: Listen, overlay: MountedOverlay
) -> None:
    os.mkdir(overlay.at("app/x"))
    heard = listen(b"app/x")
    heard.source.disarm([b"app/x"])
    os.rmdir(overlay.at("app/x"))
    os.mkdir(overlay.at("app/x"))
    assert heard.sink.appearances == [b"app/x"]
    heard.source.arm([b"app/x"])
    assert heard.source.paths() == [b"app/x"]


# limits


def test_the_budget_is_kept_and_refusals_are_numbers(listen: Listen, overlay: MountedOverlay) -> None:
    heard = listen(max_watches=Amount(4))
    assert heard.source.arm([b"app/lib", b"app/doc", b"app/lib/sub"]) == Armed(refused=(b"app/lib/sub",))
    stats = heard.source.stats()
    assert (stats.limit, stats.watches, stats.armed, stats.refused) == (4, 4, 2, 1)
    assert heard.source.refused() == [b"app/lib/sub"]
    heard.source.disarm([b"app/doc"])
    assert heard.source.arm(heard.source.refused()) == Armed()
    stats = heard.source.stats()
    assert (stats.watches, stats.armed, stats.refused) == (4, 2, 0)
    os.listdir(overlay.at("app/lib/sub"))
    assert heard.sink.heat == {(b"app/lib/sub", Kind.LIST): 1}


def test_the_limit_is_a_share_of_the_kernel_s_or_a_number_below_it(overlay: MountedOverlay) -> None:
    for wanted, expected in (
        (Share(0.25), watch_limit() // 4),
        (Amount(17), 17),
        (Amount(10**12), watch_limit()),
    ):
        assert InotifySource(view_of(overlay, wanted), Sink()).stats().limit == expected


def test_the_kernel_s_own_limit_is_met_without_harm(overlay: MountedOverlay) -> None:
    # in a user namespace of its own, whose limit may be lowered; it sees the same mount
    script = f"""
import os, sys
sys.path[:0] = {sys.path!r}
from promoterd.heat.base import MountView
from promoterd.heat.inotify import InotifySource
from promoterd.heat.watchtable import STRUCTURE
class Sink:
    def touched(self, *what): print(*what)
    def vanished(self, path): pass
    def appeared(self, path): pass
with open("/proc/sys/user/max_inotify_watches", "w") as limit:
    limit.write("3")
device = os.stat(sys.argv[1]).st_dev
view = MountView(os.fsencode(sys.argv[1]), (os.major(device), os.minor(device)), lambda _: True, lambda _: True)
source = InotifySource(view, Sink())
source.start()
print(source.arm([b"app/lib", b"app/doc", b"never"]).refused, source.stats().watches)
source.disarm([b"app/lib"])
print(source.arm(source.refused()).refused, source.stats().refused)
os.listdir(sys.argv[1] + "/app/doc")
source.drain()
source.close()
"""
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", sys.executable, "-W", "ignore", "-c", script, overlay.mountpoint],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines() == [
        "(b'app/doc', b'never') 3",
        "(b'never',) 1",
        "b'app/doc' 1.0 list",
    ]


def test_an_overflow_is_counted_and_reported_and_drops_dead_entries(listen: Listen, overlay: MountedOverlay) -> None:
    os.mkdir(overlay.at("app/x"))
    heard = listen(b"app/lib", b"app/x")
    with open("/proc/sys/fs/inotify/max_queued_events") as file:
        longest = int(file.read())
    a, b = overlay.at("app/lib/a"), overlay.at("app/lib/b")
    for _ in range(longest // 2 + 1):
        os.close(os.open(a, os.O_RDONLY))
        os.close(os.open(b, os.O_RDONLY))
    os.rmdir(overlay.at("app/x"))  # nobody will ever tell
    sink = heard.sink
    assert sink.overflows == 1
    assert heard.source.stats().overflows == 1
    assert sink.heat[b"app/lib", Kind.OPEN] == longest
    assert heard.source.paths() == [b"app/lib"]
    assert heard.source.stats().events == longest + 1


# the source and its mount


def test_an_armed_mount_can_be_unmounted_at_once_and_that_is_reported(listen: Listen, overlay: MountedOverlay) -> None:
    heard = listen(b"app/lib", b"app/doc")
    overlay.umount()
    sink = heard.sink
    assert sink.vanishings == [b""]
    assert heard.source.stats().watches == 0
    with pytest.raises(MountGone):
        heard.source.arm([b"app/lib"])
    overlay.mount()


def test_another_overlay_at_the_same_place_is_not_armed(listen: Listen, overlay: MountedOverlay) -> None:
    heard = listen(b"app/lib")
    syscalls.mount(b"tmpfs", overlay.mountpoint, b"tmpfs")
    try:
        with pytest.raises(MountGone):
            heard.source.arm([b"app/doc"])
    finally:
        syscalls.umount(overlay.mountpoint)


def test_no_descriptor_is_kept_but_its_own(overlay: MountedOverlay) -> None:
    before = open_descriptors()
    heard = Heard(overlay, HALF)
    heard.source.arm([b"app/lib", b"app/none", b"never"])
    heard.source.rearm([b"app/lib"])
    descriptor = heard.source.fileno()
    assert open_descriptors() - before == {descriptor}
    assert descriptor is not None
    assert fcntl.fcntl(descriptor, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
    heard.source.close()
    heard.source.close()
    assert open_descriptors() == before
    assert heard.source.fileno() is None
    assert heard.source.drain() == 0
    assert heard.source.arm([b"app/lib"]) == Armed()


def test_a_closed_source_can_be_started_again(listen: Listen, overlay: MountedOverlay) -> None:
    heard = listen(b"app/lib")
    heard.source.close()
    heard.source.start()
    assert heard.source.stats().watches == 0
    heard.source.arm([b"app/lib"])
    os.listdir(overlay.at("app/lib"))
    assert heard.sink.heat == {(b"app/lib", Kind.LIST): 1}


def test_draining_and_closing_do_not_wait_for_an_arming_that_hangs(
    listen: Listen, overlay: MountedOverlay, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard = listen(b"app/doc")
    hanging, answer = threading.Event(), threading.Event()
    open_beneath = beneath.open_beneath

    def hang(root: int, path: bytes, flags: int = beneath.PATH_DIRECTORY) -> int:
        if path == b"app/lib":
            hanging.set()
            answer.wait(10)
        return open_beneath(root, path, flags)

    monkeypatch.setattr(beneath, "open_beneath", hang)
    outcomes: list[Armed] = []
    thread = threading.Thread(target=lambda: outcomes.append(heard.source.arm([b"app/lib"])))
    thread.start()
    assert hanging.wait(10)
    os.listdir(overlay.at("app/doc"))
    assert heard.sink.heat == {(b"app/doc", Kind.LIST): 1}
    heard.source.close()
    answer.set()
    thread.join(10)
    assert outcomes == [Armed()]
    assert heard.source.stats().watches == 0


def test_an_event_that_comes_before_its_watch_is_entered_is_not_lost(
    listen: Listen, overlay: MountedOverlay, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard = listen(b"app")
    add = Inotify.add

    def add_and_drain(self: Inotify, descriptor: int, mask: int) -> int:
        wd = add(self, descriptor, mask)
        os.close(os.open(overlay.at("app/lib/a"), os.O_RDONLY))
        heard.source.drain()
        return wd

    monkeypatch.setattr(Inotify, "add", add_and_drain)
    heard.source.arm([b"app/lib"])
    assert heard.source.drain() == 0
    assert heard.sink.heat == {(b"app/lib", Kind.OPEN): 1}


def test_a_watch_that_is_given_up_while_it_is_given_anew_is_kept(
    listen: Listen, overlay: MountedOverlay, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard = listen(b"app/lib")
    os.rename(overlay.at("app/lib"), overlay.at("app/moved"))
    os.rename(overlay.at("app/moved"), overlay.at("app/lib"))
    add = Inotify.add

    def add_and_drain(self: Inotify, descriptor: int, mask: int) -> int:
        wd = add(self, descriptor, mask)
        heard.source.drain()  # which gives up app/lib, because of the first renaming
        return wd

    monkeypatch.setattr(Inotify, "add", add_and_drain)
    heard.source.rearm([b"app/lib"])
    os.listdir(overlay.at("app/lib"))
    assert heard.sink.heat == {(b"app/lib", Kind.LIST): 1}
    assert heard.source.paths() == [b"app/lib"]


def test_an_error_of_the_file_system_is_told_with_its_errno_and_the_rest_is_armed(
    listen: Listen, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard = listen()
    add = Inotify.add

    def fail(self: Inotify, descriptor: int, mask: int) -> int:
        if os.readlink(f"/proc/self/fd/{descriptor}").endswith("/lib"):
            raise OSError(errno.EIO, "Input/output error")
        return add(self, descriptor, mask)

    monkeypatch.setattr(Inotify, "add", fail)
    assert heard.source.arm([b"app/lib", b"app/doc"]) == Armed(failed=((b"app/lib", errno.EIO),))
    assert heard.source.paths() == [b"app/doc"]
    monkeypatch.undo()
    assert heard.source.arm(heard.source.refused()) == Armed()
    assert sorted(heard.source.paths()) == [b"app/doc", b"app/lib"]


def shake(overlay: MountedOverlay, source: InotifySource) -> None:
    for round_ in range(150):
        for number in range(8):
            os.mkdir(overlay.at(f"app/doc/{number}"))
        os.rename(overlay.at("app/doc"), overlay.at("app/moved"))
        source.drain()
        os.rename(overlay.at("app/moved"), overlay.at("app/doc"))
        for number in range(8):
            os.rmdir(overlay.at(f"app/doc/{number}"))
        if round_ % 3:
            source.drain()


def test_arming_from_several_threads_under_mutation_keeps_the_table_true(
    listen: Listen, overlay: MountedOverlay
) -> None:
    heard = listen()
    root = beneath.open_root(overlay.mountpoint)
    stop = threading.Event()
    failures: list[BaseException] = []

    def arm() -> None:
        try:
            while not stop.is_set():
                heard.source.arm([b"app", b"app/doc", *(b"app/doc/%d" % number for number in range(8))])
                heard.source.disarm([b"app/doc/3"])
                heard.source.rearm([b"app/doc/3", b"app/doc"])
        except BaseException as error:  # noqa: BLE001 - handed to the test
            failures.append(error)

    threads = [threading.Thread(target=arm) for _ in range(3)]
    for thread in threads:
        thread.start()
    shake(overlay, heard.source)
    stop.set()
    for thread in threads:
        thread.join()
    assert failures == []
    assert heard.sink.overflows == 0
    instance = heard.source._instance
    assert instance is not None
    assert heard.source._table.watches() == set(instance.identities())
    for wd in heard.source._table.watches():
        path = heard.source._table.path(wd)
        assert path is not None
        with beneath.opened(root, path) as directory:  # an inode that is watched already keeps its watch
            assert instance.add(directory, STRUCTURE) == wd
    os.close(root)
