import errno
import fcntl
import os
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Callable

import pytest

from promoterd.errors import MountGone
from promoterd.heat.base import Armed, Kind
from promoterd.heat.inotify import InotifySource
from promoterd.heat.watchtable import STRUCTURE
from promoterd.inotify import Inotify, watch_limit
from promoterd.overlay import beneath, syscalls
from promoterd.units import Amount, Share
from support.hearing import HALF, Heard, Listen, Sink, found_below, view_of
from support.overlays import MountedOverlay


def open_descriptors() -> set[int]:
    """Without the one that the listing itself takes."""
    listed = map(int, os.listdir("/proc/self/fd"))
    return {descriptor for descriptor in listed if os.path.lexists(f"/proc/self/fd/{descriptor}")}


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
from promoterd.heat.discovery import Walk
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


def test_a_watch_costs_us_less_than_a_kibibyte(listen: Listen, make_overlay: Callable[..., MountedOverlay]) -> None:
    overlay = make_overlay(
        {f"{one:02}": {f"a-directory-with-a-name-{two:02}": {} for two in range(40)} for one in range(50)}
    )
    heard = listen(on=overlay)
    paths = found_below(overlay, b"")
    tracemalloc.start()
    try:
        assert heard.source.arm(paths) == Armed()
        used, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert heard.source.stats().armed == 2051
    assert used / 2051 < 1024


def test_a_machine_without_inotify_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    assert InotifySource.unfit() is None

    def missing() -> int:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), "/proc/sys/fs/inotify/max_user_watches")

    monkeypatch.setattr("promoterd.heat.inotify.watch_limit", missing)
    assert "no inotify" in (InotifySource.unfit() or "")


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
