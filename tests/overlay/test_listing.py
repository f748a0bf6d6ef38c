"""Names as the layers themselves have them; the kernel's own merge is the judge."""

import errno
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from promoterd.errors import MountGone, Refused
from promoterd.overlay import mounts, syscalls
from promoterd.overlay.listing import Layers, stamp
from support.overlays import MountedOverlay
from support.trees import OLD, Device, Directory, File, Hardlink, Symlink, Tree, files, odd_files

MakeOverlay = Callable[..., MountedOverlay]
WHITEOUT = Device(0, 0)
OPAQUE, REDIRECT = "trusted.overlay.opaque", "trusted.overlay.redirect"
X_WHITEOUT = File(b"", xattrs={"trusted.overlay.whiteout": b"y"})

STACKS: dict[str, list[Tree]] = {
    "one": [{"d": {**files(3), "sub": {}, "link": Symlink("x"), "null": Device(1, 3)}}],
    "odd names": [{"d": odd_files()}],
    "union": [{"d": {"a": b"1", "b": b"1"}}, {"d": {"b": b"2", "c": b"2"}}, {"d": {"c": b"3", "d": b"3"}}],
    "missing in the middle": [{"d": {"a": b"1"}}, {"else": {}}, {"d": {"c": b"3"}}],
    "whiteout": [{"d": {"a": WHITEOUT, "n": b""}}, {"d": {"a": b"2", "b": b"2"}}],
    "whiteout below": [{"d": {"a": b"1"}}, {"d": {"a": WHITEOUT}}, {"d": {"a": b"3", "b": b"3"}}],
    "whiteout that hides nothing": [{"d": {"a": WHITEOUT, "b": b"1"}}, {"d": {"c": b"2"}}],
    "whiteout in the lowest": [{"d": {"b": b"1"}}, {"d": {"a": WHITEOUT}}],
    "opaque": [{"d": Directory({"a": b"1"}, xattrs={OPAQUE: b"y"})}, {"d": {"b": b"2"}}],
    "opaque in the middle": [
        {"d": {"a": b"1"}},
        {"d": Directory({"b": b"2"}, xattrs={OPAQUE: b"y"})},
        {"d": {"c": b"3"}},
    ],
    "opaque ancestor": [
        {"up": Directory({"d": {"a": b"1"}}, xattrs={OPAQUE: b"y"})},
        {"up": {"d": {"b": b"2"}}},
    ],
    "file over directory": [{"d": {"a": b"1"}}, {"d": b"a file"}, {"d": {"c": b"3"}}],
    "whiteout over directory": [{"d": {"a": b"1"}}, {"d": WHITEOUT}, {"d": {"c": b"3"}}],
    "symlink over directory": [{"d": {"a": b"1"}}, {"d": Symlink("e"), "e": {"x": b""}}, {"d": {"c": b"3"}}],
    "file over ancestor": [{"up": {"d": {"a": b"1"}}}, {"up": b""}, {"up": {"d": {"c": b"3"}}}],
    "xwhiteouts": [
        {"d": Directory({"a": X_WHITEOUT, "n": b""}, xattrs={OPAQUE: b"x"})},
        {"d": {"a": b"2", "b": b"2"}},
    ],
}


@contextmanager
def layers_of(mounted: MountedOverlay) -> Iterator[Layers]:
    with Layers(mounts.overlay_at(mounted.mountpoint)) as layers:
        yield layers


