"""Undoing a completion: nothing deleted comes back, nothing of a user's is lost, and the server is seen again (I6)."""

import errno
import itertools
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest

from promoterd.backends import reopening
from promoterd.backends.base import Busy, MarkState
from promoterd.backends.reopening import finish_interrupted, reopen_unmounted
from promoterd.errors import Refused
from promoterd.overlay import activation, rolls, xattrs
from promoterd.overlay.listing import Layers
from support.overlays import MountedOverlay
from support.promotions import Bench, assert_marks_are_sound, assert_same_view
from support.reconfiguring import on_reconfigure
from support.soundness import OPAQUE, PROVENANCE, is_whiteout, xattr
from support.trees import OLD, Directory, Symlink, Tree, files

LIB = b"opt/lib"
MakeOverlay = Callable[..., MountedOverlay]


def tree() -> Tree:
    return {
        "opt": {
            "lib": Directory(
                {**files(8), "link": Symlink("f0001"), "sub": files(4), "other": {"deep": files(2)}}, mtime_ns=OLD + 7
            )
        }
    }


@pytest.fixture
def bench(make_overlay: MakeOverlay) -> Bench:
    made = Bench(make_overlay(tree()))
    made.promote(LIB)
    return made


def roll_of(bench: Bench, path: bytes = LIB) -> bytes:
    return bench.mounted.upper + b"/" + os.fsencode(rolls.place(bench.overlay, path))


def write(path: bytes, content: bytes) -> None:
    with open(path, "wb") as file:
        file.write(content)


def read(path: bytes) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def delete_and_create(bench: Bench) -> None:
    """What a user does to a directory that is active: no whiteout and no opaque attribute tells of it."""
    at = bench.mounted.at
    os.unlink(at("opt/lib/f0000"))
    os.unlink(at("opt/lib/link"))
    os.rename(at("opt/lib/f0001"), at("opt/lib/renamed"))
    shutil.rmtree(at("opt/lib/sub"))
    os.mkdir(at("opt/lib/sub"))
    write(at("opt/lib/sub/mine"), b"mine")
    shutil.rmtree(at("opt/lib/other"))
    write(at("opt/lib/new"), b"new")
    write(at("opt/lib/f0002"), b"written")
    os.chmod(at("opt/lib/f0003"), 0o600)
    os.utime(at("opt/lib"), ns=(OLD, OLD + 9))


def assert_reopened(bench: Bench, before: Any) -> None:
    """Merged, as before, and nothing of ours left; also after a remount."""
    assert_same_view(before, bench.view())
    assert bench.on_disk(LIB).mark is MarkState.NONE
    assert xattr(bench.mounted.in_upper(LIB), PROVENANCE) is None
    assert not os.path.exists(roll_of(bench))
    bench.remount()
    assert_same_view(before, bench.view())
    write(bench.mounted.on_server("opt/lib/seen"), b"seen")
    bench.activate()
    assert read(bench.mounted.at("opt/lib/seen")) == b"seen"


