"""Heat lists: what is written is read back, merging is a sum, and what is wrong is named."""

import itertools
import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import yaml

from promoterd.errors import HeatListError
from promoterd.heatlist import HeatList, Uses, names, read_list, write_list
from promoterd.heatlist import text as texts
from promoterd.heatlist.files import check_writable, lists_of
from promoterd.heatlist.model import KINDS
from promoterd.heatlist.text import dumps, loads
from support.trees import ODD_NAMES

SOFTWARE = b"/srv/software"
HAND_MADE = """
promoterd-heat: 1
mounts:
- mountpoint: /srv/software/
  directories:
  - path: apps/nuke/
    miss: 7
  - {path: /apps//./nuke, miss: 1, list: 2}
  - {path: 2024.10}
  - {path: "caf%E9 100%25"}
"""


def random_list(seed: int) -> HeatList:
    """Of all that can be in one, over a small choice of directories, so that lists have some in common."""
    chance = random.Random(seed)
    heat = HeatList(runs=chance.randrange(4))
    paths = [b"", b"apps/nuke/15.1/lib", b"100%", b"%41", b"'\"\\#: {}[]", *ODD_NAMES]
    paths += [bytes(chance.randrange(1, 256) for _ in range(9)).strip(b"/").replace(b"//", b"_") for _ in range(5)]
    for mountpoint in chance.sample([SOFTWARE, b"/mnt/\xff%", b"/"], chance.randrange(4)):
        heat.mounts[mountpoint] = {}
        for path in chance.sample(paths, chance.randrange(len(paths))):
            if path.split(b"/") == [part for part in path.split(b"/") if part not in (b"", b".", b"..")] or not path:
                heat.add(mountpoint, path, Uses(*(chance.choice([0, 0, 1, 5, 10**12]) for _ in KINDS)))
    return heat


def merged(*lists: HeatList) -> HeatList:
    total = HeatList()
    for heat in lists:
        total.merge(heat)
    return total


@pytest.mark.parametrize("seed", range(60))
def test_what_is_written_is_read_back_by_both_readers(seed: int) -> None:
    heat = random_list(seed)
    text = dumps(heat)
    quickly, slowly = HeatList(), HeatList()
    assert texts._read_as_written(text, quickly), "the quick reader knows all that is written"
    texts._read_as_yaml(text, "list", slowly)
    assert quickly == slowly == heat
    assert dumps(quickly) == text


@pytest.mark.parametrize("seed", range(20))
def test_lists_are_plain_yaml_for_other_programs(seed: int) -> None:
    heat = random_list(seed)
    text = dumps(heat)
    data = yaml.safe_load(text)
    assert data["runs"] == heat.runs
    assert sum(len(mount["directories"]) for mount in data["mounts"]) == len(heat)
    assert all(line.isprintable() for line in text.splitlines())
    assert loads(json.dumps(data)) == heat, "and what they write as JSON is a list as well"


@pytest.mark.parametrize("seed", range(20))
def test_merging_is_associative_and_commutative(seed: int) -> None:
    lists = [random_list(seed * 3 + number) for number in range(3)]
    one, two, three = lists
    assert merged(merged(one, two), three) == merged(one, merged(two, three))
    texts_of_all = {dumps(merged(*order)) for order in itertools.permutations(lists)}
    assert len(texts_of_all) == 1
    assert loads("".join(dumps(heat) for heat in lists)) == merged(*lists), "cat merges, too"
    total = merged(*lists)
    assert total.runs == sum(heat.runs for heat in lists)
    for mountpoint, directories in total.mounts.items():
        for path, uses in directories.items():
            found = [heat.mounts.get(mountpoint, {}).get(path, Uses()) for heat in lists]
            assert uses == tuple(map(sum, zip(*found, strict=True)))


def test_merging_leaves_the_merged_lists_alone() -> None:
    one, two = random_list(1), random_list(2)
    before = dumps(two)
    total = merged(one, two)
    total.add(SOFTWARE, b"new", Uses(1))
    assert dumps(two) == before


def test_a_list_made_by_hand() -> None:
    heat = loads(HAND_MADE)
    assert heat.runs == 1
    assert heat.mounts == {
        SOFTWARE: {
            b"apps/nuke": Uses(listings=2, misses=8),
            b"2024.10": Uses(),
            b"caf\xe9 100%": Uses(),
        }
    }


