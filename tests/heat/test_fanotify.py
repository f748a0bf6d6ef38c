"""One mark for a whole overlay: what is heard through it, where it is attributed to, and what it costs."""

import ctypes
import errno
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from promoterd import fanotify
from promoterd.errors import MountGone, NoHeatSource
from promoterd.fanotify import Fanotify
from promoterd.heat import fanotify as source_module
from promoterd.heat.base import Kind
from promoterd.heat.fanotify import FanotifySource
from promoterd.overlay import activation, syscalls
from promoterd.overlay.activation import mark_in_effect
from promoterd.overlay.listing import Layers
from promoterd.overlay.mounts import overlay_at
from support.daemons import SLACK, sleeping_process, wait_for
from support.hearing import TREE, Sink, complete, view_of
from support.opening import Hearing, use
from support.overlays import MountedOverlay, unmounted
from support.refusing import refusing_fanotify
from support.trees import ODD_NAMES, files

pytestmark = pytest.mark.skipif(fanotify.lack() is not None, reason=str(fanotify.lack()))
MakeOverlay = Callable[..., MountedOverlay]
Hear = Callable[..., Hearing]
LIB, SUB = b"app/lib", b"app/lib/sub"


@pytest.fixture
def hear() -> Iterator[Hear]:
    made: list[Hearing] = []

    def make(overlay: MountedOverlay, **changes: object) -> Hearing:
        made.append(Hearing(overlay, replace(view_of(overlay), **changes)))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for hearing in made:
        hearing.close()


def test_opens_and_listings_are_heat_of_their_directory(hear: Hear, overlay: MountedOverlay) -> None:
    hearing = hear(overlay)
    use("open", overlay.at("app/lib/a"), "open", overlay.at("app/lib/b"), "list", overlay.at("app/lib"))
    use("open", overlay.at("app/lib/sub/c"), "list", overlay.mountpoint)
    assert hearing.heat() == {(LIB, Kind.OPEN): 2, (LIB, Kind.LIST): 1, (SUB, Kind.OPEN): 1, (b"", Kind.LIST): 1}
    assert hearing.source.stats().unattributed == 0


def test_what_asks_for_no_open_is_not_heard(hear: Hear, overlay: MountedOverlay) -> None:
    hearing = hear(overlay)
    for action in ("stat", "access", "path"):
        use(action, overlay.at("app/lib/a"), action, overlay.at("app/lib"), action, overlay.at("app/lib/missing"))
    use("open", overlay.at("app/lib/missing"))
    assert hearing.heat() == {}


def test_execution_is_heat(hear: Hear, overlay: MountedOverlay) -> None:
    with open(overlay.at("app/lib/script"), "w") as script:
        script.write("#!/bin/true\n")
    os.chmod(overlay.at("app/lib/script"), 0o700)
    hearing = hear(overlay)
    subprocess.run([overlay.at("app/lib/script")], check=True)
    assert hearing.heat()[LIB, Kind.OPEN] >= 1


def test_odd_names_are_attributed_as_they_are(hear: Hear, make_overlay: MakeOverlay) -> None:
    overlay = make_overlay({**TREE, "odd": {name: {"x": b"1"} for name in ODD_NAMES}, "gone (deleted)": {"y": b"2"}})
    hearing = hear(overlay)
    for name in ODD_NAMES:
        use("open", overlay.at(b"odd/" + name + b"/x"))
    use("list", overlay.at("gone (deleted)"), "open", overlay.at("gone (deleted)/y"))
    expected = {(b"odd/" + name, Kind.OPEN): 1 for name in ODD_NAMES}
    assert hearing.heat() == {**expected, (b"gone (deleted)", Kind.LIST): 1, (b"gone (deleted)", Kind.OPEN): 1}


