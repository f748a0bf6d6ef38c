import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.contents import STAMP
from lab.manifest import Manifest
from lab.share import FULL, SHORT, build
from promoterd.policy import MountPolicy

pytestmark = pytest.mark.needs("cc")

_BUILD = "import sys; from lab.share import FULL, build; build(sys.argv[1], FULL)"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    directory = str(tmp_path_factory.mktemp("share"))
    yield directory
    shutil.rmtree(directory)


@pytest.fixture(scope="module")
def share(place: str) -> Manifest:
    return build(place, FULL)


def entries(directory: str) -> Iterator[os.DirEntry[str]]:
    with os.scandir(directory) as found:
        for entry in found:
            yield entry
            if entry.is_dir(follow_symlinks=False):
                yield from entries(entry.path)


def content(path: str) -> bytes | str:
    if os.path.islink(path):
        return os.readlink(path)
    with open(path, "rb") as file:
        return file.read()


def snapshot(place: str) -> dict[str, tuple[int, int, bytes | str]]:
    """All that is to be the same each time."""
    return {
        os.path.relpath(entry.path, place): (
            entry.stat(follow_symlinks=False).st_mode,
            entry.stat(follow_symlinks=False).st_mtime_ns,
            "" if entry.is_dir(follow_symlinks=False) else content(entry.path),
        )
        for entry in entries(place)
    }


def test_two_hundred_search_directories_hold_ten_thousand_entries(place: str, share: Manifest) -> None:
    assert [len(path) for path in (share.library_path, share.python_path, share.plugin_path)] == [80, 80, 40]
    held = [sum(1 for _ in entries(f"{place}/{path}")) for path in share.search_path]
    assert sum(held) == share.entries == 10_000
    assert min(held) < 25
    assert max(held) > 100


def test_no_search_directory_is_inside_another(share: Manifest) -> None:
    paths = share.search_path
    assert len(set(paths)) == 200
    assert not [inner for outer in paths for inner in paths if inner.startswith(f"{outer}/")]


def test_a_launch_misses_eleven_times_what_it_finds(share: Manifest) -> None:
    assert 11_400 <= share.missing < 12_000
    assert share.found >= 1_000
    assert 10 < share.missing / share.found < 12


def test_a_third_of_the_search_directories_is_only_missed(share: Manifest) -> None:
    assert len(share.only_missed) == 66
    assert set(share.only_missed) < set(share.library_path + share.plugin_path)


def test_short_is_a_sixth(tmp_path: Path) -> None:
    short = build(str(tmp_path), SHORT)
    assert len(short.search_path) == 33
    assert sum(sum(1 for _ in entries(f"{tmp_path}/{path}")) for path in short.search_path) == short.entries == 1_667
    assert 11_400 / 7 < short.missing < 11_400 / 5


def test_absent_search_directories_are_missing_from_growing_ones(place: str, share: Manifest) -> None:
    policy = policy_of(share)
    assert len(set(share.absent_path)) == 200
    for path in share.absent_path:
        assert not os.path.lexists(f"{place}/{path}")
        parent = os.path.dirname(path)
        while not os.path.isdir(f"{place}/{parent}"):
            parent = os.path.dirname(parent)
        assert policy.is_growing(parent.encode())


def test_releases_may_be_promoted_and_what_is_above_them_grows(place: str, share: Manifest) -> None:
    policy = policy_of(share)
    for path in (*share.search_path, share.workload, "apps/tool/1.0", "apps/private/1.0/secret"):
        assert policy.may_promote(path.encode())
        assert os.path.isdir(f"{place}/{path}")
        release = path.encode().split(b"/")[: 2 if path == share.workload else 3]
        assert all(policy.is_growing(b"/".join(release[:depth])) for depth in range(len(release)))


def policy_of(share: Manifest) -> MountPolicy:
    rules = [{"path": path, "growing": True} for path in share.growing]
    rules += [{"path": path} for path in share.releases]
    return MountPolicy.model_validate({"mountpoint": "/srv/view", "rules": rules})


def test_other_versions_stand_beside_those_that_are_used(place: str, share: Manifest) -> None:
    used = {path.split("/")[1]: path.split("/")[2] for path in share.library_path if path.startswith("packages/")}
    assert len(used) == 70
    others = {name: set(os.listdir(f"{place}/packages/{name}")) - {version} for name, version in used.items()}
    assert sum(len(versions) for versions in others.values()) == 69


def test_everything_is_old(place: str, share: Manifest) -> None:
    del share
    assert os.stat(place).st_mtime_ns == STAMP * 10**9
    assert {entry.stat(follow_symlinks=False).st_mtime_ns for entry in entries(place)} == {STAMP * 10**9}


def test_nothing_has_two_names(place: str, share: Manifest) -> None:
    del share
    files = [entry for entry in entries(place) if not entry.is_dir(follow_symlinks=False)]
    assert {entry.stat(follow_symlinks=False).st_nlink for entry in files} == {1}


