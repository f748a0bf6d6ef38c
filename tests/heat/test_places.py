"""What a link and a mount table say about where a file lies; real namespaces are in test_fanotify.py."""

import os
from pathlib import Path

import pytest

from promoterd.heat.places import Place, Places, place, use_of
from promoterd.overlay.mountinfo import parse

TABLE = b"""\
70 60 0:41 / /mnt/app rw,relatime - overlay overlay rw
71 60 0:41 /app /srv/app rw,relatime - overlay overlay rw
72 60 0:41 /gone//deleted /srv/gone rw,relatime - overlay overlay rw
73 60 0:42 / /mnt/other rw,relatime - overlay overlay rw
74 60 0:41 / / rw,relatime - overlay overlay rw
75 60 0:41 /app/lib/f /etc/f rw,relatime - overlay overlay rw
"""
DEVICE = (0, 41)


def at(mount_id: int, seen_from: bytes = b"/") -> Place | None:
    return place(parse(TABLE), mount_id, DEVICE, seen_from)


@pytest.mark.parametrize(
    ("mount_id", "link", "inside"),
    [
        (70, b"/mnt/app/lib/f", b"lib/f"),
        (70, b"/mnt/app", b""),
        (70, b"/mnt/application/f", None),
        (70, b"/lib/f", None),
        (71, b"/srv/app/lib/f", b"app/lib/f"),
        (71, b"/srv/app", b"app"),
        (74, b"/lib/f", b"lib/f"),
        (74, b"/", b""),
        (75, b"/etc/f", b"app/lib/f"),
    ],
)
def test_the_mount_s_own_place_is_taken_off(mount_id: int, link: bytes, inside: bytes | None) -> None:
    found = at(mount_id)
    assert found is not None
    assert found.inside(link) == inside


def test_a_chroot_is_part_of_the_place() -> None:
    found = at(71, b"/jail")
    assert found is not None
    assert found.inside(b"/jail/srv/app/lib") == b"app/lib"
    assert found.inside(b"/srv/app/lib") is None


@pytest.mark.parametrize("mount_id", [72, 73, 99], ids=["deleted root", "another device", "unknown"])
def test_no_place(mount_id: int) -> None:
    assert at(mount_id) is None


def test_files_of_other_file_systems_belong_nowhere(tmp_path: Path) -> None:
    descriptor = os.open(tmp_path, os.O_RDONLY)
    try:
        assert use_of(descriptor, os.getpid(), Places(DEVICE, -1, Place(b"/", b"")))[0] is None
    finally:
        os.close(descriptor)


def test_every_namespace_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []

    def reading(process: str) -> list[object]:
        read.append(process)
        return []

    monkeypatch.setattr("promoterd.heat.places.mountinfo.read", reading)
    places = Places(DEVICE, 70, Place(b"/mnt/app", b""))
    assert places.of(70, 1) == Place(b"/mnt/app", b"")
    assert read == []
    for mount_id in (71, 72, 71):
        assert places.of(mount_id, os.getpid()) is None
    assert read[0] == "self"
    namespaces = [os.readlink(f"/proc/{process}/ns/mnt") for process in read]
    assert len(namespaces) == len(set(namespaces))
