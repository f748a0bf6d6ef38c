"""The rules that keep readers safe, for the metadata layer: one test or more for each, with the backend alone."""

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from promoterd.backends.base import Busy, MarkState
from promoterd.backends.layer import LayerBackend, graveyard
from promoterd.backends.layer.home import Home
from promoterd.backends.layer.staging import Staging
from promoterd.errors import Refused
from promoterd.provenance import decode
from support.holding import Holder
from support.overlays import MountedOverlay
from support.promotions import Bench, View, allow, assert_same_view
from support.rich import acl
from support.soundness import OPAQUE, PROVENANCE, REDIRECT, assert_layer_is_sound, stage_leftovers, xattr
from support.trees import OLD, Directory, File, Symlink, Tree, files

MakeOverlay = Callable[..., MountedOverlay]
LIB, SUB = b"opt/lib", b"opt/lib/sub"
ACL = "system.posix_acl_access"


def tree() -> Tree:
    library: Tree = {**files(12), "link": Symlink("f0001"), "sub": files(3), "other": {"deep": files(2)}}
    return {"opt": Directory({"lib": Directory(library, mtime_ns=OLD + 5), "else": files(3)}, mtime_ns=OLD + 7)}


@pytest.fixture
def bench(make_overlay: MakeOverlay) -> Bench:
    return Bench(make_overlay(tree(), layered=True, upper_fs="tmpfs"), "layer")


def write(path: bytes, content: bytes) -> None:
    with open(path, "wb") as file:
        file.write(content)


def read(path: bytes) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def sweep(bench: Bench) -> int:
    with bench.layers() as layers:
        return bench.backend.sweep(layers)


def remove_ghost(bench: Bench, path: bytes) -> None:
    with bench.layers() as layers:
        bench.backend.remove_ghost(layers, path)


def follow(bench: Bench, path: bytes) -> bool:
    with bench.layers() as layers:
        return bench.backend.follow(layers, path)