def test_the_text_of_a_list() -> None:
    heat = HeatList(2)
    heat.add(SOFTWARE, b"b", Uses(1, 2, 3, 4))
    heat.add(SOFTWARE, b"", Uses(misses=1))
    assert dumps(heat, {(SOFTWARE, b"b"): "no\nluck"}) == (
        "---\npromoterd-heat: 1\nruns: 2\nmounts:\n"
        '  - mountpoint: "/srv/software"\n    directories:\n'
        '      - {path: "/", miss: 1}\n'
        '      - {path: "b", open: 1, list: 2, miss: 3, found: 4}  # no\\nluck\n'
    )
    assert loads(dumps(heat, {(SOFTWARE, b"b"): "no\nluck"})) == heat


def test_a_path_as_long_as_paths_can_be() -> None:
    heat = HeatList(1)
    heat.add(SOFTWARE, b"/".join([b"\xff" * 250] * 16), Uses(1))
    slowly = HeatList()
    texts._read_as_yaml(dumps(heat), "list", slowly)
    assert slowly == heat


def test_cutting() -> None:
    heat = HeatList(3)
    for number in range(10):
        heat.add(SOFTWARE, b"d%d" % number, Uses(misses=number))
    heat.add(b"/other", b"x", Uses(opens=8))
    assert heat.hottest(SOFTWARE)[:2] == [b"d9", b"d8"]
    assert heat.cut(min_count=8).mounts == {
        SOFTWARE: {b"d9": Uses(misses=9), b"d8": Uses(misses=8)},
        b"/other": {b"x": Uses(opens=8)},
    }
    assert heat.cut(top=1).mounts == {SOFTWARE: {b"d9": Uses(misses=9)}, b"/other": {}}
    assert heat.cut(min_count=100).runs == 3
    heat.add(SOFTWARE, b"opened", Uses(opens=99, misses=1))
    assert heat.hottest(SOFTWARE)[0] == b"opened"
    assert heat.hottest(SOFTWARE, "miss")[-2:] == [b"opened", b"d0"]
    assert heat.cut(min_count=9, by="miss").mounts == {SOFTWARE: {b"d9": Uses(misses=9)}, b"/other": {}}
    assert heat.cut(top=1, by="open").mounts == {SOFTWARE: {b"opened": Uses(99, 0, 1)}, b"/other": {}}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", ["list:1: nothing in it"]),
        ("# only a comment\n", ["list:1: nothing in it"]),
        ("mounts: []\n", ["list:1: no heat list: it has no key promoterd-heat"]),
        ("just text", ["list:1: no heat list"]),
        ("promoterd-heat: 2\n", ["list:1: promoterd-heat: version '2'; this promoterd reads version 1"]),
        ("promoterd-heat: 1\nruns: many\n", ["list:2: runs: found 'many'; allowed a whole number"]),
        ("promoterd-heat: 1\nmonts: []\n", ["list:2: the unknown key 'monts'", "did you mean mounts?"]),
        (
            (
                "promoterd-heat: 1\nmounts:\n- mountpoint: srv\n  directories:\n  - {path: a, mis: 1}\n"
                "  - {path: ../b}\n"
                "  - {path: 50%}\n  - {miss: 1}\n  - {path: c, miss: -1}\n  - d\n"
            ),
            [
                "list:3: mountpoint: 'srv': a mount point that is not an absolute path",
                "list:5: the unknown key 'mis'; allowed path, open, list, miss, found; did you mean miss?",
                "list:6: path: '../b': '..' in a path",
                "list:7: path: '50%': a percent sign that begins no %XX; a percent sign itself is written %25",
                "list:8: no path",
                "list:9: miss: found '-1'; allowed a whole number",
                "list:10: 5: found 'd'; allowed a mapping with a path and counts",
            ],
        ),
        ("promoterd-heat: 1\nmounts:\n  - {mountpoint: /a, directories: x}\n", ["list:3: directories: found 'x'"]),
        ("promoterd-heat: 1\nmounts: {a\n", ["list:3: no valid YAML"]),
        ("promoterd-heat: 1\n---\npromoterd-heat: 1\nruns: x\n", ["list:4: runs: found 'x'"]),
        ("[" * 100_000, ["list:"]),
        ("promoterd-heat: 1\nruns: \x01\n", ["list:1: no YAML that a list can be"]),
        ("promoterd-heat: 1\nmounts: &a [*a]\n", ["list:"]),
        ("promoterd-heat: 1\nruns: 99999999999999999999\n", ["list:2: runs"]),
    ],
)
def test_what_is_wrong_is_named_with_its_line(text: str, said: list[str]) -> None:
    with pytest.raises(HeatListError) as caught:
        loads(text, "list")
    for words in said:
        assert words in caught.value.message
    assert caught.value.hint


