"""Finding directories: what one of them fails with keeps none of the others from being found or looked at."""

import asyncio
import errno
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from structlog.testing import capture_logs

from promoterd import finding
from promoterd.errors import MountGone, PromoterdError, Refused
from promoterd.finding import Finder
from promoterd.heat import discovery
from promoterd.mounted import Mounted
from promoterd.overlay.listing import Layers, Stamp
from promoterd.overlay.parts import Places
from promoterd.pool import PoolClosed
from promoterd.rechecking import Rechecker
from promoterd.states import State
from support.mounts import taken
from support.overlays import MountedOverlay
from support.soundness import REDIRECT
from support.trees import Tree, files

MakeOverlay = Callable[..., MountedOverlay]
BAD, GOOD, LIB = b"a", b"b", b"z/lib"
RULES: Sequence[dict[str, Any]] = [
    {"path": "a", "growing": True},
    {"path": "b", "growing": True},
    {"path": "a/*"},
    {"path": "b/*"},
    {"path": "z/lib", "promote": "always"},
]
FAILURES = [Refused(path="/a", reason="there is no way"), OSError(errno.EIO, "Input/output error")]


def tree() -> Tree:
    return {"a": files(1), "b": files(1), "z": {"lib": files(1)}}


def fail_at(bad: bytes, error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    """Looking at one directory fails."""
    original = finding._stamps

    def stamps(path: bytes, layers: Layers) -> tuple[Stamp, ...]:
        if path == bad:
            raise error
        return original(path, layers)

    monkeypatch.setattr(finding, "_stamps", stamps)


async def found(mount: Mounted, path: bytes = LIB) -> Finder:
    """A finder that has found this directory, and still runs then."""
    finder = Finder(mount, lambda: None)
    finding_ = asyncio.create_task(finder.run())
    deadline = time.monotonic() + 5
    while path not in finder.always:
        assert not finding_.done(), finding_.exception()
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)
    assert not finding_.done()
    finding_.cancel()
    await asyncio.wait({finding_})
    return finder


def test_a_growing_directory_that_is_refused_is_left_aside(make_overlay: MakeOverlay) -> None:
    mounted = make_overlay(tree())
    os.setxattr(mounted.on_server(BAD), REDIRECT, b"/elsewhere")

    async def find() -> None:
        with taken(mounted, RULES) as mount, capture_logs() as logs:
            finder = await found(mount)
            (failed,) = [said for said in logs if said["event"] == "discovery_failed"]
            assert failed["path"] == "/a"
            assert "redirect" in failed["reason"]
            assert finder.growing[GOOD]
            assert not await finder.changed(GOOD)
            with pytest.raises(Refused, match="redirect"):
                await finder.changed(BAD)
            os.removexattr(mounted.on_server(BAD), REDIRECT)
            assert await finder.changed(BAD), "what was published in it meanwhile is looked for"
            assert not await finder.changed(BAD)

    asyncio.run(find())


