"""What stands beside a mark: read back as written, and never taken for what it is not (R9)."""

import json

import pytest

from promoterd.overlay.listing import Stamp
from promoterd.provenance import AncestorRecord, Provenance, decode, decode_ancestor, digest

STAMPS = [Stamp(1, 2, 3, (0, 40)), Stamp(4, 5, 6, (0, 41))]
LOWER = ["nfs:a", "nfs:b"]
RECORD = Provenance.of("opaque", b"opt/lib", LOWER, STAMPS, 1_700_000_000_000_000_000, 12, "../work/roll-\udcff")
ANCESTOR = AncestorRecord(0o2755, 1, 2, 3, "00ff;")


def test_it_is_read_back_as_written() -> None:
    assert decode(RECORD.encode()) == RECORD
    assert decode_ancestor(ANCESTOR.encode()) == ANCESTOR


def test_it_fits_into_an_attribute_whatever_the_path_and_the_layers() -> None:
    """ext4 keeps an inode's attributes in one block, at most 4 KiB."""
    many = Provenance.of("x" * 40, b"p" * 4000, ["l" * 4000] * 16, STAMPS * 8, 2**63, 2**40)
    assert len(many.encode()) < 2048


@pytest.mark.parametrize(
    "value",
    [
        None,
        b"",
        b"y",
        b"\xff\xfe",
        b"[]",
        b"null",
        b"{}",
        b'{"v":1}',
        RECORD.encode()[:-1],
        RECORD.encode().replace(b'"v":1', b'"v":2'),
        RECORD.encode().replace(b'"stamps":[[1,2,3]', b'"stamps":[[1,2]'),
        RECORD.encode().replace(b'"entries":12', b'"entries":"many"'),
        RECORD.encode().replace(b'"lower":[', b'"lower":7,"x":['),
    ],
)
def test_what_is_not_ours_is_no_record(value: bytes | None) -> None:
    assert decode(value) is None
    assert decode_ancestor(value) is None


def test_a_later_version_may_add_fields() -> None:
    more = {**json.loads(RECORD.encode()), "more": 1}
    assert decode(json.dumps(more).encode()) == RECORD


class TestPath:
    def test_it_is_at_the_path_that_it_was_written_for(self) -> None:
        assert RECORD.is_at(b"opt/lib")
        assert not RECORD.is_at(b"opt/lib2")
        assert not RECORD.is_at(b"opt")

    def test_paths_may_hold_any_byte(self) -> None:
        odd = Provenance.of("opaque", b"\xff\n/\x01", [], [], 0, 0)
        assert odd.encode().isascii()
        assert odd.is_at(b"\xff\n/\x01")


class TestLower:
    def test_over_the_same_layers_in_the_same_order(self) -> None:
        assert RECORD.is_over(["nfs:a", "nfs:b"])
        for other in (["nfs:b", "nfs:a"], ["nfs:a"], ["nfs:a", "nfs:b", "nfs:c"], []):
            assert not RECORD.is_over(other)

    def test_from_layers_that_are_all_still_there(self) -> None:
        assert RECORD.is_from(["nfs:b", "nfs:c", "nfs:a"])
        assert not RECORD.is_from(["nfs:a", "nfs:c"])


class TestStamps:
    def test_unchanged(self) -> None:
        assert RECORD.matches_stamps(STAMPS)

    def test_the_device_number_of_another_mount_does_not_matter(self) -> None:
        assert RECORD.matches_stamps([Stamp(1, 2, 3, (0, 99)), STAMPS[1]])

    @pytest.mark.parametrize(
        "now",
        [
            [Stamp(9, 2, 3, (0, 40)), STAMPS[1]],
            [Stamp(1, 9, 3, (0, 40)), STAMPS[1]],
            [Stamp(1, 2, 9, (0, 40)), STAMPS[1]],
            STAMPS[::-1],
            STAMPS[:1],
            [*STAMPS, STAMPS[0]],
            [],
        ],
    )
    def test_any_change_is_told(self, now: list[Stamp]) -> None:
        assert not RECORD.matches_stamps(now)


def test_digests_are_short_and_differ() -> None:
    values = {digest(b"%d" % number) for number in range(1000)}
    assert len(values) == 1000
    assert {len(value) for value in values} == {24}
    assert digest("ä\udcff") == digest("ä\udcff".encode("utf-8", "surrogateescape"))
