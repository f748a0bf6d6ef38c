"""Overlays of every make, and what users did in them before: complete, sound, and nobody sees a difference."""

import os
import shutil
from collections.abc import Callable

import pytest

from promoterd.backends.base import MarkState
from support.overlays import MountedOverlay
from support.promotions import Bench, allow, assert_marks_are_sound, assert_same_view
from support.rich import add_socket, rich_tree
from support.soundness import METACOPY, REDIRECT, is_whiteout, xattr
from support.trees import OLD, Device, Directory, File, Symlink, Tree, files

MakeOverlay = Callable[..., MountedOverlay]
MakeBench = Callable[..., Bench]
LIB = b"opt/lib"
WHITEOUT = Device(0, 0)
USERS_TREE: Tree = {
    "opt": {
        "lib": {**files(10), "link": Symlink("f0001"), "sub": files(3), "other": {"deep": files(2)}},
        "else": files(3),
    }
}


def promote_and_compare(bench: Bench, path: bytes = LIB, *, proven: bool = True) -> list[bytes]:
    """The view before, after each step, and after a remount; returns what was marked."""
    before = bench.view()
    marked = bench.mark(path)
    assert_same_view(before, bench.view())
    assert set(bench.activated(marked).values()) == ({True} if proven else {None})
    assert_same_view(before, bench.view())
    assert set(marked) <= set(assert_marks_are_sound(bench.mounted))
    bench.remount()
    assert_same_view(before, bench.view())
    return marked


class TestFileSystems:
    @pytest.mark.parametrize("upper_fs", ["ext4", "xfs", "btrfs", "tmpfs"])
    @pytest.mark.parametrize("xino", ["off", "on"])
    def test_upper(self, make_overlay: MakeOverlay, upper_fs: str, xino: str) -> None:
        bench = Bench(make_overlay(rich_tree(), upper_fs=upper_fs, options=f"metacopy=on,redirect_dir=on,xino={xino}"))
        add_socket(bench.mounted.on_server(LIB))
        promote_and_compare(bench, proven=upper_fs != "btrfs")

    @pytest.mark.needs("fuse")
    @pytest.mark.parametrize("xattrs", [False, True])
    @pytest.mark.parametrize("timeouts", [0.0, 3600.0])
    def test_lower_across_a_wire(self, make_overlay: MakeOverlay, timeouts: float, *, xattrs: bool) -> None:
        bench = Bench(make_overlay(rich_tree(), counting=True, timeouts=timeouts, xattrs=xattrs))
        promote_and_compare(bench)

    @pytest.mark.parametrize("more", ["index=on", "uuid=null", "uuid=on", "xino=auto", "index=on,xino=on"])
    def test_options(self, make_overlay: MakeOverlay, more: str) -> None:
        promote_and_compare(Bench(make_overlay(rich_tree(), options=f"metacopy=on,redirect_dir=on,{more}")))