def test_our_own_opens_are_no_heat_in_any_thread(hear: Hear, overlay: MountedOverlay) -> None:
    hearing = hear(overlay)
    thread = threading.Thread(target=lambda: open(overlay.at("app/lib/a"), "rb").close())
    thread.start()
    thread.join()
    os.listdir(overlay.at("app/lib"))
    assert hearing.heat() == {}
    assert hearing.source.stats().unattributed == 0


def test_what_was_renamed_or_deleted_meanwhile(hear: Hear, overlay: MountedOverlay) -> None:
    hearing = hear(overlay)
    script = (
        "import os, sys; os.chdir(sys.argv[1]); open('lib/a').close(); os.rename('lib/a', 'doc/a');"
        "open('lib/b').close(); os.unlink('lib/b'); os.mkdir('new'); os.listdir('new'); os.rmdir('new')"
    )
    subprocess.run([sys.executable, "-c", script, overlay.at("app")], check=True)
    assert hearing.heat() == {(b"app/doc", Kind.OPEN): 1, (LIB, Kind.OPEN): 1}, "where the file is now, or was last"
    assert hearing.source.stats().unattributed == 1, "a directory that is gone has no path that could be told"


def test_what_policy_leaves_alone_is_never_told(hear: Hear, overlay: MountedOverlay) -> None:
    hearing = hear(overlay)
    use("open", overlay.at("never/e/f"), "list", overlay.at("never/e"))
    assert hearing.heat() == {}


def test_two_mounts_at_once(hear: Hear, make_overlay: MakeOverlay) -> None:
    first, second = make_overlay(TREE), make_overlay(TREE)
    one, other = hear(first), hear(second)
    use("open", first.at("app/lib/a"))
    use("list", second.at("app/lib/sub"))
    assert one.heat() == {(LIB, Kind.OPEN): 1}
    assert other.heat() == {(SUB, Kind.LIST): 1}


def test_opens_through_a_bind_mount_are_those_of_the_same_directory(
    hear: Hear, overlay: MountedOverlay, tmp_path: Path
) -> None:
    hearing = hear(overlay)
    for what in ("app", "app/lib/a"):
        place = bytes(tmp_path) + b"/" + os.path.basename(what).encode()
        _ = open(place, "x").close() if what.endswith("/a") else os.mkdir(place)  # type: ignore[func-returns-value]
        syscalls.mount(overlay.at(what), place, b"", syscalls.MS_BIND)
    try:
        use("open", bytes(tmp_path) + b"/app/lib/b", "list", bytes(tmp_path) + b"/app/lib/sub")
        use("open", bytes(tmp_path) + b"/a")
        assert hearing.heat() == {(LIB, Kind.OPEN): 2, (SUB, Kind.LIST): 1}
    finally:
        for name in (b"app", b"a"):
            syscalls.umount(bytes(tmp_path) + b"/" + name)
    assert hearing.source.stats().unattributed == 0


IN_A_NAMESPACE = """
import ctypes, os, sys
mountpoint, place, jail = map(os.fsencode, sys.argv[1:])
libc = ctypes.CDLL(None, use_errno=True)
def mount(source, target, kind, flags):
    assert libc.mount(source, target, kind, flags, None) == 0, os.strerror(ctypes.get_errno())
assert libc.unshare(0x20000) == 0
mount(b"none", b"/", b"", 16384 | 1 << 18)
mount(b"tmpfs", place, b"tmpfs", 0)
for directory in (b"/app", b"/jail", b"/jail/app", b"/jail/jail", b"/jail/jail/app"):
    os.mkdir(place + directory)
for directory in (b"/app", b"/jail/app", b"/jail/jail/app"):
    mount(mountpoint + b"/app", place + directory, b"", 4096)
libc.umount2(mountpoint, 2)
if jail:
    os.chroot(place + jail)
    place = b""
print("ready", flush=True)
sys.stdin.readline()
os.close(os.open(place + b"/app/lib/a", os.O_RDONLY))
os.close(os.open(place + b"/app/lib/sub", os.O_RDONLY | os.O_DIRECTORY))
if jail == b"/jail":
    os.close(os.open(b"/jail/app/lib/b", os.O_RDONLY))
print("done", flush=True)
sys.stdin.readline()
"""


