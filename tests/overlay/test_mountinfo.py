import asyncio
import os
from functools import partial
from pathlib import Path

import pytest

from promoterd.overlay import syscalls
from promoterd.overlay.mountinfo import MountEntry, MountTree, MountWatch, parse, read

TABLE = rb"""
21 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw,discard
22 21 0:21 / /proc rw,nosuid shared:2 master:7 propagate_from:3 - proc proc rw
30 21 0:30 / /mnt/a rw - tmpfs tmpfs rw
31 30 0:31 / /mnt/a/b ro - tmpfs under rw
32 31 0:32 / /mnt/a/b rw - tmpfs over rw
33 21 0:33 /exported/sub /bind\040here rw - nfs4 server:/export\040one rw,vers=4.2
34 21 0:34 / /new\012line rw - tmpfs  rw
35 21 0:35 / /hidden/deep rw - tmpfs deep rw
36 21 0:36 / /hidden rw - tmpfs cover rw
torn 21 0:36
""".lstrip(b"\n")


@pytest.fixture
def entries() -> list[MountEntry]:
    return parse(TABLE)


def test_fields(entries: list[MountEntry]) -> None:
    by_id = {entry.mount_id: entry for entry in entries}
    assert len(by_id) == 9
    assert by_id[22].fstype == "proc"  # behind three optional fields
    assert by_id[33].mountpoint == b"/bind here"
    assert by_id[33].root == b"/exported/sub"
    assert by_id[33].source == b"server:/export one"
    assert by_id[34].mountpoint == b"/new\nline"
    assert by_id[34].source == b""
    assert by_id[21].device == (254, 0)
    assert by_id[31].options == ("ro",)


@pytest.mark.parametrize(
    ("path", "source"),
    [
        (b"/", b"/dev/vda"),
        (b"/etc", b"/dev/vda"),
        (b"/mnt/ab", b"/dev/vda"),
        (b"/mnt/a", b"tmpfs"),
        (b"/mnt/a/x", b"tmpfs"),
        (b"/mnt/a/b", b"over"),
        (b"/mnt/a/b/c", b"over"),
        (b"/hidden/deep", b"cover"),
    ],
)
def test_which_mount_answers_at_a_path(entries: list[MountEntry], path: bytes, source: bytes) -> None:
    found = MountTree(entries).at(path)
    assert found is not None
    assert found.source == source


def test_what_another_mount_hides(entries: list[MountEntry]) -> None:
    tree = MountTree(entries)
    assert {entry.source for entry in entries if not tree.is_visible(entry)} == {b"under", b"deep"}


def test_an_empty_table_answers_nothing() -> None:
    assert MountTree([]).at(b"/") is None


@pytest.mark.parametrize("path", [b"/", b"/proc", b"/sys", b"/dev", b"/dev/pts"])
def test_the_running_table_agrees_with_the_kernel(path: bytes) -> None:
    found = MountTree(read()).at(path)
    descriptor = os.open(path, os.O_PATH)
    try:
        assert found is not None
        assert found.mount_id == syscalls.statx(descriptor).mount_id
    finally:
        os.close(descriptor)


@pytest.mark.needs("root")
def test_a_mount_is_noticed_once(tmp_path: Path) -> None:
    with MountWatch() as watch:
        watch.wait(0)
        assert not watch.wait(0)
        syscalls.mount(b"none", bytes(tmp_path), b"tmpfs")
        assert watch.wait(1)
        assert not watch.wait(0)
        syscalls.umount(bytes(tmp_path))
        assert watch.wait(1)


@pytest.mark.needs("root")
def test_an_event_loop_can_wait_for_mounts(tmp_path: Path) -> None:
    async def noticed() -> list[int]:
        loop = asyncio.get_running_loop()
        changes = asyncio.Queue[int]()
        counts = []
        with MountWatch() as watch:
            watch.wait(0)
            loop.add_reader(watch.fileno(), lambda: changes.put_nowait(1))
            for change in (
                partial(syscalls.mount, b"none", bytes(tmp_path), b"tmpfs"),
                partial(syscalls.umount, bytes(tmp_path)),
            ):
                await asyncio.sleep(0.05)
                counts.append(-changes.qsize())  # readable without a change
                change()
                counts[-1] += await asyncio.wait_for(changes.get(), 2)
                await asyncio.sleep(0.05)
                while not changes.empty():
                    counts[-1] += changes.get_nowait()
            loop.remove_reader(watch.fileno())
        return counts

    # whatever else runs on the machine may mount something meanwhile, but hardly each time
    assert [1, 1] in (asyncio.run(noticed()) for _ in range(5))


def test_closing_twice_is_harmless() -> None:
    watch = MountWatch()
    watch.close()
    watch.close()