class TestLowerLayers:
    def test_three_with_whiteouts_and_opaque_directories(self, make_bench: MakeBench) -> None:
        opaque = Directory({"o": b"2", "in": files(2)}, xattrs={"trusted.overlay.opaque": b"y"})
        stack: list[Tree] = [
            {
                "opt": {
                    "lib": {
                        "a": b"1",
                        "gone": WHITEOUT,
                        "gone dir": WHITEOUT,
                        "opaque": {"top": b"1"},
                        "sub": {"s1": b"1"},
                    }
                }
            },
            {
                "opt": {
                    "lib": {"a": b"2", "b": b"2", "gone": b"2", "opaque": opaque, "sub": {"s2": b"2", "s1": WHITEOUT}}
                }
            },
            {
                "opt": {
                    "lib": {
                        "b": b"3",
                        "c": b"3",
                        "gone": b"3",
                        "gone dir": files(2),
                        "opaque": {"hidden": b"3"},
                        "sub": {"s1": b"3", "s3": b"3"},
                        "under a file": b"x",
                    }
                }
            },
        ]
        bench = make_bench(stack)
        marked = promote_and_compare(bench)
        assert set(marked) == {LIB, b"opt/lib/opaque", b"opt/lib/opaque/in", b"opt/lib/sub"}
        assert not os.path.lexists(bench.mounted.at("opt/lib/gone"))
        assert sorted(os.listdir(bench.mounted.at("opt/lib/opaque"))) == [b"in", b"o", b"top"]

    def test_a_file_over_a_directory(self, make_bench: MakeBench) -> None:
        promote_and_compare(make_bench([{"opt": {"lib": {"x": b"file"}}}, {"opt": {"lib": {"x": files(2)}}}]))

    def test_whiteouts_kept_as_attributes(self, make_bench: MakeBench) -> None:
        gone = File(b"", xattrs={"trusted.overlay.whiteout": b"y"})
        top = Directory({"a": gone, "b": b"1"}, xattrs={"trusted.overlay.opaque": b"x"})
        bench = make_bench([{"opt": {"lib": top}}, {"opt": {"lib": {"a": b"2", "c": b"2"}}}])
        promote_and_compare(bench)
        assert sorted(os.listdir(bench.mounted.at(LIB))) == [b"b", b"c"]

    def test_metadata_alone_in_the_top_one(self, make_overlay: MakeOverlay) -> None:
        """A layer that was an upper one once, of files that nobody renamed: their data is in the next."""
        top = File(b"", xattrs={METACOPY: b""})
        bench = Bench(make_overlay([{"opt": {"lib": {"a": top, "b": b"b"}}}, {"opt": {"lib": {"a": b"", "c": b"c"}}}]))
        bench.mounted.umount()
        for number in (0, 1):
            os.truncate(bench.mounted.on_server("opt/lib/a", number), 5)
        bench.mounted.mount()
        bench.refresh()
        promote_and_compare(bench)

    def test_the_lowest_changing_is_noticed_though_the_top_did_not(self, make_overlay: MakeOverlay) -> None:
        bench = Bench(make_overlay([{"opt": {"lib": {"a": b"1"}}}, {"opt": {"lib": {"b": b"2"}}}]))
        bench.promote(LIB)
        provenance = bench.on_disk(LIB).provenance
        assert provenance is not None
        with bench.layers() as layers:
            assert provenance.matches_stamps(layers.stamps(LIB, layers.contributing(LIB)))
            os.mkdir(bench.mounted.on_server("opt/lib/new", 1))
            assert not provenance.matches_stamps(layers.stamps(LIB, layers.contributing(LIB)))