@pytest.mark.parametrize("jail", ["", "/jail"], ids=["container", "chroot"])
def test_opens_in_another_mount_namespace(hear: Hear, overlay: MountedOverlay, tmp_path: Path, jail: str) -> None:
    """Paths there are seen from that namespace's root; a chroot must not shift what they mean."""
    hearing = hear(overlay)
    arguments = [os.fsdecode(overlay.mountpoint), str(tmp_path), jail]
    with sleeping_process("-c", IN_A_NAMESPACE, *arguments) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"go\n")
        process.stdin.flush()
        assert process.stdout.readline() == b"done\n"
        assert hearing.heat() == {(LIB, Kind.OPEN): 2 if jail else 1, (SUB, Kind.LIST): 1}
    assert hearing.source.stats().unattributed == 0


def test_a_user_that_is_gone_is_found_by_others_of_its_namespace(
    hear: Hear, overlay: MountedOverlay, tmp_path: Path
) -> None:
    hearing = hear(overlay)
    arguments = [os.fsdecode(overlay.mountpoint), str(tmp_path), ""]
    with sleeping_process("-c", IN_A_NAMESPACE, *arguments) as process:
        inside = ("nsenter", "-m", "-t", str(process.pid))
        use("open", bytes(tmp_path) + b"/app/lib/a", within=inside)
        assert hearing.heat() == {(LIB, Kind.OPEN): 1}
    assert hearing.source.stats().unattributed == 0


def test_what_cannot_be_attributed_is_counted_and_not_guessed(
    hear: Hear, overlay: MountedOverlay, tmp_path: Path
) -> None:
    """The path of a file on a mount that nobody has any more begins at that mount's root, and could be any."""
    hearing = hear(overlay)
    script = IN_A_NAMESPACE.replace('print("ready", flush=True)\nsys.stdin.readline()', "")
    script = script.replace('print("done", flush=True)\nsys.stdin.readline()', "")
    subprocess.run([sys.executable, "-c", script, os.fsdecode(overlay.mountpoint), str(tmp_path), ""], check=True)
    assert hearing.heat() == {}
    assert hearing.source.stats().unattributed == 2


# What it costs the server, on a lower layer that counts


def counts(overlay: MountedOverlay) -> dict[str, int]:
    return {name: number for name, number in overlay.counted.counts().items() if number}


def cost(overlay: MountedOverlay, hearing: Hearing | None, *actions: str | bytes) -> dict[str, int]:
    """What the lower layer is asked for these actions of an application, those of the source with it."""
    overlay.reset()
    use(*actions)
    if hearing is not None:
        hearing.heat()
    return counts(overlay)


def test_each_open_that_is_heard_is_one_more_at_the_server(hear: Hear, make_overlay: MakeOverlay) -> None:
    """Why `auto` prefers inotify over NFS."""
    overlay = make_overlay({**TREE, "many": files(50)}, counting=True)
    actions = [word for number in range(50) for word in ("open", overlay.at(f"many/f{number:04}"))]
    cost(overlay, None, *actions)
    unheard = cost(overlay, None, *actions)
    hearing = hear(overlay)
    marker = cost(overlay, hearing)
    heard = cost(overlay, hearing, *actions)
    assert unheard["OPEN"] == 50
    assert heard["OPEN"] - marker.get("OPEN", 0) == 100
    assert heard["LOOKUP"] - marker["LOOKUP"] == unheard["LOOKUP"], "and nothing is looked up for it"


