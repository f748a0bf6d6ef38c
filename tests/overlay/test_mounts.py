import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from promoterd.overlay.escapes import escape_option
from promoterd.overlay.mountinfo import parse
from promoterd.overlay.mounts import (
    ModuleDefaults,
    Overlay,
    overlay_of,
    read_overlays,
    split_metadata,
)
from support.overlays import MountedOverlay
from support.places import Place

MakeOverlay = Callable[..., MountedOverlay]
ODD = [b"a:b", b"c,d", b"e\\f", b"g h", b"n\nl", b"tab\tx", b"q#", b"eq=", b"\xff\xfe", b"\\:,\\", b"\xc3\xbc", b"x::y"]


def described(options: bytes, defaults: ModuleDefaults | None = None) -> Overlay:
    """The overlay that a line with these super options describes."""
    line = b"70 60 0:41 / /mnt rw,relatime - overlay overlay rw,lowerdir=/l,upperdir=/u,workdir=/w" + options
    return overlay_of(parse(line)[0], defaults or ModuleDefaults())


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    with ExitStack() as stack:
        yield Place(bytes(tmp_path), stack)


DOCKER = (
    rb"1154 1153 0:58 / /var/lib/docker/overlay2/9f/merged rw,relatime - overlay overlay "
    rb"rw,lowerdir=/var/lib/docker/overlay2/l/QX2:/var/lib/docker/overlay2/l/4ZK,"
    rb"upperdir=/var/lib/docker/overlay2/9f/diff,workdir=/var/lib/docker/overlay2/9f/work"
)
PODMAN = (
    rb"602 554 0:55 / /var/lib/containers/storage/overlay/ab/merged rw,nodev,relatime master:1 - overlay overlay "
    rb'rw,context="system_u:object_r:container_file_t:s0:c1\054c2",lowerdir=/var/lib/containers/storage/overlay/l/JX,'
    rb"upperdir=/var/lib/containers/storage/overlay/ab/diff,workdir=/var/lib/containers/storage/overlay/ab/work,"
    rb"metacopy=on,volatile,userxattr"
)
LIVE = (
    rb"24 1 0:22 / / rw,noatime - overlay overlayfs-root "
    rb"ro,lowerdir=/media/root-ro,upperdir=/media/root-rw/overlay,workdir=/media/root-rw/overlay-workdir/_"
)


def test_a_docker_line() -> None:
    (overlay,) = read_overlays(DOCKER.replace(b"1153", b"0"))
    assert overlay.mountpoint == b"/var/lib/docker/overlay2/9f/merged"
    assert overlay.lowers == (b"/var/lib/docker/overlay2/l/QX2", b"/var/lib/docker/overlay2/l/4ZK")
    assert overlay.upper == b"/var/lib/docker/overlay2/9f/diff"
    assert overlay.device == (0, 58)
    assert not overlay.userxattr
    assert not overlay.read_only


def test_a_podman_line() -> None:
    (overlay,) = read_overlays(PODMAN.replace(b"554", b"0"))
    assert overlay.userxattr
    assert overlay.volatile
    assert overlay.work == b"/var/lib/containers/storage/overlay/ab/work"
    assert overlay.other_options == (rb'context="system_u:object_r:container_file_t:s0:c1\054c2"',)


def test_a_read_only_root() -> None:
    (overlay,) = read_overlays(LIVE)
    assert overlay.read_only
    assert not overlay.mount_read_only
    assert overlay.source == b"overlayfs-root"


FOLLOW = ModuleDefaults(redirect_always_follow=True)


@pytest.mark.parametrize(
    ("shown", "defaults", "metacopy", "redirect_dir"),
    [
        (b"", ModuleDefaults(), False, "nofollow"),
        (b"", FOLLOW, False, "follow"),
        (b"", ModuleDefaults(redirect_dir=True, redirect_always_follow=True), False, "on"),
        (b",redirect_dir=nofollow", FOLLOW, False, "nofollow"),
        (b",redirect_dir=on,metacopy=on", FOLLOW, True, "on"),
        # up to 6.4 metacopy=on turns redirects on silently, and `off` is shown as written
        (b",metacopy=on", FOLLOW, True, "on"),
        (b",redirect_dir=off", FOLLOW, False, "follow"),
        (b",redirect_dir=off", ModuleDefaults(redirect_dir=True), False, "nofollow"),
        # a module that defaults to metacopy shows only the exception
        (b"", ModuleDefaults(metacopy=True, redirect_dir=True), True, "on"),
        (b",metacopy=off", ModuleDefaults(metacopy=True, redirect_dir=True), False, "on"),
    ],
)
def test_what_is_not_shown_is_the_modules_default(
    shown: bytes, defaults: ModuleDefaults, metacopy: bool, redirect_dir: str
) -> None:
    overlay = described(shown, defaults)
    assert (overlay.metacopy, overlay.redirect_dir) == (metacopy, redirect_dir)


def test_the_other_defaults() -> None:
    usual = described(b"")
    assert (usual.index, usual.nfs_export, usual.xino, usual.verity) == (False, False, "off", "off")
    turned = described(b"", ModuleDefaults(index=True, nfs_export=True, xino_auto=True))
    assert (turned.index, turned.nfs_export, turned.xino) == (True, True, "auto")
    assert described(b",xino=on,verity=require,index=on").xino == "on"


@pytest.mark.parametrize(
    ("shown", "volatile"), [(b",volatile", True), (b",fsync=volatile", True), (b",fsync=strict", False)]
)
def test_volatile_has_two_spellings(shown: bytes, volatile: bool) -> None:
    assert described(shown).volatile is volatile


