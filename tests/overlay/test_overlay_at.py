import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from promoterd.demo.lower import CountingLower
from promoterd.errors import MountNotFound
from promoterd.overlay import syscalls
from promoterd.overlay.mounts import (
    lower_identity,
    overlay_at,
    read_overlays,
    redirect_max,
)
from support.overlays import MountedOverlay, unmount
from support.places import Place

MakeOverlay = Callable[..., MountedOverlay]
ODD = [b"a:b", b"c,d", b"e\\f", b"g h", b"n\nl", b"tab\tx", b"q#", b"eq=", b"\xff\xfe", b"\\:,\\", b"\xc3\xbc", b"x::y"]


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    with ExitStack() as stack:
        yield Place(bytes(tmp_path), stack)


def test_nothing_is_mounted_there(tmp_path: Path) -> None:
    with pytest.raises(MountNotFound) as caught:
        overlay_at(bytes(tmp_path))
    assert str(tmp_path) in str(caught.value)
    assert "doctor" in str(caught.value)


def test_a_path_that_does_not_exist() -> None:
    with pytest.raises(MountNotFound):
        overlay_at(b"/no/such/place")


def test_a_path_inside_an_overlay_names_the_mount(make_overlay: MakeOverlay) -> None:
    made = make_overlay({"lib": {"f": b"x"}})
    with pytest.raises(MountNotFound) as caught:
        overlay_at(made.at("lib"))
    assert f"inside the overlay at {made.mountpoint.decode()}" in str(caught.value)


def test_a_path_above_an_overlay_names_the_mount(make_overlay: MakeOverlay) -> None:
    made = make_overlay({})
    with pytest.raises(MountNotFound) as caught:
        overlay_at(made.base)
    assert f"there is one at {made.mountpoint.decode()}" in str(caught.value)


def test_spellings_of_a_mount_point(make_overlay: MakeOverlay, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = make_overlay({})
    link = tmp_path / "link"
    link.symlink_to(os.fsdecode(made.base))
    monkeypatch.chdir(os.fsdecode(made.base))
    for spelling in (
        made.mountpoint + b"/",
        bytes(link) + b"/mnt",
        b"mnt",
        b"./../" + os.path.basename(made.base) + b"/mnt",
    ):
        assert overlay_at(spelling).mountpoint == made.mountpoint


def test_the_topmost_of_stacked_overlays(make_overlay: MakeOverlay, place: Place) -> None:
    made = make_overlay({})
    under = overlay_at(made.mountpoint)
    over = place.mount(b"lowerdir=/usr:" + place.upper, made.mountpoint)
    assert over.identity != under.identity
    assert overlay_at(made.mountpoint) == over
    assert [found for found in read_overlays() if found.mountpoint == made.mountpoint] == [over]


def test_an_overlay_that_something_covers(make_overlay: MakeOverlay) -> None:
    made = make_overlay({})
    for covered in (made.mountpoint, made.base):
        syscalls.mount(b"none", covered, b"tmpfs")
        try:
            assert made.mountpoint not in [found.mountpoint for found in read_overlays()]
            with pytest.raises(MountNotFound) as caught:
                overlay_at(made.mountpoint)
        finally:
            unmount(covered)
        assert "hides it" in str(caught.value)
    assert overlay_at(made.mountpoint).upper == made.upper


def test_a_bind_mount_of_a_part_is_no_overlay(make_overlay: MakeOverlay, tmp_path: Path) -> None:
    made = make_overlay({"lib": {"f": b"x"}})
    syscalls.mount(made.at("lib"), bytes(tmp_path), b"", syscalls.MS_BIND)
    try:
        with pytest.raises(MountNotFound) as caught:
            overlay_at(bytes(tmp_path))
        assert bytes(tmp_path) not in [found.mountpoint for found in read_overlays()]
    finally:
        unmount(bytes(tmp_path))
    assert f"name {made.mountpoint.decode()} instead" in str(caught.value)
    assert "/lib" in str(caught.value)


def test_a_read_only_bind_mount_of_the_whole(make_overlay: MakeOverlay, tmp_path: Path) -> None:
    made = make_overlay({})
    target = bytes(tmp_path)
    syscalls.mount(made.mountpoint, target, b"", syscalls.MS_BIND)
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", target], check=True)
        found = overlay_at(target)
    finally:
        unmount(target)
    assert found.mount_read_only
    assert not found.read_only
    assert found.device == overlay_at(made.mountpoint).device


def test_identity_tells_another_mount_and_other_options(make_overlay: MakeOverlay) -> None:
    made = make_overlay({})
    before = overlay_at(made.mountpoint).identity
    assert overlay_at(made.mountpoint).identity == before
    made.umount()
    made.options = "metacopy=on,redirect_dir=on,xino=off,index=on"
    made.mount()
    assert overlay_at(made.mountpoint).identity != before
    before = overlay_at(made.mountpoint).identity
    subprocess.run(["mount", "-o", "remount,ro", made.mountpoint], check=True)
    assert overlay_at(made.mountpoint).identity != before


def test_redirect_max_is_the_modules() -> None:
    with open("/sys/module/overlay/parameters/redirect_max") as file:
        assert redirect_max() == int(file.read())


class TestLowerIdentity:
    @pytest.mark.needs("root", "fuse")
    def test_it_outlives_a_remount_with_another_device_number(self, tmp_path: Path) -> None:
        (tmp_path / "source").mkdir()
        on = bytes(tmp_path / "on")
        os.mkdir(on)
        identities, devices = set(), set()
        with ExitStack() as stack:
            for _ in range(2):
                with CountingLower(bytes(tmp_path / "source"), on):
                    identities.add(lower_identity(on))
                    devices.add(os.stat(on).st_dev)
                    # keeps the file system, and with it the device number, past the unmount
                    stack.callback(os.close, os.open(on, os.O_PATH))
        assert len(devices) == 2
        assert len(identities) == 1

    @pytest.mark.needs("root")
    def test_a_bind_mount_is_the_same_layer(self, tmp_path: Path) -> None:
        (tmp_path / "real" / "in side").mkdir(parents=True)
        bound = tmp_path / "bound"
        bound.mkdir()
        direct = lower_identity(bytes(tmp_path / "real" / "in side"))
        syscalls.mount(bytes(tmp_path / "real"), bytes(bound), b"", syscalls.MS_BIND)
        try:
            assert lower_identity(bytes(bound / "in side")) == direct
        finally:
            unmount(bytes(bound))
        (tmp_path / "link").symlink_to("real")
        assert lower_identity(bytes(tmp_path / "link" / "in side")) == direct
        assert direct.isascii()

    def test_another_directory_at_the_path_is_another_layer(self, tmp_path: Path) -> None:
        (tmp_path / "export").mkdir()
        before = lower_identity(bytes(tmp_path / "export"))
        (tmp_path / "export").rename(tmp_path / "old")
        (tmp_path / "export").mkdir()
        assert lower_identity(bytes(tmp_path / "export")) != before

    def test_a_layer_that_is_gone(self, tmp_path: Path) -> None:
        with pytest.raises(OSError, match="gone"):
            lower_identity(bytes(tmp_path) + b"/gone")
