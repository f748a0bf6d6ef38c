import asyncio
import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from structlog.testing import capture_logs

from promoterd.activating import activate
from promoterd.errors import MountGone, Refused
from promoterd.finding import Finder
from promoterd.mounted import Mounted
from promoterd.overlay import activation, ghosts
from promoterd.overlay.ghosts import Removed
from promoterd.overlay.listing import Layers
from promoterd.promotion import promote
from promoterd.rechecking import Rechecker
from promoterd.reopen import reopen_wanted
from promoterd.staleness import recheck, too_many_vanished
from promoterd.states import State
from support.mounts import taken
from support.overlays import MountedOverlay
from support.reconfiguring import on_reconfigure
from support.trees import files

MakeOverlay = Callable[..., MountedOverlay]
LIBRARIES = [b"r%d/lib" % number for number in range(4)]
RULES = [{"path": "*/lib", "recheck": "1h", "writers": "none"}]
FAILURES = [OSError(errno.ESTALE, "Stale file handle"), Refused(path="/r0", reason="there is no way")]


@pytest.mark.parametrize(
    ("vanished", "checked", "too_many"),
    [
        (0, 0, False),
        (1, 1, False),
        (2, 2, False),
        (2, 39, False),
        (3, 3, True),
        (3, 59, True),
        (3, 60, False),
        (5, 100, False),
        (6, 100, True),
        (50, 1000, False),
        (51, 1000, True),
    ],
)
def test_too_many_vanished(vanished: int, checked: int, too_many: bool) -> None:
    """More than 5 %, and at least 3 (R1)."""
    assert too_many_vanished(vanished, checked) is too_many


@contextmanager
def promoted(make_overlay: MakeOverlay) -> Iterator[tuple[MountedOverlay, Mounted]]:
    mounted = make_overlay({f"r{number}": {"lib": files(2)} for number in range(4)})
    with taken(mounted, RULES) as mount:
        for path in LIBRARIES:
            asyncio.run(promote(mount, path))
        yield mounted, mount


def look(mount: Mounted, after: float) -> int:
    """What is due so many seconds later is looked at; how often that asks for an activation."""
    asked: list[None] = []
    rechecker = Rechecker(mount, Finder(mount, lambda: None), lambda: asked.append(None))
    asyncio.run(rechecker._look(mount.clock() + after))
    return len(asked)


def failing_at(bad: bytes, error: Exception, monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The removal of one ghost fails; returns those that were tried."""
    original, tried = ghosts.remove_ghost, []

    def remove_ghost(layers: Layers, path: bytes, scratch_name: bytes) -> Removed:
        tried.append(path)
        if path == bad:
            raise error
        return original(layers, path, scratch_name)

    monkeypatch.setattr(ghosts, "remove_ghost", remove_ghost)
    return tried


@pytest.mark.parametrize("error", FAILURES, ids=["error", "refused"])
def test_a_ghost_that_cannot_be_removed_keeps_nothing_else_from_its_turn(
    make_overlay: MakeOverlay, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    with promoted(make_overlay) as (mounted, mount), capture_logs() as logs:
        shutil.rmtree(mounted.on_server("r0"))
        shutil.rmtree(mounted.on_server("r1"))
        os.mkdir(mounted.on_server("r2/lib/new"))
        tried = failing_at(b"r0", error, monkeypatch)
        begun = mount.clock()
        look(mount, 4000)
        assert tried == [b"r0", b"r1"]
        assert not os.path.lexists(mounted.at("r1"))
        assert mount.book.state(b"r1/lib") is State.COLD
        assert [said["path"] for said in logs if said["event"] == "ghost_removed"] == ["/r1"]
        assert [said["path"] for said in logs if said["event"] == "stale"] == ["/r2/lib"]
        assert mount.book.state(b"r2/lib") is State.COLD, "it was reopened"
        (failed,) = [said for said in logs if said["event"] == "recheck_failed"]
        assert failed["path"] == "/r0"
        assert str(error) in failed["reason"]
        record = mount.book.get(b"r0/lib")
        assert record is not None
        assert (record.state, (record.last_checked or 0) >= begun) == (State.COMPLETE, True)

        look(mount, 1)
        assert tried == [b"r0", b"r1"], "nor is it tried at each look"
        monkeypatch.undo()
        look(mount, 4000)
        assert not os.path.lexists(mounted.at("r0"))
        assert mount.book.state(b"r0/lib") is State.COLD


def test_what_is_held_at_a_reopening_is_not_shown_for_ever(
    make_overlay: MakeOverlay, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever opens a file between the proof and the removal of its shadow keeps that one for everybody."""
    monkeypatch.setattr(activation, "TRIES", 2)

    async def activated() -> int:
        async with mount.changing:
            return (await activate(mount)).kept

    with promoted(make_overlay) as (mounted, mount):
        changed, other = mounted.at("r0/lib/f0000"), mounted.on_server("r0/lib/f0000.new")
        with open(other, "wb") as file:
            file.write(b"new and longer")
        os.rename(other, mounted.on_server("r0/lib/f0000"))
        asyncio.run(activated())
        opened: list[int] = []
        with on_reconfigure(monkeypatch, lambda: opened.append(os.open(changed, os.O_RDONLY)), after=True):
            assert look(mount, 4000) == 1
        assert mount.book.state(b"r0/lib") is State.COLD, "it was reopened"
        assert os.stat(changed).st_nlink == 0, "the kernel shows what was removed"
        assert asyncio.run(activated()) == 1
        os.close(*opened)
        assert asyncio.run(activated()) == 0
        with open(changed, "rb") as shown:
            assert shown.read() == b"new and longer"


def test_a_mount_that_is_gone_is_no_ghost_that_cannot_be_removed(
    make_overlay: MakeOverlay, monkeypatch: pytest.MonkeyPatch
) -> None:
    with promoted(make_overlay) as (mounted, mount):
        shutil.rmtree(mounted.on_server("r0"))
        failing_at(b"r0", MountGone(mountpoint="/mnt"), monkeypatch)
        with pytest.raises(MountGone):
            asyncio.run(recheck(mount, LIBRARIES))


def test_a_reopening_that_fails_keeps_no_other_from_its_turn(
    make_overlay: MakeOverlay, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail_or_reopen(mount: Mounted, *paths: bytes) -> Any:
        if b"r0/lib" in paths:
            raise OSError(errno.EIO, "Input/output error")
        return await reopen_wanted(mount, *paths)

    with promoted(make_overlay) as (mounted, mount):
        for name in ("r0", "r1"):
            os.mkdir(mounted.on_server(f"{name}/lib/new"))
        monkeypatch.setattr("promoterd.staleness.reopen_wanted", fail_or_reopen)
        assert asyncio.run(recheck(mount, LIBRARIES)) == [b"r1/lib"]
        record = mount.book.get(b"r0/lib")
        assert record is not None
        assert record.state is State.STALE
        assert record.reason == "reopening is deferred: [Errno 5] Input/output error"
