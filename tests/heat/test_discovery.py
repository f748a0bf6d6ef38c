import errno
import os
import random
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from promoterd.heat.discovery import Walk
from promoterd.overlay import beneath, syscalls
from promoterd.paths import is_below
from support.overlays import MountedOverlay
from support.trees import ODD_NAMES, Device, Directory, Fifo, Symlink, Tree, build

OPAQUE = {"trusted.overlay.opaque": b"y"}
TREE: Tree = {
    "app": {"lib": {"a": "1", "sub": {"deep": {}}}, "doc": {}, "link": Symlink("lib"), "fifo": Fifo()},
    "etc": {},
}


def anything(_path: bytes) -> bool:
    return True


def layer(base: Path, number: int, tree: Tree) -> bytes:
    path = bytes(base) + b"/layer%d" % number
    build(path, tree)
    return path


def walk_of(*layers: bytes, limit: int = 100_000, batch: int = 256) -> Walk:
    return Walk(layers, anything, anything, max_directories=limit, batch=batch)


def found_by(walk: Walk, start: bytes = b"") -> list[bytes]:
    return [path for batch in walk.batches(start) for path in batch]


def test_directories_are_found_breadth_first_and_nothing_else_is(tmp_path: Path) -> None:
    walk = walk_of(layer(tmp_path, 0, TREE))
    assert found_by(walk) == [b"", b"app", b"etc", b"app/doc", b"app/lib", b"app/lib/sub", b"app/lib/sub/deep"]
    assert (walk.listed, walk.truncated) == (7, False)


def test_a_walk_can_start_anywhere(tmp_path: Path) -> None:
    walk = walk_of(layer(tmp_path, 0, TREE))
    assert found_by(walk, b"app/lib") == [b"app/lib", b"app/lib/sub", b"app/lib/sub/deep"]


def test_odd_names_are_found(tmp_path: Path) -> None:
    walk = walk_of(layer(tmp_path, 0, {name: {b"in\xff": {}} for name in ODD_NAMES}))
    expected = {b"", *ODD_NAMES, *(name + b"/in\xff" for name in ODD_NAMES)}
    assert set(found_by(walk)) == expected


def test_policy_prunes_the_walk_and_chooses_what_is_found(tmp_path: Path) -> None:
    root = layer(tmp_path, 0, {"app": {"v1": {"lib": {}, "doc": {"x": {}}}}, "never": {"x": {"y": {}}}})
    below: list[bytes] = []

    def may_promote_below(path: bytes) -> bool:
        below.append(path)
        return not is_below(path, b"never") and not is_below(path, b"app/v1/doc")

    walk = Walk([root], lambda path: path.endswith(b"lib"), may_promote_below, max_directories=1000)
    assert found_by(walk) == [b"app/v1/lib"]
    assert walk.listed == 4
    assert not any(path.startswith((b"never/", b"app/v1/doc/")) for path in below)
    assert found_by(walk, b"never") == []


def test_batches_are_bounded_and_each_stands_for_so_many_directories(tmp_path: Path) -> None:
    walk = walk_of(layer(tmp_path, 0, {f"{number:02}": {"x": {}} for number in range(20)}), batch=8)
    listed = []
    sizes = []
    for batch in walk.batches():
        listed.append(walk.listed)
        sizes.append(len(batch))
    assert sizes == [1, 8, 8, 8, 8, 8]
    assert listed == [0, 1, 9, 17, 25, 33]
    assert walk.listed == 41


def test_a_batch_with_nothing_in_it_is_given_all_the_same(tmp_path: Path) -> None:
    root = layer(tmp_path, 0, {"a": {"b": {"lib": {}}}})
    walk = Walk([root], lambda path: path.endswith(b"lib"), anything, max_directories=10)
    assert list(walk.batches()) == [[], [], [], [b"a/b/lib"]]


def test_a_directory_is_given_before_it_is_read(tmp_path: Path) -> None:
    root = layer(tmp_path, 0, {"app": {}})
    found = []
    for batch in walk_of(root).batches():
        found += batch
        if b"app" in batch:  # whoever arms app now hears of what is made later, and this was made before
            os.mkdir(root + b"/app/new")
    assert found == [b"", b"app", b"app/new"]


