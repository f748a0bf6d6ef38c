import os
import select
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from promoterd import inotify
from promoterd.inotify import Inotify, RawEvent
from support.trees import ODD_NAMES

ALL_KINDS = inotify.IN_OPEN | inotify.IN_CREATE | inotify.IN_DELETE | inotify.IN_DELETE_SELF

# root of a user namespace may lower that namespace's own limits (Documentation/admin-guide/sysctl/user.rst)
LIMITED = """
import os, sys
sys.path[:0] = {path!r}
from promoterd.errors import PromoterdError
from promoterd.inotify import IN_OPEN, Inotify
with open("/proc/sys/user/max_inotify_{what}", "w") as limit:
    limit.write("2")
kept = []
try:
    instance = Inotify()
    for name in sys.argv[1:]:
        if "{what}" == "instances":
            kept.append(Inotify())
        else:
            descriptor = os.open(name, os.O_PATH)
            kept.append(instance.add(descriptor, IN_OPEN))
except PromoterdError as error:
    print(type(error).__name__, len(kept), error)
"""


def watch(instance: Inotify, path: bytes | Path, mask: int = ALL_KINDS) -> int:
    descriptor = os.open(path, os.O_PATH)
    try:
        return instance.add(descriptor, mask)
    finally:
        os.close(descriptor)


@pytest.fixture
def instance() -> Iterator[Inotify]:
    with Inotify() as made:
        yield made


def test_flags_are_the_kernel_s() -> None:
    assert (inotify.IN_ACCESS, inotify.IN_OPEN, inotify.IN_IGNORED) == (0x1, 0x20, 0x8000)
    assert (inotify.IN_ONLYDIR, inotify.IN_ISDIR) == (0x1000000, 0x40000000)


def test_an_open_below_a_watched_directory_is_one_event_with_the_name(instance: Inotify, tmp_path: Path) -> None:
    (tmp_path / "lib.so").write_bytes(b"x")
    wd = watch(instance, tmp_path)
    os.close(os.open(tmp_path / "lib.so", os.O_RDONLY))
    assert instance.read() == [RawEvent(wd, inotify.IN_OPEN, 0, b"lib.so")]


def test_names_come_as_the_bytes_they_are(instance: Inotify, tmp_path: Path) -> None:
    wd = watch(instance, tmp_path, inotify.IN_CREATE)
    for name in ODD_NAMES:
        os.close(os.open(bytes(tmp_path) + b"/" + name, os.O_CREAT | os.O_WRONLY))
    assert instance.read() == [RawEvent(wd, inotify.IN_CREATE, 0, name) for name in ODD_NAMES]


def test_an_oddly_named_directory_can_be_watched(instance: Inotify, tmp_path: Path) -> None:
    odd = bytes(tmp_path) + b"/not-utf8-\xff"
    os.mkdir(odd)
    wd = watch(instance, odd)
    os.listdir(odd)
    assert instance.read() == [RawEvent(wd, inotify.IN_OPEN | inotify.IN_ISDIR, 0, b"")]


def test_a_watch_is_on_what_the_descriptor_refers_to_and_not_on_its_former_name(
    instance: Inotify, tmp_path: Path
) -> None:
    (tmp_path / "here").mkdir()
    descriptor = os.open(tmp_path / "here", os.O_PATH)
    (tmp_path / "here").rename(tmp_path / "there")
    (tmp_path / "here").symlink_to("/etc")
    wd = instance.add(descriptor, ALL_KINDS | inotify.IN_ONLYDIR)
    os.close(descriptor)
    os.listdir(tmp_path / "here")
    assert instance.read() == []
    os.listdir(tmp_path / "there")
    assert [event.wd for event in instance.read()] == [wd]


def test_reading_never_waits(instance: Inotify) -> None:
    assert instance.read() == []


def test_the_descriptor_can_be_polled_and_is_not_inherited(instance: Inotify, tmp_path: Path) -> None:
    watch(instance, tmp_path)
    assert not os.get_inheritable(instance.fileno())
    assert select.select([instance], [], [], 0)[0] == []
    os.listdir(tmp_path)
    assert select.select([instance], [], [], 1)[0] == [instance]


def test_removing_a_watch_ends_its_events_and_is_confirmed(instance: Inotify, tmp_path: Path) -> None:
    wd = watch(instance, tmp_path)
    instance.remove(wd)
    os.listdir(tmp_path)
    assert instance.read() == [RawEvent(wd, inotify.IN_IGNORED, 0, b"")]