def test_an_overlay_gives_no_file_handles_to_such_a_mark(overlay: MountedOverlay) -> None:
    """Which would need no file to be opened; a mark on one directory gets them (from Linux 6.6 on)."""
    report_directory_and_name = 0xC00
    group = fanotify._libc.fanotify_init(fanotify.FAN_CLOEXEC | report_directory_and_name, os.O_RDONLY)
    try:
        for kind in (fanotify.FAN_MARK_FILESYSTEM, 0x10):  # the latter is FAN_MARK_MOUNT
            mask = ctypes.c_uint64(fanotify.FAN_OPEN)
            assert fanotify._libc.fanotify_mark(group, 1 | kind, mask, -100, overlay.mountpoint) == -1
            assert ctypes.get_errno() == errno.EOPNOTSUPP
        if tuple(map(int, os.uname().release.split(".")[:2])) >= (6, 6):
            mask = ctypes.c_uint64(fanotify.FILES)
            assert fanotify._libc.fanotify_mark(group, 1, mask, -100, overlay.at("app/lib")) == 0
            use("open", overlay.at("app/lib/a"))
            assert b"a\0" in os.read(group, 4096), "the name comes without a file"
    finally:
        os.close(group)


def test_the_cost_of_a_directory_is_bounded(
    hear: Hear, make_overlay: MakeOverlay, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source_module, "ENOUGH", 10)
    monkeypatch.setattr(source_module, "PERIOD", 2.0)
    overlay = make_overlay({**TREE, "many": files(40)}, counting=True)
    hearing = hear(overlay)
    for number in range(10):
        use("open", overlay.at(f"many/f{number:04}"))
    assert hearing.heat() == {(b"many", Kind.OPEN): 10}
    actions = [word for number in range(40) for word in ("open", overlay.at(f"many/f{number:04}"))]
    assert cost(overlay, None, *actions)["OPEN"] == 40
    assert cost(overlay, hearing, *actions, "list", overlay.at("many"))["OPEN"] == 40, "no file is opened once more"
    assert hearing.source.stats().sampled == 10

    def heard_again() -> int:
        use("open", overlay.at("many/f0000"))
        return hearing.heat()[b"many", Kind.OPEN]

    assert wait_for(heard_again) == 1, "in the next period"


def test_directories_that_policy_leaves_alone_cost_nothing_after_the_first_open(
    hear: Hear, make_overlay: MakeOverlay
) -> None:
    overlay = make_overlay({**TREE, "never": {**files(30), "below": files(3)}}, counting=True)
    hearing = hear(overlay)
    use("open", overlay.at("never/f0000"))
    hearing.heat()
    actions = [word for number in range(30) for word in ("open", overlay.at(f"never/f{number:04}"))]
    assert cost(overlay, hearing, *actions)["OPEN"] == 30


def test_starting_asks_the_server_nothing(hear: Hear, make_overlay: MakeOverlay) -> None:
    overlay = make_overlay({**TREE, **{f"d{number}": files(1) for number in range(50)}}, counting=True)
    overlay.reset()
    hear(overlay)
    assert counts(overlay) == {}


# What it must not disturb


def test_the_overlay_can_be_unmounted_at_once(hear: Hear, overlay: MountedOverlay) -> None:
    """An event in the queue holds its file, and with it the mount."""
    hear(overlay)
    use("open", overlay.at("app/lib/a"), "list", overlay.at("app"))
    wait_for(lambda: unmounted(overlay), patience=SLACK)
    overlay.mount()


def test_an_event_that_nobody_reads_keeps_the_mount_busy(overlay: MountedOverlay) -> None:
    """The fact that the test above stands on."""
    with Fanotify() as group:
        group.mark_file_system(overlay.mountpoint)
        use("open", overlay.at("app/lib/a"))
        assert not unmounted(overlay)
        for event in group.read():
            os.close(event.descriptor)
        assert unmounted(overlay), "and the mark alone does not"
    overlay.mount()


LOOP = """
import os, sys, time
for path in sys.argv[1:]:
    open(path, "rb").close()
print("ready", flush=True)
while True:
    for path in sys.argv[1:]:
        open(path, "rb").close()
        time.sleep(0.01)
"""


def takes_effect(overlay: MountedOverlay, path: bytes) -> bool:
    """Whether a mark does, after a reconfigure of ours."""
    with Layers(overlay_at(overlay.mountpoint)) as layers:
        activation.reconfigure(layers.overlay)
        return mark_in_effect(layers.root, layers.upper, path) is True


