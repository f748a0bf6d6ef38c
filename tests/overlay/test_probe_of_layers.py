import os
from collections.abc import Callable
from pathlib import Path

import pytest

from promoterd.overlay import probe, syscalls
from promoterd.overlay.facts import LayerFacts
from promoterd.overlay.mountinfo import MountEntry
from promoterd.overlay.mounts import GRAVEYARD, STAGE, overlay_at
from promoterd.overlay.probe_of_layers import exports_of, trusted_xattrs_at, unlike_data
from support.facts import described
from support.overlays import MountedOverlay, unmount

MakeOverlay = Callable[..., MountedOverlay]


def facts_of(mounted: MountedOverlay) -> LayerFacts:
    found = probe.gather(overlay_at(mounted.mountpoint)).layer
    assert found is not None
    return found


@pytest.mark.parametrize("upper_fs", ["ext4", "btrfs", "tmpfs"])
def test_where_the_layer_lies(make_overlay: MakeOverlay, upper_fs: str) -> None:
    mounted = make_overlay({"lib": {"a": b"1"}}, counting=True, layered=True, upper_fs=upper_fs)
    found = facts_of(mounted)
    assert (found.fstype, found.trusted_xattrs, found.apart) == (upper_fs, True, ())
    assert (found.inode_bytes is not None) == (upper_fs == "ext4")


def test_no_layer_no_facts(make_overlay: MakeOverlay) -> None:
    assert probe.gather(overlay_at(make_overlay({}).mountpoint)).layer is None


@pytest.mark.parametrize("name", [STAGE, GRAVEYARD])
def test_what_nothing_can_be_renamed_from(make_overlay: MakeOverlay, name: bytes) -> None:
    mounted = make_overlay({}, counting=True, layered=True)
    apart = mounted.layer_home + b"/" + name
    os.mkdir(apart)
    assert facts_of(mounted).apart == ()
    # the same file system, by way of another mount: rename(2) fails with EXDEV all the same
    syscalls.mount(mounted.layer_home, apart, b"", syscalls.MS_BIND)
    try:
        with pytest.raises(OSError, match="cross-device"):
            os.rename(mounted.in_files(b""), apart + b"/x")
        assert facts_of(mounted).apart == (apart,)
    finally:
        unmount(apart)


class TestData:
    def test_the_same_tree(self, make_overlay: MakeOverlay) -> None:
        mounted = make_overlay([{"a": b"1"}, {"b": b"2"}], counting=True, layered=True)
        assert unlike_data(overlay_at(mounted.mountpoint)) == ()

    def test_another_order(self, make_overlay: MakeOverlay) -> None:
        mounted = make_overlay([{"a": b"1"}, {"b": b"2"}], counting=True, layered=True, mount=False)
        mounted.data_layers.reverse()
        mounted.mount()
        assert [other.layer for other in unlike_data(overlay_at(mounted.mountpoint))] == mounted.data_layers

    def test_a_copy_of_the_tree(self, make_overlay: MakeOverlay) -> None:
        mounted = make_overlay({"a": b"1"}, counting=True, layered=True, mount=False)
        copy = mounted.base + b"/copy"
        os.mkdir(copy)
        (Path(os.fsdecode(copy)) / "a").write_bytes(b"1")
        status = os.stat(mounted.lowers[0])
        os.utime(copy, ns=(status.st_atime_ns, status.st_mtime_ns))
        mounted.data_layers = [copy]
        mounted.mount()
        (other,) = unlike_data(overlay_at(mounted.mountpoint))
        assert other.layer == copy
        assert "time" in other.seen

    def test_a_tree_that_cannot_be_looked_at(self) -> None:
        overlay = described(
            layers=b"lowerdir=/no/promoterd.files:/no/promoterd.rest:/no/l::/no/d,upperdir=/u,workdir=/w"
        )
        (other,) = unlike_data(overlay)
        assert other.layer == b"/no/d"
        assert "cannot be looked at" in other.seen


def test_what_the_server_exports(monkeypatch: pytest.MonkeyPatch) -> None:
    def table() -> list[MountEntry]:
        root = MountEntry(1, 0, (8, 1), b"/", b"/", (), "ext4", b"/dev/sda", b"")
        share = MountEntry(2, 1, (0, 41), b"/", b"/l", (), "nfs4", b"nas1:/export", b"")
        return [root, share]

    monkeypatch.setattr("promoterd.overlay.probe_of_layers.read", table)
    assert exports_of(described()) == (b"nas1:/export",)
    inside = described(layers=b"lowerdir=/l/soft ware,upperdir=/u,workdir=/w".replace(b" ", rb"\040"))
    assert exports_of(inside) == (b"nas1:/export/soft ware",)
    assert exports_of(described(layers=b"lowerdir=/l:/local,upperdir=/u,workdir=/w")) == ()


@pytest.mark.needs("root")
def test_trusted_attributes(tmp_path: Path) -> None:
    assert trusted_xattrs_at(bytes(tmp_path)) is True
    assert trusted_xattrs_at(b"/proc/sys") is False
    assert trusted_xattrs_at(b"/no/such/place") is None