@contextmanager
def process(program: str, path: bytes) -> Iterator[None]:
    """A process of its own that does something with a path and then waits."""
    with subprocess.Popen(
        [sys.executable, "-c", f"import os, sys\n{program}\nprint(flush=True)\nsys.stdin.read()", path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as started:
        assert started.stdout is not None
        assert started.stdout.readline() == b"\n"
        try:
            yield
        finally:
            started.kill()


WATCHING = """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
assert libc.inotify_add_watch(libc.inotify_init(), os.fsencode(sys.argv[1]), 0x200) > 0
"""
IN_IT = "os.chdir(os.fsencode(sys.argv[1]))"


class TestGhosts:
    """R1."""

    def test_what_a_user_made_of_it_stays(self, bench: Bench) -> None:
        bench.promote(LIB)
        at = bench.mounted.at
        write(at("opt/lib/mine"), b"mine")
        write(at("opt/lib/f0001"), b"written")
        write(at("opt/lib/sub/mine"), b"mine")
        shutil.rmtree(bench.mounted.on_server(LIB))
        assert os.path.lexists(at("opt/lib/f0002")), "it is a ghost"
        remove_ghost(bench, LIB)
        for _ in range(2):
            assert sorted(os.listdir(at(LIB))) == [b"f0001", b"mine", b"sub"]
            assert read(at("opt/lib/f0001")) == b"written"
            assert os.listdir(at(SUB)) == [b"mine"]
            bench.remount()
        assert assert_layer_is_sound(bench.mounted) == []

    def test_where_nobody_made_anything_nothing_stays(self, bench: Bench) -> None:
        bench.promote(LIB, of=allow(chain=True))
        shutil.rmtree(bench.mounted.on_server(LIB))
        remove_ghost(bench, LIB)
        assert not os.path.lexists(bench.mounted.at(LIB))
        assert os.listdir(bench.mounted.at("opt")) == [b"else"]
        bench.remount()
        assert sweep(bench) == 0
        assert os.listdir(bench.mounted.at("opt")) == [b"else"]


class TestFollowing:
    """R2."""

    @pytest.mark.parametrize("path", [b"opt", SUB], ids=["an ancestor", "a child that is no more than a stub"])
    def test_owner_mode_times_and_acl(self, bench: Bench, path: bytes) -> None:
        bench.promote(LIB, of=lambda found: allow(forbidden="growing" if found == SUB else None)(found))
        server = bench.mounted.on_server(path)
        assert not follow(bench, path)
        os.chown(server, 7, 8)
        os.chmod(server, 0o2751)
        os.setxattr(server, ACL, acl(1001, 7))
        os.utime(server, ns=(OLD, OLD + 99))
        assert follow(bench, path)
        assert not follow(bench, path)
        for seen in (bench.mounted.at(path), bench.mounted.in_rest(path)):
            found, lower = os.stat(seen), os.stat(server)
            assert (found.st_uid, found.st_gid, found.st_mode) == (7, 8, lower.st_mode)
            assert found.st_mtime_ns == OLD + 99
            assert os.getxattr(seen, ACL) == os.getxattr(server, ACL)
        os.removexattr(server, ACL)
        os.utime(server, ns=(OLD, OLD + 100))
        assert follow(bench, path)
        assert xattr(bench.mounted.at(path), ACL) is None

    def test_those_children_are_told(self, bench: Bench) -> None:
        bench.promote(LIB, of=lambda found: allow(forbidden="growing" if found == SUB else None)(found))
        with bench.layers() as layers:
            assert bench.backend.followers(layers, LIB) == [SUB]


class TestGraveyard:
    """R3. There are two graves: the directory above it was in the layer for its sake alone."""

    def test_a_directory_that_is_held_stays_full_for_everybody(self, bench: Bench) -> None:
        bench.promote(LIB)
        names = set(os.listdir(bench.mounted.at(LIB)))
        with Holder(bench.mounted.at(LIB)) as holder:
            bench.reopen(LIB)
            assert sweep(bench) == 2
            bench.activate()
            assert sweep(bench) == 2, "it is held"
            holder.look()
            assert set(os.listdir(bench.mounted.at(LIB))) == names
            assert read(bench.mounted.at("opt/lib/sub/f0001")) == b"content of 0001\n"
        bench.activate()
        assert sweep(bench) == 0
        assert set(os.listdir(bench.mounted.at(LIB))) == names

    def test_also_one_below_it(self, bench: Bench) -> None:
        bench.promote(LIB)
        with process(IN_IT, bench.mounted.at("opt/lib/other/deep")):
            bench.reopen(LIB)
            bench.activate()
            assert sweep(bench) == 2
            assert len(os.listdir(bench.mounted.at("opt/lib/other/deep"))) == 2
            assert len(os.listdir(bench.mounted.at(LIB))) == 15
        bench.activate()
        assert sweep(bench) == 0

    @pytest.mark.parametrize("moved", [LIB, b"opt"], ids=["itself", "with what it is in"])
    def test_one_that_was_renamed_waits_for_an_unmount(self, bench: Bench, moved: bytes) -> None:
        """Also where there is another one at its path by then, and one more in the place of that."""
        bench.promote(LIB)
        away = moved + b".away"
        held = bench.mounted.at(away + LIB[len(moved) :])
        with Holder(bench.mounted.at(LIB)) as holder:
            bench.reopen(LIB)
            os.rename(bench.mounted.at(moved), bench.mounted.at(away))
            for _ in range(2):
                os.makedirs(bench.mounted.at(LIB))
                bench.activate()
                assert sweep(bench) == 2
                shutil.rmtree(bench.mounted.at(moved))
            os.makedirs(bench.mounted.at(LIB))
            assert sweep(bench) == 2
            holder.look()
            assert len(os.listdir(held)) == 15
            assert read(held + b"/f0001") == b"content of 0001\n"
        bench.remount()
        assert sweep(bench) == 0
        assert len(os.listdir(held)) == 15

    def test_nothing_is_taken_out_while_graves_are_looked_through(
        self, bench: Bench, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What a promotion took out a moment ago would be taken for what a crash left, and removed under readers."""
        backend = bench.backend
        assert isinstance(backend, LayerBackend)
        look, free = graveyard.graves, []

        def looking(home: Home) -> Iterator[graveyard.Taken]:
            other = threading.Thread(target=lambda: free.append(backend._changing.acquire(timeout=0.1)))
            other.start()
            other.join()
            return look(home)

        monkeypatch.setattr(graveyard, "graves", looking)
        bench.promote(LIB)
        bench.reopen(LIB)
        sweep(bench)
        assert free == [False, False]

    def test_a_path_that_is_longer_than_what_a_note_holds(self, make_overlay: MakeOverlay) -> None:
        """On ext4 attributes have at most a block."""
        bench = Bench(make_overlay(tree(), layered=True, upper_fs="ext4"), "layer")
        deep = b"/".join([b"opt", *[b"n" * 50] * 6])
        os.makedirs(bench.mounted.on_server(deep + b"/in it"))
        bench.promote(deep)
        bench.reopen(deep)
        assert not os.path.exists(bench.mounted.in_files(deep))
        assert os.listdir(bench.mounted.at(deep)) == [b"in it"]
        bench.remount()
        assert sweep(bench) == 0


class TestHalves:
    """R4; that every state in between serves every name is in test_layer_crashes.py."""

    def test_an_entry_that_was_not_built_is_no_mark(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        """I1: for whatever reason. First a directory that is built as a whole, then one in its place."""
        before = bench.view()
        build = Staging._build_entry

        def lose_one(self: Staging, opened: object, staged: object, name: str, found: object) -> None:
            if name not in ("f0005", "link"):
                build(self, opened, staged, name, found)  # type: ignore[arg-type]

        for lost in (LIB, SUB):
            with monkeypatch.context() as patch:
                patch.setattr(Staging, "_build_entry", lose_one)
                with pytest.raises(Busy, match="2 of its entries have no shadow"):
                    bench.mark(LIB)
            assert LIB not in assert_layer_is_sound(bench.mounted, settled=False)
            assert bench.leftovers() == []
            bench.activate()
            assert_same_view(without_time(before), without_time(bench.view()))
            bench.promote(SUB) if lost == LIB else None
        bench.resync(LIB)
        assert_layer_is_sound(bench.mounted)
        bench.activate()
        assert_same_view(before, bench.view())


def without_time(view: View) -> View:
    return {path: entry for path, entry in view.items() if path not in (b"opt", LIB)}


class TestParents:
    """R5."""

    def test_a_child_is_reopened_below_a_complete_parent(self, bench: Bench) -> None:
        before = bench.view()
        bench.promote(LIB)
        bench.reopen(SUB)
        assert sorted(assert_layer_is_sound(bench.mounted)) == [LIB, b"opt/lib/other", b"opt/lib/other/deep"]
        assert xattr(bench.mounted.in_rest(SUB), REDIRECT) == b"/" + SUB
        assert os.listdir(bench.mounted.in_files(SUB)) == []
        assert_same_view(before, bench.view())
        write(bench.mounted.on_server(SUB + b"/new"), b"new")
        assert read(bench.mounted.at(SUB + b"/new")) == b"new"
        bench.remount()
        assert read(bench.mounted.at(SUB + b"/new")) == b"new"
        bench.promote(SUB)
        assert SUB in assert_layer_is_sound(bench.mounted)

    def test_with_a_parent_goes_what_is_below_it(self, bench: Bench) -> None:
        before = bench.view()
        marked = bench.promote(LIB)
        bench.reopen(*marked[::-1])
        assert assert_layer_is_sound(bench.mounted) == []
        assert not os.path.exists(bench.mounted.in_rest(LIB))
        assert_same_view(before, bench.view())


def test_what_is_young_asks_the_server_as_well_until_it_is_old(bench: Bench) -> None:
    """R7."""
    bench.promote(LIB)
    write(bench.mounted.on_server("opt/lib/new"), b"new")
    too_old = os.stat(bench.mounted.on_server("opt/lib/new")).st_ctime_ns - 1
    assert bench.resync(LIB, oldest_allowed_ns=too_old) == []
    assert bench.on_disk(LIB).mark is MarkState.OPEN
    bench.activate()
    assert read(bench.mounted.at("opt/lib/new")) == b"new"
    write(bench.mounted.on_server("opt/lib/half"), b"at once")
    assert read(bench.mounted.at("opt/lib/half")) == b"at once"
    assert bench.resync(LIB) == [LIB]
    assert bench.on_disk(LIB).mark is MarkState.OURS
    assert LIB in assert_layer_is_sound(bench.mounted)


class TestProvenance:
    """R9."""

    @pytest.mark.parametrize("where", [LIB, b"opt"], ids=["there", "above it"])
    def test_a_mark_of_somebody_else_is_left_alone(self, bench: Bench, where: bytes) -> None:
        bench.mounted.umount()
        os.makedirs(bench.mounted.in_rest(LIB))
        os.setxattr(bench.mounted.in_rest(where), OPAQUE, b"y")
        os.makedirs(bench.mounted.in_files(LIB))
        bench.mounted.mount()
        bench.refresh()
        assert bench.on_disk(where).mark is MarkState.FOREIGN
        with pytest.raises(Refused, match="that promoterd did not complete") as refusal:
            bench.mark(LIB)
        assert f"/{where.decode()}" in refusal.value.message
        assert os.listdir(bench.mounted.in_rest(LIB)) == []
        assert xattr(bench.mounted.in_rest(LIB), PROVENANCE) is None

    def test_a_child_of_somebody_else_is_left_out(self, bench: Bench) -> None:
        bench.mounted.umount()
        os.makedirs(bench.mounted.in_rest(SUB))
        os.makedirs(bench.mounted.in_files(SUB))
        os.setxattr(bench.mounted.in_rest(SUB), OPAQUE, b"y")
        bench.mounted.mount()
        bench.refresh()
        assert SUB not in bench.mark(LIB)
        assert xattr(bench.mounted.in_rest(SUB), PROVENANCE) is None

    def test_one_that_was_made_for_another_path_is_no_mark(self, bench: Bench) -> None:
        bench.promote(SUB)
        bench.mounted.umount()
        for half in (bench.mounted.in_files, bench.mounted.in_rest):
            os.rename(half(SUB), half("opt/lib/other"))
        bench.mounted.mount()
        bench.refresh()
        assert bench.on_disk(b"opt/lib/other").mark is MarkState.MOVED
        with pytest.raises(Refused, match="completed for another path"):
            bench.mark(b"opt/lib/other")
        assert bench.on_disk(SUB).mark is MarkState.NONE

    def test_it_stands_beside_the_mark_before_that_does(self, bench: Bench) -> None:
        bench.promote(LIB)
        for path in assert_layer_is_sound(bench.mounted):
            found = decode(xattr(bench.mounted.in_rest(path), PROVENANCE))
            assert found is not None
            assert found.backend == "layer"
            assert found.is_at(path)


class TestWatched:
    """R11."""

    def test_a_directory_that_somebody_watches_is_refused(self, bench: Bench) -> None:
        with process(WATCHING, bench.mounted.at(LIB)):
            with pytest.raises(Refused, match=r"process \d+ watches /opt/lib "):
                bench.plan(LIB)
            assert os.listdir(bench.mounted.in_rest("")) == []
            assert bench.promote(LIB, of=allow(ignore_watchers=True))[-1] == LIB
        assert_layer_is_sound(bench.mounted)

    @pytest.mark.parametrize("watched", [SUB, LIB + b"/f0001", b"opt"], ids=["below it", "in it", "above it"])
    def test_what_comes_into_the_layer_with_it_is_refused_as_well(self, bench: Bench, watched: bytes) -> None:
        with (
            process(WATCHING, bench.mounted.at(watched)),
            pytest.raises(Refused, match=rf"process \d+ watches /{watched.decode().removesuffix('/f0001')} "),
        ):
            bench.plan(LIB)

    def test_what_is_deeper_is_left_out(self, bench: Bench) -> None:
        with process(WATCHING, bench.mounted.at("opt/lib/other/deep")):
            marked = bench.promote(LIB)
            assert b"opt/lib/other" not in marked, "in it, what is watched would have another inode"
            assert {LIB, SUB} <= set(marked)

    def test_a_file_that_a_user_changed_stays_what_it_is_while_it_is_watched(self, bench: Bench) -> None:
        """A watch from after the promotion is on an inode that nothing finds any more; there is nothing to refuse."""
        file = bench.mounted.at("opt/lib/f0001")
        os.chmod(file, 0o600)
        bench.promote(LIB)
        with process(WATCHING, file):
            write(bench.mounted.on_server("opt/lib/new"), b"new")
            assert bench.resync(LIB) == [LIB]
            bench.activate()
            assert read(file) == b"content of 0001\n"
            bench.reopen(LIB)
            assert read(file) == b"content of 0001\n"
            assert os.stat(file).st_mode & 0o777 == 0o600

    def test_one_from_before_it_was_completed_holds_up_reopening(self, bench: Bench) -> None:
        """The kernel would find the inode that it keeps, which knows nothing of upper: ESTALE."""
        file = bench.mounted.at("opt/lib/f0001")
        with process(WATCHING, file):
            bench.promote(LIB, of=allow(ignore_watchers=True))
            os.chmod(file, 0o600)
            with pytest.raises(Busy, match="ESTALE"):
                bench.reopen(LIB)
            bench.activate()
            assert read(file) == b"content of 0001\n"
        bench.reopen(LIB)
        assert read(file) == b"content of 0001\n"


class TestProofOfEffect:
    """R13, against the truth: whether a name that the server gets now is seen."""

    @pytest.mark.parametrize(
        ("program", "held"),
        [
            ("", False),
            (IN_IT, True),
            ("held = os.open(os.fsencode(sys.argv[1]), os.O_PATH)", True),
            ("held = os.open(os.fsencode(sys.argv[1]) + b'/f0001', os.O_RDONLY)", True),
            ("held = os.open(os.fsencode(sys.argv[1]) + b'/sub', os.O_RDONLY)", True),
            (WATCHING.replace("os.fsencode(sys.argv[1])", "os.fsencode(sys.argv[1]) + b'/f0001'"), False),
            ("if not os.fork():\n while True: os.stat(os.fsencode(sys.argv[1]) + b'/f0002')", False),
        ],
        ids=["free", "cwd", "descriptor", "file in it", "directory in it", "file in it watched", "busy"],
    )
    def test_it_is_claimed_only_where_it_is_so(self, bench: Bench, program: str, *, held: bool) -> None:
        with process(program, bench.mounted.at(LIB)):
            marked = bench.mark(LIB, of=allow(ignore_watchers=True))
            claimed = bench.activated(marked)[LIB]
            write(bench.mounted.on_server("opt/lib/new"), b"new")
            hidden = not os.path.lexists(bench.mounted.at("opt/lib/new"))
            assert claimed is not True or hidden, "a claim that is not so"
            if "fork" not in program:
                assert claimed is not held
                assert hidden is not held


class TestEntries:
    """I2, I7: what the view of a directory does not tell."""

    def test_hard_links_in_a_directory_stay_such(self, bench: Bench) -> None:
        server, at = bench.mounted.on_server, bench.mounted.at

        def groups() -> list[list[str]]:
            found: dict[int, list[str]] = {}
            for name in ("f0001", "f0002", "one", "two"):
                if os.path.lexists(at(f"opt/lib/{name}")):
                    found.setdefault(os.stat(at(f"opt/lib/{name}")).st_ino, []).append(name)
            return sorted(found.values())

        os.link(server("opt/lib/f0001"), server("opt/lib/one"))
        bench.promote(LIB)
        assert groups() == [["f0001", "one"], ["f0002"]]
        assert os.stat(at("opt/lib/one")).st_nlink == 2
        os.link(server("opt/lib/f0001"), server("opt/lib/two"))
        bench.resync(LIB)
        bench.activate()
        assert groups() == [["f0001", "one", "two"], ["f0002"]]
        shutil.copy2(server("opt/lib/one"), server("opt/lib/new"))
        os.rename(server("opt/lib/new"), server("opt/lib/f0001"))
        bench.resync(LIB)
        bench.activate()
        assert groups() == [["f0001"], ["f0002"], ["one", "two"]]
        assert {read(at(f"opt/lib/{name}")) for name in ("f0001", "one", "two")} == {b"content of 0001\n"}
        assert_layer_is_sound(bench.mounted)

    def test_an_attribute_that_the_layer_cannot_keep_is_refused(self, make_overlay: MakeOverlay) -> None:
        library = {**files(2), "acl": File(b"acl", xattrs={ACL: acl(1001, 6)})}
        mounted = make_overlay({"opt": {"lib": library}}, layered=True, upper_fs="btrfs")
        subprocess.run(["mount", "-o", "remount,noacl", mounted.base + b"/btrfs"], check=True)
        bench = Bench(mounted, "layer")
        before = bench.view()
        with pytest.raises(Refused, match="/opt/lib/acl has an ACL or another attribute") as refusal:
            bench.mark(LIB)
        assert "xattrs: skip" in str(refusal.value.hint)
        assert_same_view(before, bench.view())
        assert bench.leftovers() == []


def test_what_is_being_built_is_not_swept_away(bench: Bench) -> None:
    """R14: an activation comes at any time, and promotions go on meanwhile."""
    plan = bench.plan(LIB)
    for _ in bench.backend.shadow(plan):
        sweep(bench)
    assert len(stage_leftovers(bench.mounted)) == 1
    assert LIB in bench.backend.complete(plan)
    assert stage_leftovers(bench.mounted) == []
    assert LIB in assert_layer_is_sound(bench.mounted)


def test_paths_that_no_attribute_holds_are_refused(bench: Bench) -> None:
    """I7: and stand as stubs where their parents are completed."""
    names = [b"n" * 250] * 15
    here = bench.mounted.on_server("opt")
    for name in names:
        here += b"/" + name
        os.mkdir(here)
    with pytest.raises(Refused, match="more than 3584 bytes"):
        bench.plan(b"/".join([b"opt", *names]))
    assert len(bench.promote(b"opt")) == 14 + 6, "those that are not too deep, and the others"
    opened = os.open(bench.mounted.at("opt"), os.O_RDONLY)
    for name in names:
        below = os.open(name, os.O_RDONLY, dir_fd=opened)
        os.close(opened)
        opened = below
    os.close(opened)