def test_an_event_that_nobody_reads_pins_its_directory(overlay: MountedOverlay) -> None:
    """Why what is disarmed raises no events, and has none left in the queue."""
    with Fanotify() as group:
        group.mark_file_system(overlay.mountpoint)
        use("open", overlay.at("app/lib/sub/c"))
        complete(overlay, SUB)
        directory = os.open(overlay.at("app/lib/sub"), os.O_PATH)
        group.leave_out(directory, fanotify.EVERYTHING)
        os.close(directory)
        assert not takes_effect(overlay, SUB)
        while events := group.read():
            for event in events:
                os.close(event.descriptor)
        assert takes_effect(overlay, SUB)


def test_a_directory_in_use_can_be_activated(hear: Hear, overlay: MountedOverlay) -> None:
    hearing = hear(overlay)
    os.stat(overlay.at("app/lib/sub/c"))
    complete(overlay, SUB)
    with sleeping_process("-c", LOOP, os.fsdecode(overlay.at("app/lib/sub/c"))):
        wait_for(lambda: hearing.heat()[SUB, Kind.OPEN] > 0)
        hearing.source.disarm([SUB])
        wait_for(lambda: takes_effect(overlay, SUB), patience=3.0)
        hearing.heat()
        assert hearing.heat() == {}, "disarmed, it is not heard"
        hearing.source.rearm([SUB])
        wait_for(lambda: hearing.heat()[SUB, Kind.OPEN] > 0)


def test_what_is_disarmed_holds_nothing_and_is_not_heard(hear: Hear, overlay: MountedOverlay) -> None:
    hearing = hear(overlay)
    hearing.source.disarm([LIB])
    use("open", overlay.at("app/lib/a"), "list", overlay.at("app/lib"), "open", overlay.at("app/lib/sub/c"))
    assert hearing.heat() == {(SUB, Kind.OPEN): 1}, "what lies deeper is"
    hearing.source.rearm([LIB])
    use("open", overlay.at("app/lib/a"), "list", overlay.at("app/lib"))
    assert hearing.heat() == {(LIB, Kind.OPEN): 1, (LIB, Kind.LIST): 1}


def test_what_is_disarmed_stays_so_in_the_next_period(
    hear: Hear, overlay: MountedOverlay, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source_module, "PERIOD", 0.2)
    hearing = hear(overlay)
    source = hearing.source
    assert isinstance(source, FanotifySource)
    source.disarm([LIB])
    use("open", overlay.at("never/e/f"))
    wait_for(lambda: source._period_ends is not None)
    wait_for(lambda: source._period_ends is None)
    use("list", overlay.at("app/lib"))
    assert hearing.heat() == {}


def test_a_dead_server_holds_up_neither_draining_nor_closing(make_overlay: MakeOverlay) -> None:
    overlay = make_overlay(TREE, counting=True)
    source = FanotifySource(view_of(overlay), Sink())
    source.start()
    thread = source._thread
    assert thread is not None
    try:
        with source._reading:
            use("open", overlay.at("app/lib/a"))
            overlay.counted.hang(True)
        wait_for(source._reading.locked, patience=2)
        begun = time.monotonic()
        assert source.drain() == 0
        source.close()
        assert time.monotonic() - begun < SLACK
        assert thread.is_alive(), "it waits for the server"
    finally:
        overlay.counted.hang(False)
        source.close()
    thread.join(5)
    assert not thread.is_alive(), "it ends as soon as the server answers"


# Limits and failures