def test_most_of_a_library_directory_are_symlinks_that_lead_to_shared_objects_beside_them(
    place: str, share: Manifest
) -> None:
    for path in share.library_path:
        names = [name for name in os.listdir(f"{place}/{path}") if ".so" in name]
        links = [name for name in names if os.path.islink(f"{place}/{path}/{name}")]
        assert len(links) * 3 == len(names) * 2
        for name in links:
            real = os.path.realpath(f"{place}/{path}/{name}")
            assert os.path.dirname(real) == os.path.realpath(f"{place}/{path}")
            assert os.path.isfile(real)
            assert real.endswith(".so") is False


def test_every_shared_object_can_be_loaded_and_knows_its_name(place: str, share: Manifest) -> None:
    code = (
        "import ctypes, sys\n"
        "for path in sys.stdin.read().split():\n"
        "    library = ctypes.CDLL(path)\n"
        "    library.share_name.restype = ctypes.c_char_p\n"
        "    assert library.share_name().decode() == path.rpartition('/')[2].partition('.so')[0], path\n"
    )
    paths = [f"{place}/{path}/{name}" for path in share.library_path[:20] for name in os.listdir(f"{place}/{path}")]
    real = [path for path in paths if ".so." in path and not os.path.islink(path)]
    assert len(real) > 100
    subprocess.run([sys.executable, "-c", code], input="\n".join(real), text=True, check=True)


def test_python_directories_hold_packages_and_distributions(place: str, share: Manifest) -> None:
    names = [name for path in share.python_path for name in os.listdir(f"{place}/{path}")]
    assert names.count("__pycache__") == 80
    assert sum(name.endswith(".dist-info") for name in names) == 80
    packages = [
        entry for path in share.python_path for entry in entries(f"{place}/{path}") if entry.name == "__init__.py"
    ]
    assert len(packages) > 150


def test_there_are_releases_for_tests_to_work_on(place: str, share: Manifest) -> None:
    del share
    for release, kinds in (("tool/1.0", ("bin", "lib", "python")), ("other/1.0", ("lib",)), ("other/1.1", ("lib",))):
        assert sorted(os.listdir(f"{place}/apps/{release}")) == list(kinds)
        for kind in kinds:
            assert 20 <= sum(1 for _ in entries(f"{place}/apps/{release}/{kind}")) <= 30


def test_the_private_release_has_a_directory_that_only_its_owner_reads(place: str, share: Manifest) -> None:
    del share
    private = f"{place}/apps/private/1.0"
    assert sorted(os.listdir(private)) == ["lib", "secret"]
    assert stat.S_IMODE(os.stat(f"{private}/secret").st_mode) == 0o700
    assert {stat.S_IMODE(entry.stat().st_mode) for entry in entries(f"{private}/secret")} == {0o600}
    assert stat.S_IMODE(os.stat(f"{private}/lib").st_mode) == 0o755


def test_the_workload_has_five_hundred_files_of_a_page(place: str, share: Manifest) -> None:
    found = {entry.name: entry for entry in os.scandir(f"{place}/{share.workload}")}
    files = [f"f{number:04}" for number in range(500)]
    assert set(found) == {*files, "s0", "s1", "s2", "s3", "s4", "first", "last"}
    assert {found[name].stat().st_size for name in files} == {4096}
    assert all(len(os.listdir(found[f"s{number}"])) == 4 for number in range(5))
    assert found["first"].is_symlink()
    assert found["last"].is_symlink()


def test_it_is_small(place: str, share: Manifest) -> None:
    del share
    assert sum(entry.stat(follow_symlinks=False).st_blocks * 512 for entry in entries(place)) < 100_000_000


def test_another_process_builds_the_same(place: str, share: Manifest, tmp_path: Path) -> None:
    del share
    tests = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    environment = {**os.environ, "PYTHONPATH": tests, "PYTHONHASHSEED": "7"}
    subprocess.run([sys.executable, "-c", _BUILD, str(tmp_path)], env=environment, check=True)
    assert snapshot(str(tmp_path)) == snapshot(place)


@pytest.mark.needs("root")
def test_a_plain_user_builds_the_same(place: str, share: Manifest) -> None:
    mine = tempfile.mkdtemp()
    try:
        os.chown(mine, 65534, 65534)
        os.seteuid(65534)
        try:
            assert build(mine, FULL) == share
        finally:
            os.seteuid(0)
        assert {entry.stat(follow_symlinks=False).st_uid for entry in entries(mine)} == {65534}
        assert snapshot(mine) == snapshot(place)
    finally:
        shutil.rmtree(mine)


def test_a_manifest_survives_json(share: Manifest, tmp_path: Path) -> None:
    path = str(tmp_path / "manifest.json")
    share.dump(path)
    assert Manifest.load(path) == share
    fields = json.loads(Path(path).read_text())
    del fields["plugins"]
    Path(path).write_text(json.dumps(fields))
    with pytest.raises(TypeError, match="plugins"):
        Manifest.load(path)
