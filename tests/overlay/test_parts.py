"""Each directory of the lower trees holds a file that no other holds: what an overlay shows tells what it merged."""

import os
import random
import shutil
from collections.abc import Callable
from typing import Any

import pytest

from promoterd.overlay import parts
from support.overlays import MountedOverlay
from support.trees import Tree

MakeOverlay = Callable[..., MountedOverlay]


def marked(layer: int, *paths: str) -> Tree:
    """A tree of directories, each with its mark."""
    root: dict[str | bytes, Any] = {}
    for number, path in enumerate(["", *paths]):
        here = root
        for name in path.split("/") if path else []:
            here = here.setdefault(name, {})
        here[f"mark-{layer}-{number}"] = ""
    return root


LOWERS = [
    marked(0, "app", "app/lib", "app/lib/sub", "doc", "only0", "only0/x"),
    marked(1, "app", "app/lib", "app/lib/sub", "app/lib/sub/deep", "app/bin", "doc", "only1", "only1/y"),
]


def marks_shown(overlay: MountedOverlay, path: bytes) -> set[bytes]:
    return {name for name in os.listdir(overlay.at(path)) if name.startswith(b"mark-")}


def marks_merged(overlay: MountedOverlay, path: bytes) -> set[bytes]:
    roots = (overlay.upper, *overlay.layers)
    with parts.opened(roots) as layers:
        found = layers.of(path)
    names: set[bytes] = set()
    for part in found:
        directory = roots[part.layer] + b"/" + part.place
        status = os.stat(directory)
        assert (part.inode, part.device) == (status.st_ino, (os.major(status.st_dev), os.minor(status.st_dev)))
        names.update(name for name in os.listdir(directory) if part.layer and name.startswith(b"mark-"))
    return names


def directories(overlay: MountedOverlay) -> list[bytes]:
    top = overlay.mountpoint
    return [os.path.relpath(path, top).removeprefix(b".") for path, _, _ in os.walk(top)]


def assert_parts_are_what_is_shown(overlay: MountedOverlay) -> None:
    for path in directories(overlay):
        assert marks_merged(overlay, path) == marks_shown(overlay, path), path


def test_merged_directories(make_overlay: MakeOverlay) -> None:
    overlay = make_overlay(LOWERS)
    assert_parts_are_what_is_shown(overlay)
    assert marks_merged(overlay, b"app/lib") == {b"mark-0-2", b"mark-1-2"}


def test_renamed_directories_and_what_is_in_them(make_overlay: MakeOverlay) -> None:
    overlay = make_overlay(LOWERS)
    os.rename(overlay.at("app/lib"), overlay.at("app/moved"))
    os.rename(overlay.at("app"), overlay.at("doc/app"))
    os.rename(overlay.at("doc/app/moved/sub"), overlay.at("sub"))
    os.rename(overlay.at("doc"), overlay.at("app"))
    assert_parts_are_what_is_shown(overlay)
    assert marks_merged(overlay, b"sub/deep") == {b"mark-1-4"}


def test_what_an_opaque_directory_hides_is_no_part(make_overlay: MakeOverlay) -> None:
    overlay = make_overlay(LOWERS)
    shutil.rmtree(overlay.at("app/lib"))
    os.makedirs(overlay.at("app/lib/sub"))
    shutil.rmtree(overlay.at("doc"))
    assert_parts_are_what_is_shown(overlay)
    assert marks_merged(overlay, b"app/lib/sub") == set()


def test_a_file_above_hides_a_directory(make_overlay: MakeOverlay) -> None:
    overlay = make_overlay([{"a": "a file"}, {"a": {"mark-1-0": ""}}])
    with parts.opened((overlay.upper, *overlay.layers)) as layers:
        assert layers.of(b"a") == []
        assert layers.of(b"nothing") == []


@pytest.mark.parametrize("seed", range(6))
def test_random_changes(make_overlay: MakeOverlay, seed: int) -> None:
    chance = random.Random(seed)
    overlay = make_overlay(LOWERS)
    for number in range(40):
        found = [path for path in directories(overlay) if path]
        chosen, into = chance.choice(found), chance.choice([b"", *found])
        match chance.randrange(4):
            case 0 | 1 if into != chosen and not into.startswith(chosen + b"/"):
                os.rename(overlay.at(chosen), overlay.at(into + b"/n%d" % number))
            case 2 if len(found) > 4:
                shutil.rmtree(overlay.at(chosen))
                if chance.random() < 0.5:
                    os.mkdir(overlay.at(chosen))
            case _:
                os.mkdir(overlay.at(into + b"/m%d" % number))
    overlay.remount()
    assert_parts_are_what_is_shown(overlay)
