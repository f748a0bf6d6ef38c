import os
from pathlib import Path

import pytest

from promoterd.heat import nfs_devices
from promoterd.heat.base import MountView
from promoterd.heat.nfs_devices import Sharing, devices_of
from promoterd.overlay import holding, mounts
from promoterd.overlay.mountinfo import MountEntry, parse

MOUNTINFO = b"""\
1 0 8:1 / / rw - ext4 /dev/sda1 rw
2 1 0:31 / /mnt/apps rw - nfs4 server:/apps rw,vers=4.2,proto=tcp
3 1 0:32 / /mnt/old rw - nfs server:/old rw,vers=3,proto=tcp
4 1 0:31 /tools /mnt/bound rw - nfs4 server:/apps/tools rw,vers=4.2
5 1 0:40 / /srv/software rw - overlay overlay rw,lowerdir=/mnt/apps/a,upperdir=/u,workdir=/w
6 1 0:41 / /srv/tools rw - overlay overlay rw,lowerdir=/mnt/bound,upperdir=/u2,workdir=/w2
7 1 0:42 / /srv/local rw - overlay overlay rw,lowerdir=/local,upperdir=/u3,workdir=/w3
8 3 0:33 / /mnt/old/nested rw - nfs server:/nested rw,vers=3
"""


@pytest.fixture(autouse=True)
def _table(monkeypatch: pytest.MonkeyPatch) -> None:
    """A mount table that is not this machine's."""

    def read(_pid: str = "self") -> list[MountEntry]:
        return parse(MOUNTINFO)

    monkeypatch.setattr(nfs_devices, "read", read)
    monkeypatch.setattr(holding, "read", read)
    monkeypatch.setattr(mounts, "read", read)


def view(device: tuple[int, int], *layers: bytes) -> MountView:
    return MountView(b"/srv/software", device, lambda _path: True, lambda _path: True, layers=layers)


def test_nfs_file_systems_and_their_versions() -> None:
    found = devices_of([b"/upper", b"/mnt/apps/a", b"/mnt/old/x/y", b"/mnt/bound", b"/mnt/old/nested"])
    assert found == [((0, 31), 4), ((0, 32), 3), ((0, 33), 3)]
    assert devices_of([b"/local", b"/mnt/appsx"]) == []
    assert devices_of([b"mnt/apps/a", b"../mnt/apps"]) == [], "below whichever directory that was"


def test_symlinks_are_followed_up_to_the_mount(tmp_path: Path) -> None:
    (tmp_path / "direct").symlink_to("/mnt/apps/a")
    (tmp_path / "chain").symlink_to("direct")
    (tmp_path / "loop").symlink_to("loop")
    base = os.fsencode(tmp_path)
    assert devices_of([base + b"/chain/release"]) == [((0, 31), 4)]
    assert devices_of([base + b"/loop/x"]) == []


def test_what_other_overlays_show_as_well() -> None:
    ours = Sharing.now(view((0, 40), b"/u", b"/mnt/apps"))
    assert [ours.shows(1, place) for place in (b"tools", b"tools/nuke", b"toolsx", b"", b"a")] == [
        *(True, True, False, False, False)
    ]
    assert not ours.shows(0, b"tools"), "that layer is upper"
    theirs = Sharing.now(view((0, 41), b"/u2", b"/mnt/bound"))
    assert [theirs.shows(1, place) for place in (b"", b"x")] == [False, False]
    third = Sharing.now(view((0, 50), b"/u4", b"/mnt/bound"))
    assert [third.shows(1, place) for place in (b"", b"x")] == [True, True]
