"""Judging what was read: no file system is touched here."""

import json
import stat
from dataclasses import replace

import pytest

from promoterd.fsck.judging import Copy, Facts, HardLinks, Shadow, content_problems, decode_copy, stub_problems

FILE = Facts(stat.S_IFREG | 0o644, 0, 0, 10, 1_000_000_001, 5, 77, 1, 0)
LINK = replace(FILE, mode=stat.S_IFLNK | 0o777)
DEVICE = replace(FILE, mode=stat.S_IFCHR | 0o600, rdev=0x105)
STUB = Shadow(FILE, metacopy=True, redirect=b"/d/f")
RECORD = {"v": 1, "ctime": 5, "mtime": 1_000_000_001, "inode": 77, "sha256": "ab"}


@pytest.mark.parametrize(
    ("lower", "changes", "expected"),
    [
        (FILE, {}, []),
        (FILE, {"ctime_ns": 6, "inode": 1, "nlink": 4}, []),
        (FILE, {"size": 9}, ["size"]),
        (FILE, {"mtime_ns": 1_000_000_000}, ["time"]),
        (FILE, {"gid": 1, "mode": stat.S_IFREG | 0o4644}, ["owner", "mode"]),
        (FILE, {"mode": stat.S_IFIFO | 0o600, "size": 0, "uid": 9}, ["type"]),
        (LINK, {"mode": stat.S_IFLNK | 0o755}, []),
        (DEVICE, {"rdev": 0x106}, ["device"]),
        (FILE, {"rdev": 9}, []),
    ],
)
def test_what_differs(lower: Facts, changes: dict[str, int], expected: list[str]) -> None:
    assert [kind.value for kind, _ in content_problems(lower, replace(lower, **changes))] == expected


def test_what_is_said_names_both_sides() -> None:
    said = dict(content_problems(FILE, replace(FILE, mode=stat.S_IFREG | 0o4600, size=11, mtime_ns=-1)))
    assert list(said.values()) == [
        "mode 4600, the server has 0644",
        "mtime -1.999999999, the server has 1.000000001",
        "size 11, the server has 10",
    ]
    assert dict(content_problems(LINK, FILE)) == {"type": "a file, the server has a symlink"}


@pytest.mark.parametrize(
    ("shadow", "expected"),
    [
        (STUB, []),
        (replace(STUB, redirect=b"/d/g"), ["redirect"]),
        (replace(STUB, redirect=b"d/f"), ["redirect"]),
        (replace(STUB, redirect=None), ["redirect"]),
        (replace(STUB, metacopy=False), ["no-data"]),
        (Shadow(FILE, copy=json.dumps(RECORD).encode()), []),
        (Shadow(FILE, copy=b"nonsense"), ["copy"]),
        (Shadow(FILE, copy=json.dumps({**RECORD, "v": 2}).encode()), ["copy"]),
        (Shadow(FILE, copy=json.dumps({**RECORD, "ctime": 6}).encode()), ["copy"]),
        (Shadow(FILE, copy=json.dumps({**RECORD, "inode": 6}).encode()), ["copy"]),
        (replace(STUB, copy=json.dumps(RECORD).encode()), ["copy"]),
    ],
)
def test_where_the_data_is(shadow: Shadow, expected: list[str]) -> None:
    assert [kind.value for kind, _ in stub_problems(FILE, shadow, b"d/f")] == expected


def test_the_record_of_a_copy() -> None:
    assert decode_copy(json.dumps(RECORD).encode()) == Copy(5, 1_000_000_001, 77, "ab")
    for value in (b"", b"[]", b"null", b'{"v":1}', b"\xff"):
        assert decode_copy(value) is None


class TestHardLinks:
    def linked(self, inode: int, nlink: int = 2) -> Facts:
        return replace(FILE, inode=inode, nlink=nlink)

    def test_two_names_of_one_file(self) -> None:
        links = HardLinks(b"d")
        shadow = Shadow(self.linked(1), metacopy=True, redirect=b"/d/a")
        assert [*links.add("a", 0, self.linked(5), shadow), *links.add("b", 0, self.linked(5), shadow)] == []
        assert list(links.redirect_problems()) == []

    def test_a_redirect_to_a_name_that_comes_later_is_good(self) -> None:
        links = HardLinks(b"d")
        shadow = Shadow(self.linked(1), metacopy=True, redirect=b"/d/b")
        assert [*links.add("a", 0, self.linked(5), shadow), *links.add("b", 0, self.linked(5), shadow)] == []
        assert list(links.redirect_problems()) == []

    def test_a_redirect_to_another_file(self) -> None:
        links = HardLinks(b"d")
        shadow = Shadow(self.linked(1), metacopy=True, redirect=b"/d/c")
        assert [*links.add("a", 0, self.linked(5), shadow), *links.add("b", 0, self.linked(5), shadow)] == []
        assert [(name, kind.value) for name, (kind, _) in links.redirect_problems()] == [
            ("a", "redirect"),
            ("b", "redirect"),
        ]

    def test_names_that_are_no_links_any_more(self) -> None:
        links = HardLinks(b"d")
        first, second = (Shadow(self.linked(inode, 1), metacopy=True, redirect=b"/d/a") for inode in (1, 2))
        assert list(links.add("a", 0, self.linked(5), first)) == []
        assert [kind.value for kind, _ in links.add("b", 0, self.linked(5), second)] == ["hard-link"]

    def test_links_that_the_server_does_not_have(self) -> None:
        links = HardLinks(b"d")
        shadow = Shadow(self.linked(1), metacopy=True, redirect=b"/d/a")
        assert list(links.add("a", 0, self.linked(5, 1), shadow)) == []
        assert [kind.value for kind, _ in links.add("b", 0, self.linked(6, 1), shadow)] == ["hard-link"]

    def test_the_same_inode_of_two_lower_layers_is_two_files(self) -> None:
        links = HardLinks(b"d")
        first, second = (Shadow(self.linked(inode, 1), metacopy=True, redirect=b"/d/a") for inode in (1, 2))
        assert list(links.add("a", 0, self.linked(5), first)) == []
        assert list(links.add("b", 1, self.linked(5), second)) == []