class TestLower:
    @pytest.mark.parametrize("stack", STACKS)
    def test_it_lists_what_the_kernel_merges(self, make_overlay: MakeOverlay, stack: str) -> None:
        mounted = make_overlay(STACKS[stack])
        path = b"up/d" if any("up" in layer for layer in STACKS[stack]) else b"d"
        with layers_of(mounted) as layers:
            found = layers.list_lower(path, layers.contributing(path))
        assert set(map(os.fsencode, found.entries)) == set(os.listdir(mounted.at(path)))
        for name, mode in found.entries.items():
            assert mode == os.lstat(mounted.at(path + b"/" + os.fsencode(name))).st_mode

    def test_what_upper_has_does_not_matter(self, make_overlay: MakeOverlay) -> None:
        mounted = make_overlay({"d": {"sub": files(2), "a": b"a"}})
        os.unlink(mounted.at("d/a"))
        os.rename(mounted.at("d/sub"), mounted.at("moved"))
        with layers_of(mounted) as layers:
            assert set(layers.list_lower(b"d", layers.contributing(b"d")).entries) == {"a", "sub"}
            assert layers.contributing(b"d/sub") == (0,)

    def test_the_layers_that_contribute(self, make_overlay: MakeOverlay) -> None:
        mounted = make_overlay([{"d": {"x": {}}}, {"e": {}}, {"d": {"y": {}}}])
        with layers_of(mounted) as layers:
            assert layers.contributing(b"") == (0, 1, 2)
            assert layers.contributing(b"d") == (0, 2)
            assert layers.contributing(b"d/y") == (2,)
            assert layers.contributing(b"nowhere/d") == ()
            assert layers.contributing_below((0, 2), b"d/y") == (2,)

    def test_a_directory_that_is_deleted_on_the_server_has_none_nor_has_what_was_in_it(
        self, make_overlay: MakeOverlay
    ) -> None:
        mounted = make_overlay([{"sw": {"rel": {"lib": {}}}}, {"sw": {"rel": {"lib": {}}}}])
        os.utime(mounted.at("sw/rel/lib"))  # upper has it, which is no reason
        for server, left in ((0, (1,)), (1, ())):
            shutil.rmtree(mounted.on_server("sw/rel", server))
            with layers_of(mounted) as layers:
                assert layers.contributing(b"sw") == (0, 1)
                assert layers.contributing(b"sw/rel") == layers.contributing(b"sw/rel/lib") == left

    @pytest.mark.parametrize("replaced", [b"sw", b"sw/rel", b"sw/rel/lib"])
    def test_a_file_in_its_place_counts_as_gone(self, make_overlay: MakeOverlay, replaced: bytes) -> None:
        mounted = make_overlay({"sw": {"rel": {"lib": {}}}})
        shutil.rmtree(mounted.on_server(replaced))
        with open(mounted.on_server(replaced), "wb"), layers_of(mounted) as layers:
            found = [path for path in (b"sw", b"sw/rel", b"sw/rel/lib") if not layers.contributing(path)]
        assert found[0] == replaced

    @pytest.mark.needs("fuse")
    def test_a_dead_server_is_no_deletion(self, make_overlay: MakeOverlay) -> None:
        mounted = make_overlay({"sw": {"rel": {"lib": {}}}}, counting=True)
        with layers_of(mounted) as layers:
            mounted.counted.fail(errno.EIO)
            try:
                with pytest.raises(OSError, match="Input/output error"):
                    layers.contributing(b"sw/rel/lib")
            finally:
                mounted.counted.fail(0)

    @pytest.mark.parametrize("redirected", [b"up", b"up/d"])
    def test_a_lower_redirect_is_refused(self, make_overlay: MakeOverlay, redirected: bytes) -> None:
        mounted = make_overlay({"up": {"d": {"a": b"a"}}})
        os.setxattr(mounted.on_server(redirected), REDIRECT, b"/elsewhere")
        with layers_of(mounted) as layers, pytest.raises(Refused, match="redirect") as refusal:
            layers.contributing(b"up/d")
        assert refusal.value.hint

    def test_files_with_a_lower_redirect_are_named(self, make_overlay: MakeOverlay) -> None:
        mounted = make_overlay({"d": {"a": File(b"", xattrs={REDIRECT: b"/x"}), "b": b""}})
        with layers_of(mounted) as layers:
            assert layers.list_lower(b"d", (0,)).redirected == ["a"]

    def test_a_mount_in_a_lower_layer_is_refused(self, make_overlay: MakeOverlay) -> None:
        mounted = make_overlay({"d": {"in": {}}})
        syscalls.mount(b"tmpfs", mounted.on_server("d/in"), b"tmpfs")
        try:
            with layers_of(mounted) as layers, pytest.raises(Refused, match="another file system"):
                layers.contributing(b"d/in")
        finally:
            syscalls.umount(mounted.on_server("d/in"))

    def test_hard_links_and_what_is_newest(self, make_overlay: MakeOverlay) -> None:
        mounted = make_overlay(
            {"d": {"a": b"a", "b": Hardlink("d/a"), "c": b"c", "l": Symlink("c"), "m": Hardlink("d/l")}}
        )
        os.utime(mounted.on_server("d/c"), ns=(OLD, 4_000_000_000 * 10**9))
        with layers_of(mounted) as layers:
            found = layers.list_lower(b"d", (0,))
        assert sorted(found.hard_linked) == ["a", "b"], "symlinks are copied up without harm"
        assert (found.newest, found.newest_ns) == ("c", 4_000_000_000 * 10**9)

    def test_a_change_time_counts_too(self, make_overlay: MakeOverlay) -> None:
        mounted = make_overlay({"d": files(2)})
        os.chmod(mounted.on_server("d/f0001"), 0o600)
        with layers_of(mounted) as layers:
            found = layers.list_lower(b"d", (0,))
        assert (found.newest, found.newest_ns) == ("f0001", os.stat(mounted.on_server("d/f0001")).st_ctime_ns)

    @pytest.mark.needs("chattr", "mkfs.ext4")
    @pytest.mark.parametrize("flag", ["i", "a"])
    def test_what_cannot_be_changed_is_named(self, make_overlay: MakeOverlay, flag: str) -> None:
        mounted = make_overlay({"d": {"a": b"a", "b": b"b", "sub": {}}})
        fixed = [mounted.on_server("d/b"), mounted.on_server("d/sub")]
        subprocess.run(["chattr", f"+{flag}", *fixed], check=True)
        try:
            with layers_of(mounted) as layers:
                assert sorted(layers.list_lower(b"d", (0,)).unchangeable) == ["b", "sub"]
        finally:
            subprocess.run(["chattr", f"-{flag}", *fixed], check=True)

    def test_listing_leaves_no_trace(self, make_overlay: MakeOverlay) -> None:
        mounted = make_overlay({"d": files(2)})
        with layers_of(mounted) as layers:
            layers.list_lower(b"d", (0,))
            layers.list_upper(b"")
            layers.list_merged(b"d")
        assert os.stat(mounted.on_server("d")).st_atime_ns == OLD


