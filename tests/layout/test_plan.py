from dataclasses import replace
from typing import Any

import pytest

from promoterd.errors import UsageError
from promoterd.layout.plan import Export, Wanted, plan, split_options
from promoterd.overlay.mounts import split_metadata
from support.facts import described

WANTED = Wanted([b"nas1:/export/soft"], b"/srv/soft")


def test_the_defaults() -> None:
    layout = plan(WANTED)
    state, mounts = b"/var/lib/promoterd/mounts/srv-soft", b"/mnt/promoterd/srv-soft"
    assert layout.exports == (Export(b"nas1:/export/soft", mounts + b"/lower", mounts + b"/data"),)
    assert (layout.upper, layout.work, layout.home) == (state + b"/upper", state + b"/work", state + b"/layer")
    assert layout.nfs_options == b"ro,vers=4.2,hard"
    assert layout.data_options == b"ro,vers=4.2,hard,nosharecache"
    assert layout.mountpoints == (mounts + b"/lower", mounts + b"/data", b"/srv/soft")


def test_the_overlay_is_what_doctor_calls_a_metadata_layer() -> None:
    layout = plan(replace(WANTED, state=b"/s", lower_mountpoints=[b"/l"], data_mountpoints=[b"/d"]))
    options = layout.overlay_options
    assert options == (
        b"lowerdir=/s/layer/promoterd.files:/s/layer/promoterd.rest:/l::/d,upperdir=/s/upper,workdir=/s/work,"
        b"metacopy=on,redirect_dir=on,index=off,xino=off"
    )
    layers, _, others = options.partition(b",upperdir")
    overlay = described(others.partition(b"work,")[2], layers + b",upperdir=/s/upper,workdir=/s/work")
    assert overlay.metadata == tuple(layout.layer[:2])
    assert (overlay.lowers, overlay.data_only, overlay.layer_home) == ((b"/l",), (b"/d",), layout.home)


def test_several_exports_keep_their_order() -> None:
    layout = plan(replace(WANTED, lowers=[b"nas1:/one", b"nas2:/two/"]))
    mounts = b"/mnt/promoterd/srv-soft"
    assert [export.source for export in layout.exports] == [b"nas1:/one", b"nas2:/two"]
    assert b":%s/lower1:%s/lower2::%s/data1::%s/data2," % ((mounts,) * 4) in layout.overlay_options
    assert len(layout.mountpoints) == 5


def test_odd_paths_are_escaped_for_overlayfs() -> None:
    layout = plan(
        Wanted([b"nas:/x"], b"/srv/a b", b"/st:ate\\", None, None, [b"/l,1"], [b"/d 1"]),
    )
    assert split_options(layout.overlay_options)[:2] == [
        rb"lowerdir=/st\:ate\\/layer/promoterd.files:/st\:ate\\/layer/promoterd.rest:/l\,1::/d 1",
        rb"upperdir=/st\:ate\\/upper",
    ]


@pytest.mark.parametrize(
    ("mountpoint", "name"),
    [(b"/srv/my-soft", b"srv-my--soft"), (b"/srv/my/soft", b"srv-my-soft"), (b"//srv/./soft/", b"srv-soft")],
)
def test_no_two_mount_points_share_a_default(mountpoint: bytes, name: bytes) -> None:
    assert plan(replace(WANTED, mountpoint=mountpoint)).upper == b"/var/lib/promoterd/mounts/%s/upper" % name


@pytest.mark.parametrize("server", [b"nas1", b"nas1.example.com", b"10.0.0.1", b"[fe80::1%eth0]", b"[2001:db8::1]"])
@pytest.mark.parametrize("path", [b"/", b"/export", "/a b:c/ü".encode(), b"/\xff"])
def test_exports(server: bytes, path: bytes) -> None:
    assert plan(replace(WANTED, lowers=[server + b":" + path])).exports[0].source == server + b":" + path


@pytest.mark.parametrize(
    "lower",
    [
        b"nas1",
        b"nas1:",
        b"nas1:export",
        b":/export",
        b"/export",
        b"na s:/x",
        b"a,b:/x",
        b"nas:/a/../b",
        b"nas:/a\nb",
        b"",
    ],
)
def test_what_is_no_export(lower: bytes) -> None:
    with pytest.raises(UsageError, match="is not SERVER:/PATH") as raised:
        plan(replace(WANTED, lowers=[lower]))
    assert "--lower nas1:/export/software" in (raised.value.hint or "")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"lowers": [b"nas:/x", b"nas:/x"]}, "given twice"),
        ({"mountpoint": b"srv/soft"}, "not an absolute path"),
        ({"mountpoint": b"/"}, "root of the system"),
        ({"mountpoint": b"/srv/../etc"}, "'..'"),
        ({"mountpoint": b"/srv/a b"}, "no default"),
        ({"mountpoint": b"/srv/-a"}, "no default"),
        ({"state": b'/a"b'}, "double quote"),
        ({"state": b"/a,,b"}, "two commas"),
        ({"state": b"/a,"}, "comma at the end"),
        ({"state": b"/a\nb"}, "control character"),
        ({"state": b"/" + b"x" * 5000}, "4095"),
        ({"state": b"/srv/soft/state"}, "lie in each other"),
        ({"upper": b"/var/lib/promoterd/mounts/srv-soft/work/x"}, "lie in each other"),
        ({"lower_mountpoints": [b"/m"], "data_mountpoints": [b"/m"]}, "lie in each other"),
        ({"lower_mountpoints": [b"/m"], "data_mountpoints": [b"/m/d"]}, "lie in each other"),
        ({"lower_mountpoints": [b"/m", b"/n"]}, "given 2 times"),
        ({"nfs_options": b""}, "empty"),
        ({"nfs_options": b"ro,,soft"}, "empty"),
        ({"nfs_options": b"ro, soft"}, "blank"),
        ({"nfs_options": b"vers=4.2,bg"}, "bg is refused"),
        ({"nfs_options": b"sharecache"}, "superblock"),
        ({"state": b"/" + b"x" * 1500}, "4095"),
    ],
)
def test_what_cannot_be(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError) as raised:
        plan(replace(WANTED, **changes))
    assert said in raised.value.message
    assert len(raised.value.hint or "") > 10
    assert raised.value.message.isprintable()


def test_options_of_nfs_are_kept_and_ours_not_doubled() -> None:
    layout = plan(replace(WANTED, nfs_options=b"soft,timeo=50,nosharecache,_netdev,fg"))
    assert layout.nfs_options == b"soft,timeo=50"
    assert layout.data_options == b"soft,timeo=50,nosharecache"


def test_values_that_the_new_mount_call_does_not_take() -> None:
    assert not plan(WANTED).is_long
    assert plan(replace(WANTED, state=b"/" + b"x" * 100)).is_long
    assert plan(replace(WANTED, upper=b"/" + b"x" * 256)).is_long


def test_the_halves_are_those_that_the_kernel_shows_first() -> None:
    layout = plan(WANTED)
    assert split_metadata((*layout.layer[:2], b"/l")) == (layout.layer[:2], (b"/l",))