def test_a_backslash_in_a_path_given_by_descriptor() -> None:
    entry = parse(rb"70 60 0:41 / /mnt rw - overlay overlay rw,lowerdir=/l,upperdir=/u\134:x,workdir=/w")[0]
    assert overlay_of(entry, ModuleDefaults(), lambda path: path == b"/u:x").upper == b"/u:x"
    assert overlay_of(entry, ModuleDefaults(), lambda path: path == b"/u\\:x").upper == b"/u\\:x"


@pytest.mark.needs("root", "overlay")
def test_odd_layer_paths_by_mount_2(place: Place) -> None:
    layers = [place.directory(name) for name in ODD]
    upper, work = place.directory(b"u:,\\p"), place.directory(b"w k\n")
    overlay = place.mount(
        b"lowerdir=%s,upperdir=%s,workdir=%s"
        % (b":".join(map(escape_option, layers)), escape_option(upper), escape_option(work))
    )
    assert overlay.lowers == tuple(layers)
    assert overlay.upper == upper
    assert overlay.work == work
    assert not overlay.relative_layers


@pytest.mark.needs("root", "overlay")
def test_odd_mount_points(place: Place) -> None:
    for name in ODD:
        target = place.directory(b"on " + name)
        overlay = place.mount(b"lowerdir=/usr:" + place.upper, target)
        assert overlay.mountpoint == target
        assert overlay.upper is None
        assert overlay.read_only


@pytest.mark.needs("root", "overlay")
def test_layers_added_one_by_one(place: Place) -> None:
    layers = [place.directory(name) for name in ODD]
    data = [place.directory(b"data:" + name) for name in ODD[:3]]
    try:
        overlay = place.mount_new(
            [
                *((b"lowerdir+", layer) for layer in layers),
                *((b"datadir+", layer) for layer in data),
                (b"upperdir", place.upper),
                (b"workdir", place.work),
                (b"metacopy", b"on"),
            ]
        )
    except OSError as error:
        pytest.skip(f"this kernel has no lowerdir+ (Linux 6.8): {error}")
    assert overlay.lowers == tuple(layers)
    assert overlay.data_only == tuple(data)
    assert overlay.layers == (place.upper, *layers, *data)


@pytest.mark.needs("root", "overlay")
def test_layers_given_by_descriptor(place: Place) -> None:
    lower, upper, work = (place.directory(name) for name in (b"l\\:x", b"u:,\\p", b"w\\:x"))
    with ExitStack() as stack:
        opened = [os.open(path, os.O_PATH | os.O_DIRECTORY) for path in (lower, upper, work)]
        for descriptor in opened:
            stack.callback(os.close, descriptor)
        try:
            overlay = place.mount_new(list(zip((b"lowerdir+", b"upperdir", b"workdir"), opened, strict=True)))
        except OSError as error:
            pytest.skip(f"this kernel takes no layers by descriptor (Linux 6.13): {error}")
    assert (overlay.lowers, overlay.upper, overlay.work) == ((lower,), upper, work)


@pytest.mark.needs("root", "overlay")
def test_data_only_layers_in_lowerdir(place: Place) -> None:
    regular, data = place.directory(b"reg"), [place.directory(b"d:1"), place.directory(b"d2")]
    try:
        overlay = place.mount(
            b"lowerdir=%s::%s::%s,upperdir=%s,workdir=%s,metacopy=on"
            % (regular, escape_option(data[0]), data[1], place.upper, place.work)
        )
    except OSError as error:
        pytest.skip(f"this kernel has no data-only layers (Linux 6.5): {error}")
    assert overlay.lowers == (regular,)
    assert overlay.data_only == tuple(data)


@pytest.mark.needs("root", "overlay")
def test_metacopy_brings_redirects(place: Place) -> None:
    overlay = place.mount(b"lowerdir=/usr,upperdir=%s,workdir=%s,metacopy=on" % (place.upper, place.work))
    assert overlay.metacopy
    assert overlay.redirect_dir == "on"


@pytest.mark.needs("root", "overlay")
def test_relative_layers_are_reported(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.directory(b"low")
    monkeypatch.chdir(os.fsdecode(place.base))
    overlay = place.mount(b"lowerdir=low:%s,upperdir=up,workdir=wk" % place.directory(b"abs"))
    assert overlay.relative_layers == (b"up", b"low", b"wk")


def test_a_metadata_layer_is_known_by_its_names_and_is_no_layer_of_the_server() -> None:
    halves = (b"/var/lib/x/promoterd.files", b"/var/lib/x/promoterd.rest")
    assert split_metadata((*halves, b"/nfs", b"/nfs2")) == (halves, (b"/nfs", b"/nfs2"))


@pytest.mark.parametrize(
    "lowers",
    [
        (b"/x/promoterd.files", b"/x/promoterd.rest"),  # nothing below: there is no server to ask
        (b"/x/promoterd.rest", b"/x/promoterd.files", b"/nfs"),
        (b"/x/promoterd.files", b"/y/promoterd.rest", b"/nfs"),
        (b"/nfs", b"/x/promoterd.files", b"/x/promoterd.rest"),
        (b"/nfs",),
    ],
)
def test_what_only_looks_like_a_metadata_layer_is_a_layer_like_any_other(lowers: tuple[bytes, ...]) -> None:
    assert split_metadata(lowers) == ((), lowers)