class TestLive:
    def test_what_a_user_deleted_and_made_stays_so(self, bench: Bench) -> None:
        delete_and_create(bench)
        before = bench.view()
        bench.reopen(LIB)
        assert_reopened(bench, before)
        assert os.listdir(bench.mounted.at("opt/lib/sub")) == [b"mine"]
        assert os.stat(bench.mounted.at("opt/lib")).st_mtime_ns == OLD + 9

    def test_a_deleted_name_stays_deleted_whatever_the_server_makes_of_it(self, bench: Bench) -> None:
        delete_and_create(bench)
        write(bench.mounted.on_server("opt/lib/f0000"), b"a new version")
        write(bench.mounted.on_server("opt/lib/added"), b"added")
        before = bench.view()
        bench.reopen(LIB)
        assert read(bench.mounted.at("opt/lib/added")) == b"added"
        os.unlink(bench.mounted.on_server("opt/lib/added"))
        bench.activate()
        assert_same_view(before, bench.view())

    def test_names_that_the_server_added_are_seen(self, bench: Bench) -> None:
        """Also old ones that were moved there, as `mv` and `rsync -a` do."""
        lower = bench.mounted.on_server
        write(lower("opt/elsewhere"), b"old")
        os.utime(lower("opt/elsewhere"), ns=(OLD, OLD))
        os.rename(lower("opt/elsewhere"), lower("opt/lib/moved here"))
        os.mkdir(lower("opt/lib/directory"))
        write(lower("opt/lib/directory/inside"), b"inside")
        assert not os.path.exists(bench.mounted.at("opt/lib/moved here"))
        bench.reopen(LIB)
        assert read(bench.mounted.at("opt/lib/moved here")) == b"old"
        assert read(bench.mounted.at("opt/lib/directory/inside")) == b"inside"

    def test_a_directory_of_the_users_does_not_merge_with_a_new_one_of_the_server(self, bench: Bench) -> None:
        os.mkdir(bench.mounted.at("opt/lib/both"))
        write(bench.mounted.at("opt/lib/both/mine"), b"mine")
        os.mkdir(bench.mounted.on_server("opt/lib/both"))
        write(bench.mounted.on_server("opt/lib/both/theirs"), b"theirs")
        bench.reopen(LIB)
        assert os.listdir(bench.mounted.at("opt/lib/both")) == [b"mine"]

    def test_our_shadows_of_what_the_server_replaced_or_removed_go(self, bench: Bench) -> None:
        lower, at = bench.mounted.on_server, bench.mounted.at
        os.chmod(at("opt/lib/f0005"), 0o640)
        os.unlink(lower("opt/lib/f0000"))
        for name in ("f0001", "f0005"):
            os.unlink(lower(f"opt/lib/{name}"))
            write(lower(f"opt/lib/{name}"), b"replaced by something longer")
        os.unlink(lower("opt/lib/f0002"))
        os.symlink("f0003", lower("opt/lib/f0002"))
        os.unlink(lower("opt/lib/link"))
        os.symlink("f0004", lower("opt/lib/link"))
        write(at("opt/lib/f0006"), b"mine")
        os.unlink(lower("opt/lib/f0006"))
        bench.reopen(LIB)
        assert not os.path.lexists(at("opt/lib/f0000"))
        assert read(at("opt/lib/f0001")) == b"replaced by something longer"
        assert os.stat(at("opt/lib/f0001")).st_size == 28
        assert os.readlink(at("opt/lib/f0002")) == b"f0003"
        assert os.readlink(at("opt/lib/link")) == b"f0004"
        assert os.stat(at("opt/lib/f0005")).st_mode & 0o777 == 0o640, "changed by a user, so it is the user's"
        assert read(at("opt/lib/f0006")) == b"mine"

    def test_what_the_server_left_alone_keeps_its_shadow(self, bench: Bench) -> None:
        write(bench.mounted.on_server("opt/lib/new"), b"new")
        bench.reopen(LIB)
        assert {f"f{n:04}".encode() for n in range(8)} < set(os.listdir(bench.mounted.in_upper("opt/lib")))

    def test_a_complete_child_stays_complete_below_it(self, bench: Bench) -> None:
        bench.reopen(LIB)
        assert bench.on_disk(b"opt/lib/sub").mark is MarkState.OURS
        assert b"opt/lib/sub" in assert_marks_are_sound(bench.mounted)
        bench.promote(LIB)
        assert_marks_are_sound(bench.mounted)

    def test_a_chain_of_directories(self, bench: Bench) -> None:
        os.unlink(bench.mounted.at("opt/lib/other/deep/f0000"))
        before = bench.view()
        bench.reopen(LIB, b"opt/lib/other", b"opt/lib/other/deep")
        assert_same_view(before, bench.view())
        write(bench.mounted.on_server("opt/lib/other/deep/new"), b"new")
        assert read(bench.mounted.at("opt/lib/other/deep/new")) == b"new"
        bench.remount()
        assert read(bench.mounted.at("opt/lib/other/deep/new")) == b"new"
        assert not os.path.exists(bench.mounted.at("opt/lib/other/deep/f0000"))

    def test_promoted_and_reopened_again_and_again(self, bench: Bench) -> None:
        delete_and_create(bench)
        before = bench.view()
        for _ in range(3):
            bench.reopen(LIB)
            assert_same_view(before, bench.view())
            bench.promote(LIB)
            assert_same_view(before, bench.view())
            assert_marks_are_sound(bench.mounted)

    def test_of_a_directory_that_is_gone_on_the_server(self, bench: Bench) -> None:
        write(bench.mounted.at("opt/lib/mine"), b"mine")
        shutil.rmtree(bench.mounted.on_server("opt/lib"))
        bench.reopen(LIB)
        assert read(bench.mounted.at("opt/lib/mine")) == b"mine"
        assert not os.path.lexists(bench.mounted.at("opt/lib/f0001"))

    def test_what_merging_relies_on_is_durable_before_the_mark_goes(
        self, bench: Bench, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """I4."""
        delete_and_create(bench)
        log: list[str] = []

        def spy(owner: Any, name: str, says: Callable[..., str | None]) -> None:
            original = getattr(owner, name)

            def spied(*arguments: Any, **options: Any) -> Any:
                done = original(*arguments, **options)
                if said := says(*arguments):
                    log.append(said)
                return done

            monkeypatch.setattr(owner, name, spied)

        spy(os, "mknod", lambda *_: "rely")
        spy(os, "link", lambda *_: "rely")
        spy(xattrs, "put", lambda _, attribute, *__: "rely" if attribute == OPAQUE else None)
        spy(xattrs, "remove", lambda _, attribute: "unmark" if attribute == OPAQUE else None)
        spy(Layers, "sync_upper", lambda *_: "sync")
        bench.reopen(LIB)
        monkeypatch.undo()
        order = [what for what, _ in itertools.groupby(log)]
        assert order == ["rely", "sync", "unmark", "sync"]

    def test_many_deleted_names_share_one_whiteout(self, make_overlay: MakeOverlay) -> None:
        made = Bench(make_overlay({"d": files(40)}))
        made.promote(b"d")
        for name in list(files(40)):
            os.unlink(made.mounted.at(b"d/" + os.fsencode(name)))
        made.reopen(b"d")
        assert os.listdir(made.mounted.at("d")) == []
        assert {
            os.lstat(made.mounted.in_upper(b"d/" + n)).st_nlink for n in os.listdir(made.mounted.in_upper("d"))
        } == {40}

    def test_more_whiteouts_than_an_inode_has_links(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("f0000", "f0001", "f0002", "f0003", "f0004"):
            os.unlink(bench.mounted.at(f"opt/lib/{name}"))
        before, link = bench.view(), os.link
        links = 0

        def short_of_links(*arguments: Any, **options: Any) -> None:
            nonlocal links
            links += 1
            if links % 2 == 0:
                raise OSError(errno.EMLINK, os.strerror(errno.EMLINK))
            link(*arguments, **options)

        with monkeypatch.context() as patch:
            patch.setattr(os, "link", short_of_links)
            bench.reopen(LIB)
        assert_reopened(bench, before)

    def test_marks_that_are_not_ours_are_refused(self, bench: Bench) -> None:
        shutil.rmtree(bench.mounted.at("opt/lib"))
        os.mkdir(bench.mounted.at("opt/lib"))
        assert xattr(bench.mounted.in_upper("opt/lib"), OPAQUE) == b"y"
        assert bench.on_disk(LIB).mark is MarkState.FOREIGN
        with pytest.raises(Refused, match="no mark of ours"):
            bench.reopen(LIB)
        assert os.listdir(bench.mounted.at("opt/lib")) == []

    def test_a_complete_directory_that_was_renamed_is_refused(self, bench: Bench) -> None:
        os.rename(bench.mounted.at("opt/lib"), bench.mounted.at("opt/moved"))
        assert bench.on_disk(b"opt/moved").mark is MarkState.MOVED
        before = bench.view()
        with pytest.raises(Refused, match="no mark of ours"):
            bench.reopen(b"opt/moved")
        assert_same_view(before, bench.view())

    def test_a_lost_roll_refuses_rather_than_guesses(self, bench: Bench) -> None:
        os.unlink(bench.mounted.at("opt/lib/f0000"))
        write(bench.mounted.on_server("opt/lib/new"), b"new")
        os.unlink(roll_of(bench))
        with pytest.raises(Refused, match="roll"):
            bench.reopen(LIB)
        assert bench.on_disk(LIB).mark is MarkState.OURS
        assert not os.path.exists(bench.mounted.at("opt/lib/f0000"))

    def test_a_lost_roll_is_not_needed_where_the_server_changed_nothing(self, bench: Bench) -> None:
        delete_and_create(bench)
        before = bench.view()
        os.unlink(roll_of(bench))
        bench.reopen(LIB)
        assert_reopened(bench, before)

    def test_without_proof_of_effect_nothing_is_touched(self, make_overlay: MakeOverlay) -> None:
        made = Bench(make_overlay(tree(), upper_fs="btrfs"))
        made.mark(LIB)
        made.activate()
        assert made.on_disk(LIB).in_effect is None
        os.unlink(made.mounted.at("opt/lib/f0001"))
        with pytest.raises(Busy, match="no proof"):
            made.reopen(LIB)
        assert made.on_disk(LIB).mark is MarkState.OURS
        assert b"f0001" not in os.listdir(made.mounted.in_upper("opt/lib"))


def still_complete(bench: Bench, before: Any) -> None:
    assert bench.on_disk(LIB).mark is MarkState.OURS
    assert bench.on_disk(LIB).in_effect is True
    assert_same_view(before, bench.view())
    bench.remount()
    assert_same_view(before, bench.view())


class TestWindow:
    """Somebody writes while a directory is reopened: Busy, and it is complete as before."""

    def test_a_write_in_the_quiet_period(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        sleep = time.sleep

        def write_meanwhile(seconds: float) -> None:
            sleep(seconds)
            write(bench.mounted.at("opt/lib/new"), b"new")

        monkeypatch.setattr(time, "sleep", write_meanwhile)
        with pytest.raises(Busy, match=r"in the last 0\.01 s"):
            bench.reopen(LIB, quiet=0.01)
        assert bench.on_disk(LIB).mark is MarkState.OURS

    @pytest.mark.parametrize("after", [False, True], ids=["before the effect", "after it"])
    @pytest.mark.parametrize("what", ["create", "delete", "rename", "replace", "subdirectory", "move in"])
    def test_a_write_before_the_proof(
        self, bench: Bench, monkeypatch: pytest.MonkeyPatch, what: str, *, after: bool
    ) -> None:
        delete_and_create(bench)
        write(bench.mounted.at("opt/outside"), b"outside")
        at = bench.mounted.at

        def act() -> None:
            match what:
                case "create":
                    write(at("opt/lib/window"), b"window")
                case "delete":
                    os.unlink(at("opt/lib/f0004"))
                case "rename":
                    os.rename(at("opt/lib/f0005"), at("opt/lib/f9999"))
                case "replace":
                    os.rename(at("opt/lib/f0005"), at("opt/lib/f0004"))
                case "subdirectory":
                    os.rename(at("opt/lib/sub"), at("opt/lib/sub2"))
                case "move in":
                    os.rename(at("opt/outside"), at("opt/lib/inside"))

        with on_reconfigure(monkeypatch, act, after=after), pytest.raises(Busy, match="wrote there"):
            bench.reopen(LIB)
        expected = {
            "create": {b"+window"},
            "delete": {b"-f0004"},
            "rename": {b"-f0005", b"+f9999"},
            "replace": {b"-f0005"},
            "subdirectory": {b"-sub", b"+sub2"},
            "move in": {b"+inside"},
        }[what]
        names = {b"f0002", b"f0003", b"f0004", b"f0005", b"f0006", b"f0007", b"renamed", b"new", b"sub"}
        names |= {name[1:] for name in expected if name.startswith(b"+")}
        names -= {name[1:] for name in expected if name.startswith(b"-")}
        assert set(os.listdir(at("opt/lib"))) == names
        still_complete(bench, bench.view())
        assert set(os.listdir(at("opt/lib"))) == names
        assert read(at("opt/lib/f0007")) == b"content of 0007\n"
        assert os.listdir(at("opt/lib/sub2" if what == "subdirectory" else "opt/lib/sub")) == [b"mine"]

    def test_a_whiteout_of_ours_that_somebody_used(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        """A name made over our whiteout and deleted again leaves none while the directory is opaque in memory."""
        os.unlink(bench.mounted.at("opt/lib/f0000"))
        os.utime(bench.mounted.at("opt/lib"), ns=(OLD, OLD + 9))
        before = bench.view()

        def make_and_delete() -> None:
            write(bench.mounted.at("opt/lib/f0000"), b"again")
            os.unlink(bench.mounted.at("opt/lib/f0000"))
            os.utime(bench.mounted.at("opt/lib"), ns=(OLD, OLD + 9))

        with on_reconfigure(monkeypatch, make_and_delete), pytest.raises(Busy):
            bench.reopen(LIB)
        still_complete(bench, before)

    def test_what_a_mark_would_break_keeps_the_directory_merged(
        self, bench: Bench, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A name of the server's that was copied up meanwhile would have no data below an opaque directory."""
        delete_and_create(bench)
        write(bench.mounted.on_server("opt/lib/added"), b"added")
        before = bench.view()

        def use_what_is_new() -> None:
            os.chmod(bench.mounted.at("opt/lib/added"), 0o600)

        with on_reconfigure(monkeypatch, use_what_is_new, after=True), pytest.raises(Busy):
            bench.reopen(LIB)
        assert bench.on_disk(LIB).mark is MarkState.NONE
        assert read(bench.mounted.at("opt/lib/added")) == b"added"
        bench.remount()
        assert read(bench.mounted.at("opt/lib/added")) == b"added"
        os.unlink(bench.mounted.at("opt/lib/added"))
        os.utime(bench.mounted.at("opt/lib"), ns=(OLD, OLD + 9))
        assert_same_view(before, bench.view())

    def test_what_was_deleted_before_it_was_merged_gets_its_whiteout_where_it_stays_so(
        self, bench: Bench, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write(bench.mounted.on_server("opt/lib/added"), b"added")

        def delete() -> None:
            os.unlink(bench.mounted.at("opt/lib/f0001"))

        def use_what_is_new() -> None:
            os.mkdir(bench.mounted.at("opt/lib/x"))
            os.chmod(bench.mounted.at("opt/lib/added"), 0o600)

        with (
            on_reconfigure(monkeypatch, use_what_is_new, after=True),
            on_reconfigure(monkeypatch, delete),
            pytest.raises(Busy),
        ):
            bench.reopen(LIB)
        for _ in range(2):
            assert not os.path.lexists(bench.mounted.at("opt/lib/f0001"))
            assert read(bench.mounted.at("opt/lib/added")) == b"added"
            bench.remount()

    def test_a_directory_that_is_moved_meanwhile_gets_its_mark_back(
        self, bench: Bench, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        inside = bench.view()[b"opt/lib/other/deep/f0000"]

        def move() -> None:
            os.rename(bench.mounted.at("opt/lib/other"), bench.mounted.at("opt/lib/another"))

        with on_reconfigure(monkeypatch, move, after=True), pytest.raises(Busy):
            bench.reopen(LIB, b"opt/lib/other")
        assert bench.on_disk(LIB).mark is MarkState.OURS
        assert xattr(bench.mounted.in_upper("opt/lib/another"), OPAQUE) == b"y"
        bench.remount()
        assert bench.view()[b"opt/lib/another/deep/f0000"] == inside
        assert not os.path.lexists(bench.mounted.at("opt/lib/other"))

    @pytest.mark.parametrize("pinned", [b"opt/lib", b"opt/lib/other"])
    def test_a_directory_that_is_held(self, bench: Bench, monkeypatch: pytest.MonkeyPatch, pinned: bytes) -> None:
        monkeypatch.setattr(activation, "TRIES", 3)
        delete_and_create(bench)
        os.mkdir(bench.mounted.at("opt/lib/other"))
        before = bench.view()
        with subprocess.Popen([sys.executable, "-c", "input()"], cwd=bench.mounted.at(pinned), stdin=-1) as process:
            with pytest.raises(Busy, match="a process holds it"):
                bench.reopen(LIB)
            assert bench.on_disk(LIB).mark is MarkState.OURS
            assert_same_view(before, bench.view())
            process.communicate()
        bench.activate()
        still_complete(bench, before)
        bench.reopen(LIB)
        assert_reopened(bench, before)

    def test_names_can_be_used_again_after_it_was_put_back(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        """A whiteout behind a cached negative dentry would make a create fail (ESTALE); none is left cached."""
        os.unlink(bench.mounted.at("opt/lib/f0000"))
        assert not os.path.lexists(bench.mounted.at("opt/lib/f0000"))
        with on_reconfigure(monkeypatch, lambda: write(bench.mounted.at("opt/lib/x"), b"")), pytest.raises(Busy):
            bench.reopen(LIB)
        write(bench.mounted.at("opt/lib/f0000"), b"again")
        assert read(bench.mounted.at("opt/lib/f0000")) == b"again"
        os.unlink(bench.mounted.at("opt/lib/f0000"))
        bench.remount()
        assert not os.path.lexists(bench.mounted.at("opt/lib/f0000"))
        bench.reopen(LIB)
        assert not os.path.lexists(bench.mounted.at("opt/lib/f0000"))


class TestPinned:
    """Marked, and never in effect: it is merged in memory, so nothing that users do there meanwhile is lost."""

    def test_it_is_reopened_while_it_is_held(self, make_overlay: MakeOverlay) -> None:
        bench = Bench(make_overlay(tree()))
        at = bench.mounted.at
        with subprocess.Popen([sys.executable, "-c", "input()"], cwd=at(LIB), stdin=-1) as process:
            bench.mark(LIB)
            bench.activate()
            assert bench.on_disk(LIB).in_effect is False
            write(bench.mounted.on_server("opt/lib/added"), b"added")
            os.mkdir(bench.mounted.on_server("opt/lib/added dir"))
            write(bench.mounted.on_server("opt/lib/added dir/inside"), b"inside")
            os.chmod(at("opt/lib/added"), 0o600)
            os.mkdir(at("opt/lib/added dir/mine"))
            os.unlink(at("opt/lib/f0001"))
            os.rename(at("opt/lib/f0002"), at("opt/lib/renamed"))
            before = bench.view()
            bench.reopen(LIB)
            assert_same_view(before, bench.view())
            process.communicate()
        bench.remount()
        assert_same_view(before, bench.view())
        assert bench.on_disk(LIB).mark is MarkState.NONE
        assert read(at("opt/lib/added")) == b"added"
        assert sorted(os.listdir(at("opt/lib/added dir"))) == [b"inside", b"mine"]

    def test_one_that_is_not_reopened_in_time_breaks_what_was_copied_up_meanwhile(
        self, make_overlay: MakeOverlay
    ) -> None:
        """Why a pinned directory that the server changes has to be reopened at once."""
        bench = Bench(make_overlay(tree()))
        with subprocess.Popen([sys.executable, "-c", "input()"], cwd=bench.mounted.at(LIB), stdin=-1) as process:
            bench.mark(LIB)
            bench.activate()
            write(bench.mounted.on_server("opt/lib/added"), b"added")
            os.chmod(bench.mounted.at("opt/lib/added"), 0o600)
            process.communicate()
        bench.activate()
        assert bench.on_disk(LIB).in_effect is True
        with pytest.raises(OSError, match="Input/output error"):
            read(bench.mounted.at("opt/lib/added"))
        bench.reopen(LIB)
        assert read(bench.mounted.at("opt/lib/added")) == b"added"


class TestUnmounted:
    def test_what_a_user_deleted_and_made_stays_so(self, bench: Bench) -> None:
        delete_and_create(bench)
        before = bench.view()
        write(bench.mounted.on_server("opt/lib/added"), b"added")
        bench.mounted.umount()
        with Layers(bench.overlay, mounted=False) as layers:
            reopen_unmounted(layers, [LIB])
        bench.mounted.mount()
        bench.refresh()
        assert read(bench.mounted.at("opt/lib/added")) == b"added"
        os.unlink(bench.mounted.on_server("opt/lib/added"))
        bench.activate()
        assert_reopened(bench, before)

    def test_top_down(self, bench: Bench) -> None:
        os.unlink(bench.mounted.at("opt/lib/other/deep/f0000"))
        before = bench.view()
        bench.mounted.umount()
        with Layers(bench.overlay, mounted=False) as layers:
            reopen_unmounted(layers, [LIB, b"opt/lib/other", b"opt/lib/other/deep", b"opt/lib/sub"])
        bench.mounted.mount()
        bench.refresh()
        assert_same_view(before, bench.view())
        assert assert_marks_are_sound(bench.mounted) == []

    def test_refused_untouched(self, bench: Bench) -> None:
        bench.mounted.umount()
        with Layers(bench.overlay, mounted=False) as layers, pytest.raises(Refused):
            reopen_unmounted(layers, [LIB, b"opt"])
        bench.mounted.mount()
        bench.refresh()
        assert bench.on_disk(LIB).mark is MarkState.OURS


class Killed(BaseException):
    """Ends a reopening without any of its own tidying."""


class TestInterrupted:
    @pytest.fixture
    def killed_after(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
        """Reopen, and stop dead after a step."""

        def run(step: str) -> None:
            original = getattr(reopening, step)

            def die(*arguments: Any, **options: Any) -> None:
                original(*arguments, **options)
                raise Killed

            with monkeypatch.context() as patch:
                patch.setattr(reopening, step, die)
                patch.setattr(reopening, "_put_back", lambda *_: None)
                with pytest.raises(Killed):
                    bench.reopen(LIB)

        return run

    @pytest.mark.parametrize("step", ["_write_whiteouts", "_unmark", "_prove_merged", "_forget"])
    @pytest.mark.parametrize("remount", [False, True])
    def test_nothing_deleted_comes_back(
        self, bench: Bench, killed_after: Callable[[str], None], step: str, *, remount: bool
    ) -> None:
        delete_and_create(bench)
        before = bench.view()
        killed_after(step)
        if remount:
            bench.remount()
        assert_same_view(before, bench.view())
        with bench.layers() as layers:
            done, _ = finish_interrupted(layers, LIB)
        assert done == (step in ("_unmark", "_prove_merged"))
        assert_same_view(before, bench.view())
        if step == "_write_whiteouts":
            assert bench.on_disk(LIB).mark is MarkState.OURS
            write(bench.mounted.at("opt/lib/f0000"), b"again")
            os.unlink(bench.mounted.at("opt/lib/f0000"))
            os.utime(bench.mounted.at("opt/lib"), ns=(OLD, OLD + 9))
            bench.reopen(LIB)
        assert_reopened(bench, before)

    def test_deleted_between_the_crash_and_the_effect(self, bench: Bench, killed_after: Callable[[str], None]) -> None:
        """Unmarked on disk, still opaque in memory: a name deleted then has no whiteout, and gets it now."""
        killed_after("_unmark")
        os.unlink(bench.mounted.at("opt/lib/f0003"))
        os.utime(bench.mounted.at("opt/lib"), ns=(OLD, OLD + 9))
        before = bench.view()
        with bench.layers() as layers:
            finish_interrupted(layers, LIB)
        assert is_whiteout(bench.mounted.in_upper("opt/lib/f0003"))
        assert_reopened(bench, before)

    def test_a_chain(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        os.unlink(bench.mounted.at("opt/lib/other/deep/f0000"))
        before = bench.view()
        with monkeypatch.context() as patch:
            patch.setattr(reopening, "_prove_merged", lambda *_: (_ for _ in ()).throw(Killed()))
            patch.setattr(reopening, "_put_back", lambda *_: None)
            with pytest.raises(Killed):
                bench.reopen(LIB, b"opt/lib/other", b"opt/lib/other/deep")
        with bench.layers() as layers:
            assert finish_interrupted(layers, b"opt/lib/other/deep") == (3, [])
        assert_same_view(before, bench.view())
        assert assert_marks_are_sound(bench.mounted) == [b"opt/lib/sub"]

    def test_a_held_directory_gets_its_mark_back(
        self, bench: Bench, killed_after: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(activation, "TRIES", 3)
        delete_and_create(bench)
        before = bench.view()
        killed_after("_unmark")
        with subprocess.Popen([sys.executable, "-c", "input()"], cwd=bench.mounted.at(LIB), stdin=-1) as process:
            with bench.layers() as layers, pytest.raises(Busy):
                finish_interrupted(layers, LIB)
            assert bench.on_disk(LIB).mark is MarkState.OURS
            process.communicate()
        bench.activate()
        still_complete(bench, before)