def test_only_ten_mistakes_are_told() -> None:
    text = "promoterd-heat: 1\nmounts:\n- mountpoint: /a\n  directories:\n" + "  - {path: a, x: 1}\n" * 50
    with pytest.raises(HeatListError) as caught:
        loads(text)
    assert len(caught.value.message.splitlines()) == 10


@pytest.mark.parametrize("path", [b"", b"a", b"a b", b"100%", b"%41", b"\xff", "ü\u2028".encode(), *ODD_NAMES])
def test_names(path: bytes) -> None:
    text = names.encode(path)
    assert text.isprintable()
    assert names.path_of(text) == path


def test_names_stay_readable() -> None:
    assert names.encode("größe/a b".encode()) == "größe/a b"
    assert names.encode(b"caf\xe9\n%") == "caf%E9%0A%25"
    assert names.path_of("/apps//nuke/./lib/") == b"apps/nuke/lib"


class TestFiles:
    def make(self, directory: Path, *seeds: int) -> list[HeatList]:
        lists = [random_list(seed) for seed in seeds]
        for seed, heat in zip(seeds, lists, strict=True):
            write_list(heat, str(directory / f"{seed}.yaml"))
        return lists

    def test_a_directory_and_a_glob_and_each_by_itself(self, tmp_path: Path) -> None:
        lists = self.make(tmp_path, 4, 5, 6)
        (tmp_path / "readme.txt").write_text("no list")
        assert read_list([str(tmp_path)]) == merged(*lists)
        assert read_list([f"{tmp_path}/[45].yaml"]) == merged(*lists[:2])
        assert read_list([f"{tmp_path}/[45].yaml", f"{tmp_path}/4.yaml"]) == merged(*lists[:2]), "each once"
        assert read_list([str(tmp_path / "4.yaml"), str(tmp_path / "6.yaml")]) == merged(lists[0], lists[2])

    def test_a_name_with_the_characters_of_a_glob(self, tmp_path: Path) -> None:
        write_list(random_list(7), str(tmp_path / "[red].yaml"))
        assert read_list([str(tmp_path / "[red].yaml")]) == random_list(7)

    @pytest.mark.parametrize(
        ("name", "said"),
        [("none.yaml", "No such file"), ("*.yaml", "no list has such a name"), ("empty", "no list in this directory")],
    )
    def test_nothing_there(self, name: str, said: str, tmp_path: Path) -> None:
        (tmp_path / "empty").mkdir()
        with pytest.raises(HeatListError, match=said):
            read_list([str(tmp_path / name)])

    def test_what_is_not_text(self, tmp_path: Path) -> None:
        (tmp_path / "list.yaml").write_bytes(b"promoterd-heat: 1\n# \xff\n")
        with pytest.raises(HeatListError, match=r"list.yaml:2: the byte 0xff"):
            read_list([str(tmp_path / "list.yaml")])

    def test_writing_replaces_the_whole_file_or_nothing(self, tmp_path: Path) -> None:
        file = tmp_path / "list.yaml"
        file.write_text("before")
        os.symlink(file, tmp_path / "link")
        write_list(random_list(3), str(tmp_path / "link"))
        assert (tmp_path / "link").is_symlink()
        assert read_list([str(file)]) == random_list(3)
        assert (file.stat().st_mode & 0o777) == 0o666 & ~_umask()
        with pytest.raises(HeatListError, match="cannot be written: No such file or directory"):
            write_list(random_list(3), str(tmp_path / "none" / "list.yaml"))
        assert sorted(os.listdir(tmp_path)) == ["link", "list.yaml"]

    def test_a_symlink_to_another_file_system_and_standard_output(self, tmp_path: Path) -> None:
        with tempfile.TemporaryDirectory(dir="/dev/shm") as elsewhere:
            os.symlink(f"{elsewhere}/list.yaml", tmp_path / "link")
            for number in (3, 4):
                check_writable(str(tmp_path / "link"))
                write_list(random_list(number), str(tmp_path / "link"))
                assert read_list([f"{elsewhere}/list.yaml"]) == random_list(number)
            assert (os.listdir(tmp_path), os.listdir(elsewhere)) == (["link"], ["list.yaml"])
        with open(tmp_path / "out", "w+b") as out:
            arguments = ["heat", "merge", "-o", "/dev/stdout"]
            text = dumps(random_list(5)).encode()
            subprocess.run([sys.executable, "-m", "promoterd", *arguments], input=text, stdout=out, check=True)
            assert out.read() == text, "into the file that is open, not beside it"

    def test_a_symlink_to_where_there_is_no_directory(self, tmp_path: Path) -> None:
        os.symlink(tmp_path / "none" / "list.yaml", tmp_path / "link")
        with pytest.raises(HeatListError, match="there is no directory"):
            check_writable(str(tmp_path / "link"))

    def test_what_breaks_off_leaves_nothing_half_written(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def interrupted(*_args: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(os, "replace", interrupted)
        with pytest.raises(KeyboardInterrupt):
            write_list(random_list(3), str(tmp_path / "list.yaml"))
        assert os.listdir(tmp_path) == []

    def test_a_pipe_among_the_lists_of_a_directory_is_not_waited_for(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "a.yaml")
        write_list(random_list(3), str(tmp_path / "b.yaml"))
        assert lists_of(str(tmp_path)) == [str(tmp_path / "b.yaml")]

    def test_aliases_that_stand_for_more_than_anybody_wrote(self) -> None:
        many = "".join(f"    - {{path: a{number}}}\n" for number in range(2000))
        more = "".join(f"  - {{mountpoint: /m{number}, directories: *all}}\n" for number in range(2000))
        start = "promoterd-heat: 1\nmounts:\n  - mountpoint: /a\n    directories: &all\n"
        with pytest.raises(HeatListError, match="aliases"):
            loads(start + many + more)
        few = "    - {path: a}\n  - {mountpoint: /b, directories: *all}\n"
        assert loads(start + few).mounts == {b"/a": {b"a": Uses()}, b"/b": {b"a": Uses()}}

    def test_a_path_that_no_kernel_takes(self) -> None:
        heat = HeatList(1)
        heat.add(SOFTWARE, b"a/" * 2047 + b"b", Uses(opens=1))
        assert loads(dumps(heat)) == heat
        heat.add(SOFTWARE, b"a/" * 2047 + b"bb", Uses(opens=1))
        with pytest.raises(HeatListError, match=r"a path of 4096 bytes"):
            loads(dumps(heat))


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


class TestMerge:
    def run(self, *arguments: str, given: str = "") -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-m", "promoterd", "heat", "merge", *arguments],
            input=given,
            capture_output=True,
            text=True,
            check=False,
        )
        assert "Traceback" not in done.stderr
        return done

    def test_to_standard_output_and_from_standard_input(self, tmp_path: Path) -> None:
        write_list(random_list(8), str(tmp_path / "8.yaml"))
        done = self.run(str(tmp_path / "8.yaml"), "-", given=dumps(random_list(9)))
        assert (done.returncode, done.stdout) == (0, dumps(merged(random_list(8), random_list(9))))
        assert self.run(given=dumps(random_list(9))).stdout == dumps(random_list(9))

    def test_to_a_file_cut(self, tmp_path: Path) -> None:
        heat = HeatList(1)
        for number in range(5):
            heat.add(SOFTWARE, b"d%d" % number, Uses(misses=number))
        done = self.run("-o", str(tmp_path / "out.yaml"), "--top", "3", "--min-count", "3", given=dumps(heat))
        assert (done.returncode, done.stdout) == (0, "")
        assert "2 directories on /srv/software, 7 uses (7 in vain), written to " in done.stderr
        assert read_list([str(tmp_path / "out.yaml")]).hottest(SOFTWARE) == [b"d4", b"d3"]

    def test_in_json(self) -> None:
        done = self.run("--json", given=dumps(random_list(9)))
        assert loads(done.stdout) == random_list(9)

    def test_without_standard_input(self) -> None:
        command = f"exec {sys.executable} -m promoterd heat merge <&-"
        done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout) == (15, "")
        assert "there is no standard input" in done.stderr

    def test_a_bad_list(self, tmp_path: Path) -> None:
        (tmp_path / "bad.yaml").write_text("promoterd-heat: 1\nmounts: 3\n")
        done = self.run(str(tmp_path / "bad.yaml"))
        assert (done.returncode, done.stdout) == (15, "")
        assert f"{tmp_path}/bad.yaml:2: mounts: found '3'; allowed a list of mounts" in done.stderr