class TestStamps:
    def test_they_tell_of_every_change_of_names(self, make_overlay: MakeOverlay) -> None:
        mounted = make_overlay([{"d": files(2)}, {"d": files(2)}])
        with layers_of(mounted) as layers:
            before = layers.stamps(b"d", (0, 1))
            assert before == layers.list_lower(b"d", (0, 1)).stamps
            os.unlink(mounted.on_server("d/f0001", 1))
            os.utime(mounted.on_server("d", 1), ns=(OLD, OLD))
            after = layers.stamps(b"d", (0, 1))
            assert after[0] == before[0]
            assert after[1].mtime_ns == before[1].mtime_ns
            assert after[1] != before[1], "the change time tells"

    def test_a_directory_that_is_gone_has_none(self, make_overlay: MakeOverlay) -> None:
        mounted = make_overlay([{"d": {}}, {"d": {}}])
        with layers_of(mounted) as layers:
            os.rmdir(mounted.on_server("d"))
            assert len(layers.stamps(b"d", (0, 1))) == 1

    def test_the_device_is_not_part_of_the_content(self, make_overlay: MakeOverlay) -> None:
        mounted = make_overlay({"d": {}}, counting=True)
        with layers_of(mounted) as layers:
            through_fuse = layers.stamps(b"d", (0,))[0]
        descriptor = os.open(mounted.on_server("d"), os.O_PATH)
        try:
            directly = stamp(descriptor)
        finally:
            os.close(descriptor)
        assert through_fuse != directly
        assert through_fuse.same_content(directly)