class TestUsersBefore:
    """Users were at work in the directory before it was promoted."""

    @pytest.fixture
    def bench(self, make_overlay: MakeOverlay) -> Bench:
        return Bench(make_overlay(USERS_TREE))

    @pytest.fixture
    def any_bench(self, make_bench: MakeBench) -> Bench:
        """Of every backend in turn."""
        return make_bench(USERS_TREE)

    def write(self, path: bytes, content: bytes) -> None:
        with open(path, "wb") as file:
            file.write(content)

    def test_everything_at_once(self, any_bench: Bench) -> None:
        at = any_bench.mounted.at
        self.write(at("opt/lib/new"), b"new")
        self.write(at("opt/lib/f0000"), b"written")
        os.unlink(at("opt/lib/f0001"))
        os.unlink(at("opt/lib/link"))
        os.rename(at("opt/lib/f0002"), at("opt/lib/renamed"))
        os.rename(at("opt/lib/f0003"), at("opt/lib/f0004"))
        os.rename(at("opt/else/f0000"), at("opt/lib/moved in"))
        os.rename(at("opt/lib/f0005"), at("opt/moved out"))
        os.chmod(at("opt/lib/f0006"), 0o600)
        os.chown(at("opt/lib/f0007"), 12, 34)
        os.link(at("opt/lib/f0008"), at("opt/lib/linked"))
        os.setxattr(at("opt/lib/f0009"), "user.note", b"mine")
        shutil.rmtree(at("opt/lib/sub"))
        os.mkdir(at("opt/lib/sub"))
        self.write(at("opt/lib/sub/mine"), b"mine")
        shutil.rmtree(at("opt/lib/other"))
        os.makedirs(at("opt/lib/new dir/deep"))
        os.symlink("anywhere", at("opt/lib/new link"))
        marked = promote_and_compare(any_bench)
        assert marked == [LIB], "the rest is the user's own and asks nobody"
        names = set(os.listdir(at("opt/lib")))
        assert not {b"f0001", b"f0002", b"f0003", b"f0005", b"link", b"other"} & names

    def test_a_same_directory_rename_has_a_relative_redirect_that_is_made_absolute(self, bench: Bench) -> None:
        os.rename(bench.mounted.at("opt/lib/f0002"), bench.mounted.at("opt/lib/renamed"))
        upper = bench.mounted.in_upper("opt/lib/renamed")
        assert xattr(upper, REDIRECT) == b"f0002"
        promote_and_compare(bench)
        assert xattr(upper, REDIRECT) == b"/opt/lib/f0002"
        assert is_whiteout(bench.mounted.in_upper("opt/lib/f0002"))

    def test_a_metacopy_without_a_redirect_gets_one(self, bench: Bench) -> None:
        os.chmod(bench.mounted.at("opt/lib/f0006"), 0o600)
        assert xattr(bench.mounted.in_upper("opt/lib/f0006"), REDIRECT) is None
        promote_and_compare(bench)
        assert xattr(bench.mounted.in_upper("opt/lib/f0006"), REDIRECT) == b"/opt/lib/f0006"

    def test_everything_deleted(self, any_bench: Bench) -> None:
        for name in os.listdir(any_bench.mounted.at(LIB)):
            path = any_bench.mounted.at(LIB + b"/" + name)
            shutil.rmtree(path) if os.path.isdir(path) and not os.path.islink(path) else os.unlink(path)
        promote_and_compare(any_bench)
        assert os.listdir(any_bench.mounted.at(LIB)) == []

    def test_a_file_where_lower_has_a_directory_and_the_other_way_round(self, any_bench: Bench) -> None:
        at = any_bench.mounted.at
        shutil.rmtree(at("opt/lib/sub"))
        self.write(at("opt/lib/sub"), b"a file")
        os.unlink(at("opt/lib/f0001"))
        os.mkdir(at("opt/lib/f0001"))
        self.write(at("opt/lib/f0001/in"), b"in")
        promote_and_compare(any_bench)

    def test_metadata_of_the_directory_itself(self, any_bench: Bench) -> None:
        path = any_bench.mounted.at(LIB)
        os.chown(path, 5, 6)
        os.chmod(path, 0o2770)
        os.setxattr(path, "user.note", b"mine")
        os.utime(path, ns=(OLD, OLD + 99))
        promote_and_compare(any_bench)
        assert os.stat(path).st_mtime_ns == OLD + 99

    def test_work_goes_on_after_it(self, any_bench: Bench) -> None:
        """Writing, renaming and deleting in an active directory, and again after a remount."""
        at = any_bench.mounted.at
        any_bench.promote(LIB)
        with open(at("opt/lib/f0000"), "ab") as file:
            file.write(b"more")
        os.rename(at("opt/lib/f0001"), at("opt/lib/renamed"))
        os.rename(at("opt/lib/sub"), at("opt/lib/sub2"))
        os.rename(at("opt/lib/f0002"), at("opt/lib/sub2/f0002"))
        os.rename(at("opt/lib/other"), at("opt/other"))
        os.unlink(at("opt/lib/f0003"))
        os.mkdir(at("opt/lib/f0003"))
        before = any_bench.view()
        for name, content in (
            ("lib/f0000", b"content of 0000\nmore"),
            ("lib/renamed", b"content of 0001\n"),
            ("lib/sub2/f0001", b"content of 0001\n"),
            ("lib/sub2/f0002", b"content of 0002\n"),
            ("other/deep/f0001", b"content of 0001\n"),
        ):
            with open(at(f"opt/{name}"), "rb") as file:
                assert file.read() == content
        any_bench.activate()
        assert_same_view(before, any_bench.view())
        any_bench.remount()
        assert_same_view(before, any_bench.view())

    def test_a_complete_directory_that_is_renamed_is_not_taken_for_the_one_it_was(self, bench: Bench) -> None:
        bench.promote(LIB)
        os.rename(bench.mounted.at(LIB), bench.mounted.at("opt/lib2"))
        assert bench.on_disk(b"opt/lib2").mark is MarkState.MOVED
        assert bench.on_disk(LIB).mark is MarkState.NONE

    def test_a_directory_made_anew_under_its_name_is_the_users(self, bench: Bench) -> None:
        bench.promote(LIB)
        shutil.rmtree(bench.mounted.at(LIB))
        os.mkdir(bench.mounted.at(LIB))
        assert bench.on_disk(LIB).mark is MarkState.FOREIGN


