import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from promoterd.demo.lower import CountingLower
from promoterd.errors import Refused
from promoterd.layout.plan import Layout, Wanted, plan
from promoterd.layout.survey import existing, survey
from promoterd.overlay import syscalls
from promoterd.overlay.mountinfo import MountEntry, read
from support.overlays import MountedOverlay, unmount


def below(base: Path, **changes: object) -> Layout:
    root = os.path.realpath(os.fsencode(base))
    wanted = Wanted([b"nas1:/export"], root + b"/ovl", root + b"/state", None, None, [root + b"/l"], [root + b"/d"])
    return plan(replace(wanted, **changes))  # type: ignore[arg-type]


def refused(layout: Layout, root: bytes = b"/") -> Refused:
    with pytest.raises(Refused) as raised:
        survey(layout, root)
    assert len(raised.value.hint or "") > 10
    return raised.value


def test_a_local_disk_will_do_and_nothing_is_made(tmp_path: Path) -> None:
    assert survey(below(tmp_path)) == []
    assert os.listdir(tmp_path) == []


def test_the_nearest_directory_that_exists(tmp_path: Path) -> None:
    assert existing(bytes(tmp_path / "a" / "b")) == bytes(tmp_path)
    assert existing(b"/no/such") == b"/"


def test_a_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "ovl").touch()
    assert "is no directory" in refused(below(tmp_path)).message
    assert (
        "is no directory" in refused(below(tmp_path, state=bytes(tmp_path) + b"/ovl/state", mountpoint=b"/x/y")).message
    )


def test_a_symlink_on_the_way(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "ovl").symlink_to("there")
    error = refused(below(tmp_path))
    assert "symlink" in error.message
    assert f"{tmp_path}/there" in (error.hint or "")


@pytest.mark.needs("root", "fuse")
@pytest.mark.parametrize("option", ["state", "upper", "work"])
def test_layers_on_a_server(tmp_path: Path, option: str) -> None:
    served, place = bytes(tmp_path / "served"), bytes(tmp_path / "far")
    for directory in (served, place):
        os.mkdir(directory)
    with CountingLower(served, place):
        error = refused(below(tmp_path, **{option: place + b"/here"}))
    assert "fuse" in error.message
    assert str(tmp_path / "far") in error.message
    assert "--state" in (error.hint or "")


@pytest.mark.needs("root")
def test_layers_on_a_file_system_without_trusted_attributes(tmp_path: Path) -> None:
    error = refused(below(tmp_path, state=b"/proc/promoterd"))
    assert "(proc) has no trusted.* attributes" in error.message


@pytest.mark.needs("root")
def test_a_tmpfs_is_worth_a_warning_and_parts_upper_from_work(tmp_path: Path) -> None:
    state = bytes(tmp_path) + b"/state"
    os.mkdir(state)
    syscalls.mount(b"none", state, b"tmpfs")
    try:
        assert [text for text in survey(below(tmp_path)) if "next boot" in text and "/state/upper" in text]
        error = refused(below(tmp_path, work=bytes(tmp_path) + b"/work"))
    finally:
        unmount(state)
    assert "same mount as the upper layer" in error.message


def test_an_overlay_that_is_mounted_there_already(make_overlay: Callable[..., MountedOverlay]) -> None:
    mounted = make_overlay({})
    base = Path(os.fsdecode(mounted.base))
    (warning,) = survey(below(base, mountpoint=mounted.mountpoint))
    assert "unmount that before" in warning
    assert mounted.mountpoint.decode() in warning


def test_another_server_on_a_mount_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layout = below(tmp_path)
    (tmp_path / "l").mkdir()
    table = read()
    top = next(entry for entry in table if entry.mountpoint == b"/")

    def with_share(source: bytes) -> None:
        share = MountEntry(99999, top.mount_id, (0, 999), b"/", layout.exports[0].lower, (), "nfs4", source, b"")
        monkeypatch.setattr("promoterd.layout.survey.read", lambda: [*table, share])

    with_share(b"nas1:/export")
    assert survey(layout) == [], "the export that is wanted there"
    with_share(b"nas2:/other")
    error = refused(layout)
    assert "nas2:/other" in error.message
    assert "--lower-mountpoint" in (error.hint or "")


def test_another_root(tmp_path: Path) -> None:
    layout = plan(Wanted([b"nas1:/export"], b"/srv/soft"))
    (tmp_path / "srv").mkdir()
    (tmp_path / "srv" / "soft").touch()
    assert f"{tmp_path}/srv/soft is no directory" in refused(layout, os.path.realpath(bytes(tmp_path))).message