def test_an_overflow_is_reported_and_hearing_goes_on(hear: Hear, overlay: MountedOverlay) -> None:
    with open("/proc/sys/fs/fanotify/max_queued_events") as file:
        most = int(file.read())
    names = [f"o{number}" for number in range(most + 10)]
    os.mkdir(overlay.at("app/new"))
    for name in names:
        os.close(os.open(overlay.at(f"app/new/{name}"), os.O_CREAT | os.O_WRONLY))
    hearing = hear(overlay)
    source = hearing.source
    assert isinstance(source, FanotifySource)
    script = "import os, sys\nos.chdir(sys.argv[1])\nfor name in os.listdir('.'): os.close(os.open(name, 0))"
    with source._reading:  # the thread is not fast enough
        subprocess.run([sys.executable, "-c", script, overlay.at("app/new")], check=True)
    wait_for(lambda: source.stats().overflows == 1)
    use("open", overlay.at("app/lib/a"))
    assert hearing.heat()[LIB, Kind.OPEN] == 1
    assert hearing.sink.overflows == 1


def test_no_descriptor_is_left_open(hear: Hear, overlay: MountedOverlay) -> None:
    hearing = hear(overlay)
    hearing.heat()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        use("open", overlay.at("app/lib/a"), "list", overlay.at("app/lib"), "open", overlay.at("never/e/f"))
        hearing.heat()
    assert len(os.listdir("/proc/self/fd")) == before


def test_closing_gives_everything_back(overlay: MountedOverlay) -> None:
    def own() -> list[str]:
        return [link for number in os.listdir("/proc/self/fd") if "notify" in (link := _link(number))]

    before = len(own())
    source = Hearing(overlay).source
    assert isinstance(source, FanotifySource)
    thread = source._thread
    assert len(own()) == before + 1
    source.close()
    source.close()
    assert thread is not None
    thread.join(5)
    assert len(own()) == before
    use("open", overlay.at("app/lib/a"))
    assert source.drain() == 0
    source.disarm([LIB])
    source.rearm([LIB])
    overlay.umount()
    overlay.mount()


def _link(number: str) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{number}")
    except OSError:
        return ""


def test_a_thread_that_ends_is_told_to_whoever_drains(hear: Hear, overlay: MountedOverlay) -> None:
    hearing = hear(overlay, may_promote=lambda _path: 1 / 0)
    use("open", overlay.at("app/lib/a"))
    with pytest.raises(NoHeatSource, match="division by zero"):
        wait_for(lambda: hearing.source.drain() < 0)
    assert isinstance(hearing.source, FanotifySource)
    assert hearing.source._thread is not None
    hearing.source._thread.join(5)
    hearing.source.disarm([LIB])
    hearing.source.rearm([LIB])


def test_without_the_right_to_it_says_so() -> None:
    script = "from promoterd.heat.fanotify import FanotifySource; print(FanotifySource.unfit())"
    done = subprocess.run(
        ["setpriv", "--bounding-set", "-sys_admin", "--inh-caps", "-sys_admin", sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "it needs CAP_SYS_ADMIN in the initial user namespace"


def test_a_mount_that_is_gone_cannot_be_heard(overlay: MountedOverlay) -> None:
    view = view_of(overlay)
    overlay.umount()
    with pytest.raises(MountGone):
        FanotifySource(view, Sink()).start()
    overlay.mount()


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (errno.EMFILE, "the kernel grants no more fanotify groups (fs.fanotify.max_user_groups)"),
        (errno.ENOSYS, "this kernel has no fanotify"),
        (errno.EINVAL, "this kernel's fanotify cannot leave directories out (Linux 6.0)"),
        (errno.ENOMEM, "fanotify_init: Cannot allocate memory"),
    ],
)
def test_what_the_kernel_refuses_is_named(error: int, said: str) -> None:
    script = (
        refusing_fanotify(error) + "from promoterd.heat.fanotify import FanotifySource; print(FanotifySource.unfit())"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == said


def test_what_is_unfit_does_not_start(overlay: MountedOverlay, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fanotify, "lack", lambda: "this kernel has no fanotify")
    with pytest.raises(NoHeatSource, match="fanotify cannot be had: this kernel has no fanotify"):
        FanotifySource(view_of(overlay), Sink()).start()