def test_the_walk_ends_at_its_limit_and_says_so(tmp_path: Path) -> None:
    walk = walk_of(layer(tmp_path, 0, {f"{number:02}": {} for number in range(50)}), limit=20, batch=8)
    assert len(found_by(walk)) == 20
    assert (walk.listed, walk.truncated) == (20, True)


def test_directories_that_vanish_or_turn_into_something_else_meanwhile_are_left_out(tmp_path: Path) -> None:
    root = layer(tmp_path, 0, {"a": {"x": {}}, "b": {"x": {}}, "c": {"x": {}}, "d": {"x": {}}})
    os.mkdir(tmp_path / "outside")
    os.mkdir(tmp_path / "outside/secret")
    found = []
    walk = walk_of(root)
    for batch in walk.batches():
        found += batch
        if b"a" in batch:
            os.rename(root + b"/a", bytes(tmp_path) + b"/gone")
            os.rename(root + b"/b", bytes(tmp_path) + b"/moved")
            os.symlink(tmp_path / "outside", root + b"/b")
            os.rename(root + b"/c", bytes(tmp_path) + b"/other")
            with open(root + b"/c", "w"):
                pass
    assert found == [b"", b"a", b"b", b"c", b"d", b"d/x"]


def test_a_tree_deeper_than_python_recurses_is_walked(tmp_path: Path) -> None:
    root = layer(tmp_path, 0, {})
    descriptor = os.open(root, os.O_RDONLY)
    for _ in range(2500):
        os.mkdir("d", dir_fd=descriptor)
        deeper = os.open("d", os.O_RDONLY, dir_fd=descriptor)
        os.close(descriptor)
        descriptor = deeper
    os.close(descriptor)
    walk = walk_of(root)
    try:
        found = found_by(walk)
    finally:
        subprocess.run(["rm", "-rf", root], check=True)  # deeper than shutil.rmtree recurses
    # longer than PATH_MAX, which one open(2) takes: applications get there in steps, and so do we
    assert (len(found[-1]), len(found)) == (4999, 2501)
    assert walk.listed == 2501


def test_nothing_stays_open_between_batches(tmp_path: Path) -> None:
    before = os.listdir("/proc/self/fd")
    batches = walk_of(layer(tmp_path, 0, TREE)).batches()
    for _ in range(3):
        next(batches)
        assert os.listdir("/proc/self/fd") == before


def test_a_layer_that_is_gone_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        found_by(walk_of(bytes(tmp_path) + b"/none"))


@pytest.mark.needs("root")
def test_other_file_systems_are_not_entered(tmp_path: Path) -> None:
    root = layer(tmp_path, 0, TREE)
    syscalls.mount(b"tmpfs", root + b"/app/lib", b"tmpfs")
    try:
        os.mkdir(root + b"/app/lib/inside")
        walk = walk_of(root)
        found = found_by(walk)
    finally:
        syscalls.umount(root + b"/app/lib")
    assert found == [b"", b"app", b"etc", b"app/doc", b"app/lib"]


@pytest.mark.parametrize(
    ("code", "fatal"), [(errno.ESTALE, False), (errno.EACCES, False), (errno.EIO, True), (errno.ETIMEDOUT, True)]
)
def test_errors_about_one_directory_are_counted_and_those_of_the_server_raised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, fatal: bool
) -> None:
    walk = walk_of(layer(tmp_path, 0, TREE))
    open_beneath = beneath.open_beneath

    def fail(root: int, path: bytes, flags: int = beneath.PATH_DIRECTORY) -> int:
        if path == b"app/lib":
            raise OSError(code, os.strerror(code))
        return open_beneath(root, path, flags)

    monkeypatch.setattr(beneath, "open_beneath", fail)
    if fatal:
        with pytest.raises(OSError, match=os.strerror(code)):
            found_by(walk)
    else:
        assert found_by(walk) == [b"", b"app", b"etc", b"app/doc", b"app/lib"]


# several layers: what the overlay shows is what is found


