"""Damage at random, from a seed: all of it is found, and nothing else; and then it is put right."""

import os
import random
from collections.abc import Callable, Iterator

import pytest

from support import overlays
from support.checking import assert_shows_the_server, checked, errors, left
from support.handmade import METACOPY, REDIRECT, Layer, start_anew
from support.overlays import MountedOverlay
from support.trees import OLD, Symlink, Tree, files

SEEDS = range(4)
DIRECTORIES = ("a", "a/b", "a/b/c", "d")
TREE: Tree = {
    "a": {**files(12), "l": Symlink("x"), "b": {**files(9), "l": Symlink("y"), "c": files(7), "not": files(3)}},
    "d": {**files(15), **{f"l{number}": Symlink(f"{number}") for number in range(4)}},
}
Damage = Callable[[MountedOverlay, str, random.Random], tuple[str, str]]


def lose(mounted: MountedOverlay, path: str, _: random.Random) -> tuple[str, str]:
    os.unlink(mounted.in_files(path))
    return "missing", path


def cut(mounted: MountedOverlay, path: str, chance: random.Random) -> tuple[str, str]:
    os.truncate(mounted.in_files(path), chance.randrange(100, 1 << 40))
    os.utime(mounted.in_files(path), ns=(OLD, OLD))
    return "size", path


def age(mounted: MountedOverlay, path: str, chance: random.Random) -> tuple[str, str]:
    os.utime(mounted.in_files(path), ns=(OLD, chance.randrange(OLD)))
    return "time", path


def give_away(mounted: MountedOverlay, path: str, chance: random.Random) -> tuple[str, str]:
    os.chown(mounted.in_files(path), chance.randrange(1, 1000), 0)
    return "owner", path


def open_up(mounted: MountedOverlay, path: str, chance: random.Random) -> tuple[str, str]:
    os.chmod(mounted.in_files(path), chance.randrange(0o600))
    return "mode", path


def mislead(mounted: MountedOverlay, path: str, chance: random.Random) -> tuple[str, str]:
    redirect = chance.choice([b"/a", b"/nowhere", b"/a/../a/f0000", b"f0000", os.fsencode(path), b"/d/f9999"])
    os.setxattr(mounted.in_files(path), REDIRECT, redirect)
    return "redirect", path


def empty(mounted: MountedOverlay, path: str, _: random.Random) -> tuple[str, str]:
    os.removexattr(mounted.in_files(path), METACOPY)
    return "no-data", path


def add(mounted: MountedOverlay, path: str, chance: random.Random) -> tuple[str, str]:
    extra = f"{path}-{chance.randrange(1 << 32)}"
    half = chance.choice([mounted.in_files, mounted.in_rest])
    with open(half(extra), "xb"):
        return "extra", extra


def turn(mounted: MountedOverlay, path: str, _: random.Random) -> tuple[str, str]:
    os.unlink(mounted.in_files(path))
    os.mkfifo(mounted.in_rest(path))
    return "type", path


DAMAGES: tuple[Damage, ...] = (lose, cut, age, give_away, open_up, mislead, empty, add, turn)


@pytest.fixture(scope="module")
def standing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MountedOverlay]:
    made = overlays.make_overlay(bytes(tmp_path_factory.mktemp("layer")), TREE, counting=True, layered=True)
    try:
        yield made
    finally:
        made.close()


@pytest.mark.needs("root", "overlay", "fuse")
@pytest.mark.parametrize("seed", SEEDS)
def test_all_of_it_is_found(standing: MountedOverlay, seed: int) -> None:
    standing.umount()
    start_anew(standing, TREE)
    standing.mount()
    Layer(standing).complete(*DIRECTORIES)
    chance = random.Random(seed)
    paths = [
        f"{directory}/{name}"
        for directory in DIRECTORIES
        for name in sorted(os.listdir(os.fsdecode(standing.on_server(directory))))
        if name.startswith("f")
    ]
    expected = set()
    for path in chance.sample(paths, chance.randrange(1, len(paths))):
        kind, where = chance.choice(DAMAGES)(standing, path, chance)
        expected.add((kind, f"/{where}"))
    for directory in DIRECTORIES:
        Layer(standing).dress_ancestors(directory)
    assert errors(checked(standing)) == expected
    offline = seed % 2 == 1
    report = checked(standing, offline=offline, repair=True)
    assert (report.exit_code, errors(report), left(report)) == (1, expected, set())
    assert checked(standing).exit_code == 0
    assert_shows_the_server(standing)