class TestUpper:
    def test_whiteouts_are_told(self, make_overlay: MakeOverlay) -> None:
        mounted = make_overlay({"d": {"gone": b"", "kept": b"", "sub": {}}})
        os.unlink(mounted.at("d/gone"))
        os.mkdir(mounted.at("d/made"))
        os.mknod(mounted.at("d/null"), 0o20600, os.makedev(1, 3))
        with layers_of(mounted) as layers:
            found = layers.list_upper(b"d")
        assert {name: entry.whiteout for name, entry in found.items()} == {"gone": True, "made": False, "null": False}
        assert found["made"].ctime_ns == os.stat(mounted.in_upper("d/made")).st_ctime_ns

    def test_no_directory_no_names(self, make_overlay: MakeOverlay) -> None:
        mounted = make_overlay({"d": {"sub": {}}})
        os.rmdir(mounted.at("d/sub"))
        with layers_of(mounted) as layers:
            assert layers.list_upper(b"nowhere") == {}
            assert layers.list_upper(b"d/sub") == {}, "a whiteout"

    def test_attributes(self, make_overlay: MakeOverlay) -> None:
        mounted = make_overlay({"d": {"sub": {}}})
        os.rmdir(mounted.at("d/sub"))
        os.mkdir(mounted.at("d/sub"))
        with layers_of(mounted) as layers:
            assert layers.upper_xattr(b"d/sub", OPAQUE) == b"y"
            assert layers.upper_xattr(b"d", OPAQUE) is None
            assert layers.upper_xattr(b"nowhere", OPAQUE) is None


class TestDescriptors:
    def test_none_is_left_open(self, make_overlay: MakeOverlay) -> None:
        """R16: an idle mount can be unmounted at once."""
        mounted = make_overlay([{"d": files(2)}, {}])
        before = os.listdir("/proc/self/fd")
        with layers_of(mounted) as layers:
            layers.list_lower(b"d", layers.contributing(b"d"))
            layers.list_merged(b"d")
            layers.sync_upper()
        assert os.listdir("/proc/self/fd") == before
        mounted.umount()

    def test_not_even_after_a_failure(self, make_overlay: MakeOverlay) -> None:
        mounted = make_overlay([{"d": {}}, {}])
        overlay = mounts.overlay_at(mounted.mountpoint)
        before = os.listdir("/proc/self/fd")
        os.rename(mounted.lowers[1], mounted.lowers[1] + b".gone")
        with pytest.raises(FileNotFoundError), Layers(overlay):
            pass
        assert os.listdir("/proc/self/fd") == before

    def test_another_mount_in_its_place_is_noticed(self, make_overlay: MakeOverlay) -> None:
        mounted = make_overlay({"d": {}})
        overlay = mounts.overlay_at(mounted.mountpoint)
        mounted.umount()
        with pytest.raises(MountGone), Layers(overlay):
            pass
        mounted.mount()
        if mounts.overlay_at(mounted.mountpoint).device != overlay.device:
            with pytest.raises(MountGone), Layers(overlay):
                pass

    def test_the_layers_of_an_overlay_that_is_not_mounted(self, make_overlay: MakeOverlay) -> None:
        mounted = make_overlay({"d": files(2)})
        overlay = mounts.overlay_at(mounted.mountpoint)
        mounted.umount()
        with Layers(overlay, mounted=False) as layers:
            assert set(layers.list_lower(b"d", (0,)).entries) == {"f0000", "f0001"}
            with pytest.raises(OSError, match=os.strerror(errno.EBADF)):
                layers.list_merged(b"d")

    def test_a_path_longer_than_a_system_call_takes(self, make_overlay: MakeOverlay) -> None:
        mounted = make_overlay({})
        here = os.open(mounted.lowers[0], os.O_PATH)
        names = [b"%03d" % number + b"n" * 240 for number in range(40)]
        for name in names:
            os.mkdir(name, dir_fd=here)
            below = os.open(name, os.O_PATH, dir_fd=here)
            os.close(here)
            here = below
        os.mkdir("bottom", dir_fd=here)
        os.close(here)
        path = b"/".join(names)
        assert len(path) > 2 * 4096
        with layers_of(mounted) as layers:
            assert set(layers.list_lower(path, layers.contributing(path)).entries) == {"bottom"}
            assert layers.list_merged(path) == ["bottom"]
            assert layers.contributing(path + b"/none") == ()