def test_removing_a_watch_that_the_kernel_has_dropped_is_no_error(instance: Inotify, tmp_path: Path) -> None:
    (tmp_path / "gone").mkdir()
    wd = watch(instance, tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert [event.mask for event in instance.read()] == [inotify.IN_DELETE_SELF, inotify.IN_IGNORED]
    instance.remove(wd)


def test_only_directories_where_asked_for(instance: Inotify, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        watch(instance, tmp_path / "file", ALL_KINDS | inotify.IN_ONLYDIR)


def test_a_queue_that_overflows_says_so_and_goes_on(instance: Inotify, tmp_path: Path) -> None:
    with open("/proc/sys/fs/inotify/max_queued_events") as file:
        longest = int(file.read())
    (tmp_path / "a").touch()
    (tmp_path / "b").touch()
    wd = watch(instance, tmp_path, inotify.IN_OPEN)
    for _ in range(longest // 2 + 1):  # in turn, since the kernel merges equal neighbours
        os.close(os.open(tmp_path / "a", os.O_RDONLY))
        os.close(os.open(tmp_path / "b", os.O_RDONLY))
    events = []
    while found := instance.read():
        events += found
    assert len(events) == longest + 1
    assert events[-1] == RawEvent(-1, inotify.IN_Q_OVERFLOW, 0, b"")
    os.close(os.open(tmp_path / "a", os.O_RDONLY))
    assert instance.read() == [RawEvent(wd, inotify.IN_OPEN, 0, b"a")]


def test_identities_are_those_of_the_live_watches(instance: Inotify, tmp_path: Path) -> None:
    directories = [tmp_path / str(number) for number in range(40)]
    for directory in directories:
        directory.mkdir()
    wds = [watch(instance, directory) for directory in directories]
    status = os.stat(directories[1])
    found = instance.identities()[wds[1]]
    assert found.ino == status.st_ino
    # the kernel's own dev_t: 12 bits of major above 20 of minor (include/linux/kdev_t.h)
    assert found.sdev == os.major(status.st_dev) << 20 | os.minor(status.st_dev)
    directories[0].rmdir()
    assert set(instance.identities()) == set(wds[1:])


def test_fdinfo_lines_of_other_kinds_are_none() -> None:
    assert inotify.parse_watch(b"pos:\t0\n") is None
    assert inotify.parse_watch(b"inotify wd:1f ino:2a sdev:800013 mask:20 ignored_mask:0 fhandle-bytes:8\n") == (
        31,
        inotify.WatchedInode(0x800013, 42),
    )


def test_the_limits_are_the_kernel_s() -> None:
    for name, found in (("watches", inotify.watch_limit()), ("instances", inotify.instance_limit())):
        with open(f"/proc/sys/fs/inotify/max_user_{name}") as file:
            assert found == int(file.read())


@pytest.mark.needs("root")
@pytest.mark.parametrize(
    ("what", "expected"), [("watches", "WatchLimitReached 2"), ("instances", "InstanceLimitReached 1")]
)
def test_a_limit_of_the_kernel_is_an_error_that_names_the_sysctl(tmp_path: Path, what: str, expected: str) -> None:
    names = [tmp_path / str(number) for number in range(4)]
    for name in names:
        name.mkdir()
    script = LIMITED.format(path=sys.path, what=what)
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", sys.executable, "-W", "ignore", "-c", script, *names],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith(expected)
    assert f"fs.inotify.max_user_{what}" in done.stdout


def test_closing_twice_is_fine_and_use_after_it_is_an_error(tmp_path: Path) -> None:
    instance = Inotify()
    instance.close()
    instance.close()
    with pytest.raises(ValueError, match="closed"):
        watch(instance, tmp_path)
    with pytest.raises(ValueError, match="closed"):
        instance.read()


def test_closing_does_not_take_the_descriptor_from_a_call_under_way() -> None:
    instance = Inotify()
    number = instance.fileno()
    inside, leave = threading.Event(), threading.Event()

    def hang() -> None:  # as an add on a dead server does
        with instance._in_use():
            inside.set()
            leave.wait()

    thread = threading.Thread(target=hang)
    thread.start()
    inside.wait()
    instance.close()
    os.fstat(number)
    leave.set()
    thread.join()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(number)
