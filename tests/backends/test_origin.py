"""Why the origin of metadata copies is not removed, though it costs an NFS server a GETATTR for each cold lookup.

With it an overlay knows a file by its lower inode as long as it is remembered; without it, by its upper one as soon as
its data have been copied up. What is remembered from before and what is looked up afterwards are then two inodes of
one file. Nothing here is done by the code under test: this is what it leaves undone.
"""

import fcntl
import os
from collections.abc import Callable

import pyinotify
import pytest

from promoterd.overlay import syscalls
from support.overlays import OPTIONS, MountedOverlay
from support.promotions import ORIGIN, Bench
from support.soundness import xattr
from support.trees import Hardlink, files

MakeOverlay = Callable[..., MountedOverlay]
D = b"d"


def without_origins(mounted: MountedOverlay, *, removed: bool) -> None:
    """Take the origin off every file of the complete directory, and let the overlay forget it."""
    paths = [mounted.in_upper(D + b"/" + name) for name in os.listdir(mounted.in_upper(D))]
    assert all(xattr(path, ORIGIN) is not None for path in paths)
    for path in paths if removed else ():
        if xattr(path, ORIGIN) is not None:  # a hard link of one before has lost it with that
            os.removexattr(path, ORIGIN, follow_symlinks=False)
    mounted.cool()


def excludes(first: int, second: int) -> bool:
    """Whether an exclusive lock by way of one descriptor keeps the other from having it."""
    fcntl.flock(first, fcntl.LOCK_EX | fcntl.LOCK_NB)
    try:
        fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False


@pytest.mark.parametrize("removed", [False, True])
@pytest.mark.parametrize("counting", [False, True])
def test_two_programs_would_hold_one_exclusive_lock(make_overlay: MakeOverlay, counting: bool, removed: bool) -> None:
    mounted = make_overlay({"d": files(2)}, counting=counting)
    Bench(mounted).promote(D)
    without_origins(mounted, removed=removed)
    os.link(mounted.at("d/f0000"), mounted.at("d/again"))
    first = os.open(mounted.at("d/f0000"), os.O_RDWR)
    mounted.cool()
    second = os.open(mounted.at("d/again"), os.O_RDWR)
    try:
        assert os.path.samestat(os.fstat(first), os.fstat(second)) is not removed
        assert excludes(first, second) is not removed
    finally:
        os.close(first)
        os.close(second)


@pytest.mark.parametrize("removed", [False, True])
def test_others_watches_on_files_would_go_dead(make_overlay: MakeOverlay, removed: bool) -> None:
    mounted = make_overlay({"d": files(2)})
    Bench(mounted).promote(D)
    without_origins(mounted, removed=removed)
    manager = pyinotify.WatchManager()
    notifier = pyinotify.Notifier(manager, timeout=200)
    manager.add_watch(os.fsdecode(mounted.at("d/f0000")), pyinotify.IN_MODIFY)

    def heard() -> bool:
        with open(mounted.at("d/f0000"), "ab") as file:
            file.write(b"more")
        if not notifier.check_events():
            return False
        notifier.read_events()
        return True

    try:
        assert heard()
        mounted.cool()
        assert heard() is not removed
    finally:
        notifier.stop()


@pytest.mark.parametrize("removed", [False, True])
def test_an_overlay_with_an_index_could_not_be_mounted_again(make_overlay: MakeOverlay, removed: bool) -> None:
    mounted = make_overlay({"d": {"a": b"data", "b": Hardlink("d/a")}}, options=f"{OPTIONS},index=on")
    Bench(mounted).promote(D)
    without_origins(mounted, removed=removed)
    assert os.stat(mounted.at("d/a")).st_nlink == (3 if removed else 2)
    syscalls.umount(mounted.mountpoint)
    if removed:
        with pytest.raises(OSError, match="No data available"):
            mounted.mount()
    else:
        mounted.mount()