@pytest.mark.parametrize("error", FAILURES, ids=["refused", "error"])
def test_a_growing_directory_that_cannot_be_read_is_left_aside(
    make_overlay: MakeOverlay, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    fail_at(BAD, error, monkeypatch)
    with taken(make_overlay(tree()), RULES) as mount, capture_logs() as logs:
        finder = asyncio.run(found(mount))
        assert finder.growing[BAD] == ()
        assert finder.growing[GOOD] != ()
        assert [said["path"] for said in logs if said["event"] == "discovery_failed"] == ["/a"]


@pytest.mark.parametrize("error", [MountGone(mountpoint="/mnt"), PoolClosed("pool")], ids=["gone", "closed"])
def test_a_mount_that_is_gone_ends_it(
    make_overlay: MakeOverlay, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    fail_at(BAD, error, monkeypatch)
    with taken(make_overlay(tree()), RULES) as mount:
        with pytest.raises(type(error)):
            asyncio.run(asyncio.wait_for(Finder(mount, lambda: None).run(), 5))
        finder = Finder(mount, lambda: None)
        finder.growing[BAD] = ()
        with pytest.raises(type(error)):
            asyncio.run(Rechecker(mount, finder, lambda: None)._look(mount.clock()))


def test_a_search_that_fails_is_begun_anew_and_keeps_no_other_from_its_turn(
    make_overlay: MakeOverlay, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finding, "AGAIN_AFTER", 0.2)
    with taken(make_overlay(tree()), RULES) as mount, capture_logs() as logs:
        finder = Finder(mount, lambda: None)
        finder._starts = {BAD, b"z"}
        original, tried = finder._find_below, []

        async def find_below(start: bytes) -> None:
            tried.append(start)
            if tried.count(BAD) < 3 and start == BAD:
                raise OSError(errno.EIO, "Input/output error")
            await original(start)

        monkeypatch.setattr(finder, "_find_below", find_below)

        async def find() -> None:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(finder.run(), 1.5)

        asyncio.run(find())
        assert tried == [BAD, b"z", BAD, BAD]
        assert finder.always == {LIB}
        assert [said["path"] for said in logs if said["event"] == "discovery_failed"] == ["/a", "/a"]


@pytest.mark.parametrize("error", FAILURES, ids=["refused", "error"])
def test_the_others_are_rechecked(
    make_overlay: MakeOverlay, monkeypatch: pytest.MonkeyPatch, error: PromoterdError | OSError
) -> None:
    """One growing directory fails, and so does one that follows: those after them are looked at all the same."""
    mounted = make_overlay(tree())
    with taken(mounted, RULES) as mount, capture_logs() as logs:
        finder = asyncio.run(found(mount))
        activated: list[bool] = []
        fail_at(BAD, error, monkeypatch)
        os.mkdir(mounted.on_server("b/new"))
        looked: list[bytes] = []

        def follow_lower(layers: Layers, path: bytes) -> bool:
            del layers
            looked.append(path)
            if path == b"m":
                raise error
            return False

        monkeypatch.setattr("promoterd.backends.upper.follow_lower", follow_lower)
        mount.followed.update({b"m", b"n"})
        asyncio.run(Rechecker(mount, finder, lambda: activated.append(True))._look(mount.clock()))
        assert [said["path"] for said in logs if said["event"] == "recheck_failed"] == ["/a"]
        assert [said["path"] for said in logs if said["event"] == "growing_changed"] == ["/b"]
        assert [said["path"] for said in logs if said["event"] == "follow_failed"] == ["/m"]
        assert activated
        assert looked == [GOOD, b"m", b"n"]


class Hearing:
    """As much of a heat source as the finder uses."""

    wants_directories = True

    def __init__(self, meanwhile: Callable[[Sequence[bytes]], None]) -> None:
        self.armed: list[bytes] = []
        self._meanwhile = meanwhile

    def arm(self, paths: Sequence[bytes]) -> None:
        self.armed += paths
        self._meanwhile(paths)

    def refused(self) -> list[bytes]:
        return []


def test_what_is_promoted_in_any_case_is_so_when_the_walk_has_read_it(
    make_overlay: MakeOverlay, monkeypatch: pytest.MonkeyPatch
) -> None:
    mounted = make_overlay({"z": {"lib": {"sub": files(1)}, "bin": files(1)}})
    read: set[bytes] = set()
    children = discovery._children

    def reading(roots: Sequence[int], path: bytes, above: Places | None) -> tuple[list[str], Places]:
        found = children(roots, path, above)
        read.add(path)
        return found

    monkeypatch.setattr(discovery, "_children", reading)
    expected = {b"z/lib", b"z/bin", b"z/lib/sub"}

    async def find() -> None:
        with taken(mounted, [{"path": "z/**", "promote": "always"}]) as mount:
            seen: list[tuple[set[bytes], set[bytes]]] = []
            all_ = asyncio.Event()

            def look() -> None:
                seen.append((set(finder.always), set(read)))
                if finder.always == expected:
                    all_.set()

            finder = Finder(mount, look)
            finding_ = asyncio.create_task(finder.run())
            await all_.wait()
            finding_.cancel()
            await asyncio.wait({finding_})
            assert all(always <= done for always, done in seen)
            assert len({len(always) for always, _ in seen}) > 2, "level by level"

    asyncio.run(asyncio.wait_for(find(), 10))


@pytest.mark.parametrize("by_inode", [True, False])
def test_what_is_found_in_a_directory_that_becomes_complete_is_heard_anew(
    make_overlay: MakeOverlay, monkeypatch: pytest.MonkeyPatch, *, by_inode: bool
) -> None:
    """With a layer: by then it is another inode, and the watch on the former one stays silent."""
    mounted = make_overlay({name: {"one": files(1)} for name in "abcz"} | {"z": {"lib": files(1)}})
    states = {b"a": State.SHADOWING, b"c": State.ACTIVE}

    async def find() -> None:
        with taken(mounted, [*RULES, {"path": "c/*"}]) as mount:
            monkeypatch.setattr(type(mount.backend), "effect_shows_in_inode", by_inode)
            for path, state in states.items():
                mount.book.move(path, state, now=0, regardless=True)

            def become_active(armed: Sequence[bytes]) -> None:
                if b"b/one" in armed:
                    mount.book.move(b"b", State.ACTIVE, now=0, regardless=True)

            looked = asyncio.Event()
            hearing = Hearing(become_active)
            finder = Finder(mount, lambda: looked.set() if LIB in hearing.armed else None)
            finder.source = hearing  # type: ignore[assignment]
            finding_ = asyncio.create_task(finder.run())
            await looked.wait()
            finding_.cancel()
            await asyncio.wait({finding_})
            assert {b"a/one", b"b/one", b"c/one"} <= set(hearing.armed)
            expected = {b"a/one", b"b/one"} if by_inode else set()
            assert mount.renewing == expected, "and not what was made anew long ago"

    asyncio.run(asyncio.wait_for(find(), 10))
