"""Which directories a lookup concerns: by hand, and for every kind of symlink against the kernel's own resolution."""

import os
import random
from pathlib import Path

import pytest

from promoterd.heatlist import Uses
from promoterd.recording.places import Places
from promoterd.recording.tracelog import Lookup
from promoterd.recording.walking import Entry, Walker, heat_of, look

DIRECTORY, FILE = Entry(is_directory=True), Entry()
TREE = {
    b"/m": DIRECTORY,
    b"/m/v1": DIRECTORY,
    b"/m/v1/lib": DIRECTORY,
    b"/m/v1/lib/a.so.1": FILE,
    b"/m/v1/lib/a.so": Entry(target=b"a.so.1"),
    b"/m/v1/lib/dead": Entry(target=b"../gone/x"),
    b"/m/current": Entry(target=b"v1"),
    b"/m/bin": DIRECTORY,
    b"/m/bin/tool": Entry(target=b"/m/current/lib/a.so.1"),
    b"/m/loop": Entry(target=b"loop"),
    b"/proc": DIRECTORY,
    b"/opt": Entry(target=b"m/v1"),
}
OPEN, LIST, MISS, FOUND = Uses(opens=1), Uses(listings=1), Uses(misses=1), Uses(finds=1)


def uses(path: bytes, *, follows: bool = True, opens: bool = False, misses: bool = False) -> list[tuple[bytes, Uses]]:
    return Walker(TREE.get).uses(Lookup(path, follows, opens, misses))


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (b"/m/v1/lib/a.so.1", [(b"/m/v1/lib", OPEN)]),
        (b"//m/./v1/bin/../lib/a.so.1", [(b"/m/v1", OPEN)]),  # v1/bin does not exist
        (b"/m/v1/lib/../lib/a.so.1", [(b"/m/v1/lib", OPEN)]),
        (b"/m/v1/lib/a.so", [(b"/m/v1/lib", FOUND), (b"/m/v1/lib", OPEN)]),
        (b"/m/current/lib/a.so.1", [(b"/m/v1/lib", OPEN)]),
        (b"/opt/lib/a.so.1", [(b"/m/v1/lib", OPEN)]),
        (b"/m/bin/tool", [(b"/m/bin", FOUND), (b"/m/v1/lib", OPEN)]),
        (b"/m/v1/lib", [(b"/m/v1/lib", LIST)]),
        (b"/m/v1/lib/", [(b"/m/v1/lib", LIST)]),
        (b"/m/v1/lib/..", [(b"/m/v1", LIST)]),
        (b"/m/v1/lib/.", [(b"/m/v1/lib", LIST)]),
        (b"/m/current", [(b"/m", FOUND), (b"/m/v1", LIST)]),
        (b"/", [(b"/", LIST)]),
        (b"/proc/self/fd/3", []),
        (b"/m/v1/lib/gone", [(b"/m/v1/lib", OPEN)]),
    ],
)
def test_opens(path: bytes, expected: list[tuple[bytes, Uses]]) -> None:
    assert uses(path, opens=True) == expected


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (b"/m/v1/lib/none", [(b"/m/v1/lib", MISS)]),
        (b"/m/v1/none/lib/deep", [(b"/m/v1", MISS)]),
        (b"/m/v1/lib/dead", [(b"/m/v1/lib", FOUND), (b"/m/v1", MISS)]),
        (b"/m/v1/lib/a.so.1", [(b"/m/v1/lib", MISS)]),  # it came later
    ],
)
def test_misses(path: bytes, expected: list[tuple[bytes, Uses]]) -> None:
    assert uses(path, misses=True) == expected


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (b"/m/v1/lib/a.so.1", [(b"/m/v1/lib", FOUND)]),
        (b"/m/v1/lib", [(b"/m/v1", FOUND)]),
        (b"/m/v1/lib/..", []),
        (b"/m/v1/lib/a.so.1/x", [(b"/m/v1/lib", FOUND)]),
        (b"/m/loop", [(b"/m", FOUND)]),
    ],
)
def test_finds(path: bytes, expected: list[tuple[bytes, Uses]]) -> None:
    assert uses(path) == expected


def test_links_that_are_not_followed() -> None:
    assert uses(b"/m/current", follows=False) == [(b"/m", FOUND)]
    assert uses(b"/m/v1/lib/dead", follows=False) == [(b"/m/v1/lib", FOUND)]


@pytest.mark.parametrize("seed", range(30))
def test_it_ends_where_the_kernel_ends(seed: int, tmp_path: Path) -> None:
    chance = random.Random(seed)
    for directory in ("a", "a/b", "c", "c/d"):
        (tmp_path / directory).mkdir()
        (tmp_path / directory / "f").write_text("")
    places = ["a", "a/b", "c", "c/d", "."]
    for number in range(8):
        target = os.path.relpath(tmp_path / chance.choice(places), tmp_path / "a")
        target = chance.choice([target, f"{tmp_path}/{chance.choice(places)}", f"../a/l{chance.randrange(8)}", "b/f"])
        (tmp_path / chance.choice(places) / f"l{number}").symlink_to(target)
    walker = Walker(look)
    for _ in range(60):
        parts = [chance.choice(["a", "b", "c", "d", "..", ".", *(f"l{n}" for n in range(8))]) for _ in range(4)]
        path = os.fsencode(tmp_path) + b"/" + "/".join(parts).encode() + b"/f"
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except OSError:
            continue
        ends = os.path.dirname(os.readlink(b"/proc/self/fd/%d" % descriptor))
        os.close(descriptor)
        assert walker.uses(Lookup(path, True, True, False)) == [(ends, OPEN)], path


def test_what_was_looked_at_is_not_looked_at_again() -> None:
    asked: list[bytes] = []

    def counting(path: bytes) -> Entry | None:
        asked.append(path)
        return TREE.get(path)

    walker = Walker(counting)
    for name in (b"a.so", b"x", b"y", b"a.so"):
        walker.uses(Lookup(b"/m/v1/lib/" + name, True, False, False))
    assert len(asked) == len(set(asked)) == 7


def test_only_the_wanted_mounts_count() -> None:
    places = Places([b"/m", b"/"], [b"/", b"/m", b"/m/v1", b"/opt"])
    assert places.of(b"/m") == (b"/m", b"")
    assert places.of(b"/m/bin") == (b"/m", b"bin")
    assert places.of(b"/m/v1/lib") is None, "something else is mounted there"
    assert places.of(b"/mnt") == (b"/", b"mnt")
    assert places.of(b"/opt/x") is None
    lookups = [(Lookup(b"/m/bin/none", True, False, True), 3), (Lookup(b"/m/v1/lib/none", True, False, True), 5)]
    heat = heat_of(lookups, Walker(TREE.get), places.of)
    assert (heat.runs, heat.mounts) == (1, {b"/m": {b"bin": Uses(misses=3)}})