class TestShapes:
    def test_an_empty_directory(self, make_bench: MakeBench) -> None:
        promote_and_compare(make_bench({"opt": {"lib": {}}}))

    def test_nothing_but_directories(self, make_bench: MakeBench) -> None:
        assert len(promote_and_compare(make_bench({"opt": {"lib": {"a": {"b": {}}, "c": {}}}}))) == 4

    def test_a_directory_at_the_top(self, make_bench: MakeBench) -> None:
        promote_and_compare(make_bench({"lib": files(3)}), b"lib")

    def test_a_deep_tree(self, make_overlay: MakeOverlay) -> None:
        """With files as deep as redirect_max allows."""
        bench = Bench(make_overlay({"opt": {"lib": {}}}))
        here = os.open(bench.mounted.on_server(LIB), os.O_RDONLY)
        depth = 520
        for level in range(depth):
            os.mkdir("d", dir_fd=here)
            below = os.open("d", os.O_RDONLY, dir_fd=here)
            os.close(here)
            here = below
            if level < 100:
                os.close(os.open("f", os.O_CREAT | os.O_WRONLY, dir_fd=here))
            os.utime(f"/proc/self/fd/{here}", ns=(OLD, OLD))
        os.close(here)
        plan = bench.plan(LIB)
        assert len(plan.directories) == depth + 1
        bench.shadow(plan)
        assert len(bench.backend.complete(plan)) == depth + 1
        bench.activate()
        for path in (LIB, LIB + b"/d" * 100, LIB + b"/d" * depth):
            assert bench.on_disk(path).in_effect is True
            assert sorted(os.listdir(bench.mounted.at(path))) == sorted(os.listdir(bench.mounted.on_server(path)))

    def test_paths_longer_than_a_system_call_takes(self, make_overlay: MakeOverlay) -> None:
        bench = Bench(make_overlay({"opt": {"lib": {}}}))
        here = os.open(bench.mounted.on_server(LIB), os.O_RDONLY)
        for _ in range(20):
            os.mkdir("n" * 250, dir_fd=here)
            below = os.open("n" * 250, os.O_RDONLY, dir_fd=here)
            os.close(here)
            here = below
        os.symlink("x", "link", dir_fd=here)
        os.close(here)
        marked = bench.promote(LIB)
        assert len(marked) == 21
        assert len(max(marked, key=len)) > 5000

    def test_more_entries_than_a_batch_and_a_page(self, make_bench: MakeBench) -> None:
        bench = make_bench({"opt": {"lib": files(1100, content=b"")}})
        promote_and_compare(bench)


class TestNothingIsLeft:
    def test_no_descriptor_and_the_mount_can_be_unmounted_at_once(self, make_bench: MakeBench) -> None:
        """R16."""
        bench = make_bench(rich_tree())
        before = os.listdir("/proc/self/fd")
        bench.promote(LIB)
        bench.reopen(LIB)
        assert os.listdir("/proc/self/fd") == before
        bench.mounted.umount()

    def test_nor_between_two_batches(self, make_bench: MakeBench) -> None:
        bench = make_bench({"opt": {"lib": files(30)}}, batch=10)
        before = os.listdir("/proc/self/fd")
        for _ in bench.backend.shadow(bench.plan(LIB)):
            assert os.listdir("/proc/self/fd") == before

    def test_a_refused_entry_leaves_none_either(
        self, make_overlay: MakeOverlay, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        bench = Bench(make_overlay({"opt": {"lib": files(3)}}))
        plan = bench.plan(LIB, of=allow())
        before = os.listdir("/proc/self/fd")

        def fails(*_: object, **__: object) -> None:
            raise OSError(5, "Input/output error")

        monkeypatch.setattr(os, "link", fails)
        with pytest.raises(OSError, match="Input/output"):
            bench.shadow(plan)
        assert os.listdir("/proc/self/fd") == before