def directories_of(mountpoint: bytes) -> set[bytes]:
    found = set()
    for directory, _, _ in os.walk(mountpoint):
        found.add(directory[len(mountpoint) + 1 :])
    return found


LAYERS: Sequence[tuple[Tree, Sequence[Tree]]] = [
    ({}, [{"a": {"x": {}}}, {"a": {"y": {}}, "b": {}}]),
    ({"a": Device(major=0, minor=0)}, [{"a": {"x": {}}, "b": {}}]),
    ({"a": "a file"}, [{"a": {"x": {}}}]),
    ({"a": Symlink("b")}, [{"a": {"x": {}}, "b": {"y": {}}}]),
    ({"a": Directory({"new": {}}, xattrs=OPAQUE)}, [{"a": {"old": {"x": {}}, "new": {"hidden": {}}}}]),
    ({}, [{"a": "a file"}, {"a": {"x": {}}}]),
    ({}, [{"a": {"b": Device(major=0, minor=0)}}, {"a": {"b": {"x": {}}, "c": {}}}]),
    ({}, [{"a": Directory({"b": {}}, xattrs=OPAQUE)}, {"a": {"b": {"hidden": {}}, "c": {}}}, {"a": {"d": {}}}]),
    ({"a": {"b": {}}}, [{"x": {}}, {"a": {"b": {"c": {}}}}, {"a": {"b": {"c": {"d": {}}}}}]),
    ({"a": {}}, [{"a": "a file in between"}, {"a": {"x": {}}}]),
]


@pytest.mark.parametrize(("upper", "lowers"), LAYERS)
def test_what_is_found_is_what_the_overlay_shows(
    make_overlay: Callable[..., MountedOverlay], upper: Tree, lowers: Sequence[Tree]
) -> None:
    overlay = make_overlay(lowers, mount=False)
    build(overlay.upper, upper)
    overlay.mount()
    found = found_by(walk_of(overlay.upper, *overlay.layers))
    assert sorted(found) == sorted(directories_of(overlay.mountpoint))
    for start in found:
        below = found_by(walk_of(overlay.upper, *overlay.layers), start)
        assert sorted(below) == sorted(path for path in found if is_below(path, start))


@pytest.mark.parametrize("seed", range(4))
def test_it_agrees_with_the_overlay_after_random_use(make_overlay: Callable[..., MountedOverlay], seed: int) -> None:
    rng = random.Random(seed)
    names = ["a", "b", "c"]

    def tree(depth: int) -> Tree:
        return {name: tree(depth - 1) if rng.random() < 0.7 else "file" for name in names} if depth else {}

    overlay = make_overlay([tree(3), tree(3)])
    for _ in range(60):
        path = overlay.at("/".join(rng.choices(names, k=rng.randint(1, 3))))
        try:
            match rng.randrange(4):
                case 0:
                    os.mkdir(path)
                case 1:
                    os.rmdir(path)
                case 2:
                    os.unlink(path)
                case 3:
                    os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))
        except OSError:
            continue
    overlay.cool()
    found = found_by(walk_of(overlay.upper, *overlay.layers))
    assert sorted(found) == sorted(directories_of(overlay.mountpoint))


def test_the_overlay_is_not_touched(make_overlay: Callable[..., MountedOverlay]) -> None:
    overlay = make_overlay(TREE, counting=True)
    overlay.umount()
    assert b"app/lib/sub/deep" in found_by(walk_of(overlay.upper, *overlay.layers))
    overlay.mount()


def test_what_is_in_a_renamed_directory(make_overlay: Callable[..., MountedOverlay]) -> None:
    overlay = make_overlay(TREE)
    os.rename(overlay.at("app/lib"), overlay.at("app/moved"))
    os.rename(overlay.at("app"), overlay.at("etc/app"))
    walk = walk_of(overlay.upper, *overlay.layers)
    assert sorted(found_by(walk)) == [
        *(b"", b"etc", b"etc/app", b"etc/app/doc", b"etc/app/moved", b"etc/app/moved/sub", b"etc/app/moved/sub/deep")
    ]
    assert b"etc/app/moved/sub" in found_by(walk, b"etc/app/moved")
