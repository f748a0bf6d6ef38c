"""Warming from lists on real overlays, with a daemon and without: what it saves, what it leaves, how it goes on."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from promoterd.demo.view import differences, snapshot
from promoterd.heatlist import HeatList, Uses, read_list, write_list
from support.commands import Ran, environment, on_a_terminal, promoterd
from support.daemons import RunningDaemon, sleeping_process, wait_for
from support.promotions import assert_marks_are_sound
from support.sites import Site
from support.trees import files

ODD = b"app/odd \xff\n%"
TREE = {
    "app": {
        "lib": {**files(6), "sub": files(2)},
        "search1": files(1),
        "search2": files(1),
        "never": files(1),
        "linked": files(1),
        b"odd \xff\n%": files(2),
    }
}
SEARCH = "for d in search1 search2 lib lib/sub; do test -e app/$d/libx.so.1; test -e app/$d/libx.so; done; true"


class Warming:
    """A site, a list, and perhaps a daemon."""

    def __init__(self, site: Site, daemon: RunningDaemon | None = None) -> None:
        self.site = site
        self.daemon = daemon
        self.config = site.config if daemon is None else daemon.policy_file
        self.file = str(site.base / "heat.yaml")
        self.failures = str(site.base / "failed.yaml")

    def run(self, *arguments: str) -> Ran:
        return promoterd("warm", *arguments, "--config", self.config)

    def write(self, *paths: bytes, mountpoint: bytes | None = None) -> None:
        """A list of these directories, the first the hottest."""
        heat = HeatList(1)
        for number, path in enumerate(paths):
            heat.add(mountpoint or self.site.mounted.mountpoint, path, Uses(misses=100_000 - number))
        write_list(heat, self.file)

    def warm(self, *options: str) -> Any:
        """What came of the list's mount."""
        ran = self.run(self.file, *options, "--json")
        (mount,) = ran.json["mounts"]
        return {**mount, "code": ran.code}

    def link(self) -> None:
        """Make a directory that is refused."""
        os.link(self.site.mounted.on_server("app/linked/f0000"), self.site.mounted.on_server("app/linked/second"))


def outcomes(warmed: dict[str, Any]) -> dict[str, int]:
    keys = ("complete", "already", "gone", "forbidden", "refused", "failed", "would", "left")
    return {key: warmed[key] for key in keys if warmed[key]}


@pytest.fixture(params=["directly", "daemon"])
def warming(request: pytest.FixtureRequest, make_site: Callable[..., Site]) -> Iterator[Warming]:
    site = make_site(TREE, counting=True)
    site.mount["limits"]["concurrency"] = 1  # else a child may be faster than its parent
    site.write()
    if request.param == "directly":
        yield Warming(site)
        return
    site.mount["heat"]["threshold"] = 10_000
    with RunningDaemon(os.fsencode(site.base), site.mount) as daemon:
        yield Warming(site, daemon.start())


@pytest.mark.needs("strace")
def test_what_was_recorded_is_not_asked_again(warming: Warming) -> None:
    site = warming.site
    where = os.fsdecode(site.mounted.mountpoint)
    recorded = promoterd("record", "-o", warming.file, "-c", warming.config, "sh", "-c", SEARCH, cwd=where)
    assert recorded.code == 0, recorded.err
    assert sum(uses.misses for uses in read_list([warming.file]).mounts[site.mounted.mountpoint].values()) == 8

    def asked_in_vain() -> int:
        site.mounted.reset()
        subprocess.run(["sh", "-c", SEARCH], cwd=where, check=True)
        return site.mounted.counted.counts()["LOOKUP_NEGATIVE"]

    site.mounted.remount() if warming.daemon is None else site.mounted.cool()
    assert asked_in_vain() == 8
    ran = warming.run(warming.file)
    assert ran.code == 0, ran.err
    assert "completed now" in ran.out
    if warming.daemon is not None:
        warming.daemon.wait_state("active", b"app/lib", b"app/lib/sub", b"app/search1", b"app/search2")
    assert asked_in_vain() == 0
    again = warming.warm()
    assert again["complete"] == 0
    assert again["already"] == 4
    assert len(assert_marks_are_sound(site.mounted)) == 4


@pytest.mark.needs("strace")
def test_what_was_recorded_costs_nothing_with_a_layer(make_site: Callable[..., Site]) -> None:
    site = make_site(TREE, counting=True, layered=True)
    site.mount["backend"] = "layer"
    site.write()
    warming = Warming(site)
    where = os.fsdecode(site.mounted.mountpoint)
    script = "cd app/lib; ls -l . sub >/dev/null; test -e none; test -e sub/none; stat f0000 >/dev/null; true"

    def asked() -> dict[str, int]:
        site.mounted.remount().reset()
        subprocess.run(["sh", "-c", script], cwd=where, check=True)
        return site.mounted.counted.counts()

    recorded = promoterd("record", "-o", warming.file, "-c", site.config, "sh", "-c", script, cwd=where)
    assert recorded.code == 0, recorded.err
    before = asked()
    assert before["LOOKUP_NEGATIVE"] == 2
    assert before["READDIR"] > 0
    ran = warming.run(warming.file)
    assert ran.code == 0, ran.err
    after = asked()
    assert {after["LOOKUP_NEGATIVE"], after["READDIR"]} == {0}
    assert after["LOOKUP"] < before["LOOKUP"] / 2


def test_all_that_can_come_of_a_directory(warming: Warming) -> None:
    warming.link()
    warming.write(b"app/search1", b"app/gone", b"app/never", b"app", b"app/linked", ODD, b"app/search1/f0000", b"")
    ran = warming.run(warming.file, "--failures", warming.failures)
    assert ran.code == 6
    lines = ran.out.splitlines()
    assert lines[0].endswith(": 8 directories: 2 completed now, 2 gone, 3 not allowed by policy, 1 refused")
    assert "  refused /app/linked: " in ran.out
    assert "hard-linked" in ran.out
    assert "  forbidden /app/never: rule 'app/never' says `promote: never`" in ran.out
    assert "  forbidden /app: it is growing" in ran.out
    assert lines[-1] == f"`promoterd warm --retry {warming.failures}` tries again what failed."
    assert sorted(assert_marks_are_sound(warming.site.mounted)) == [ODD, b"app/search1"]
    assert not os.path.exists(warming.site.mounted.in_upper("app/never"))

    written = read_list([warming.failures])
    assert written.mounts == {warming.site.mounted.mountpoint: {b"app/linked": Uses(misses=100_000 - 4)}}
    with open(warming.failures) as file:
        assert "# refused: " in file.read()
    again = promoterd("warm", "--retry", warming.failures, "--config", warming.config)
    assert again.code == 6
    assert read_list([warming.failures]) == written
    os.unlink(warming.site.mounted.on_server("app/linked/second"))
    third = promoterd("warm", "--retry", warming.failures, "--config", warming.config)
    assert (third.code, "1 completed now" in third.out) == (0, True), third
    assert len(read_list([warming.failures])) == 0
    assert promoterd("warm", "--retry", warming.failures, "--config", warming.config).code == 0


def test_a_dry_run_changes_nothing(warming: Warming) -> None:
    warming.write(b"app/search1", b"app/never", b"app/gone", b"app/lib")
    before = sorted(os.listdir(warming.site.mounted.upper))
    found = warming.warm("--dry-run", "--failures", warming.failures)
    assert (found["code"], outcomes(found)) == (0, {"would": 2, "gone": 1, "forbidden": 1})
    assert sorted(os.listdir(warming.site.mounted.upper)) == before
    assert not os.path.exists(warming.failures)


def test_the_cuts(warming: Warming) -> None:
    warming.write(b"app/search1", b"app/search2", b"app/lib")
    assert outcomes(warming.warm("--min-count", "100000")) == {"complete": 1}
    assert outcomes(warming.warm("--by", "open", "--min-count", "1")) == {}
    assert outcomes(warming.warm("--top", "2")) == {"complete": 1, "already": 1}
    assert sorted(assert_marks_are_sound(warming.site.mounted)) == [b"app/search1", b"app/search2"]


def test_a_parent_takes_its_children_along(warming: Warming) -> None:
    warming.write(b"app/lib", b"app/lib/sub")
    found = warming.warm("--top", "1")
    assert (outcomes(found), found["entries"]) == ({"complete": 1}, 9)
    assert outcomes(warming.warm()) == {"already": 2}


def test_mounts_that_another_host_has(warming: Warming) -> None:
    warming.write(b"app/search1", mountpoint=b"/srv/elsewhere")
    elsewhere = warming.run(warming.file)
    assert elsewhere.code == 4
    assert "/srv/elsewhere" in elsewhere.err
    first = warming.file
    warming.file = str(warming.site.base / "second.yaml")
    warming.write(b"app/search1")
    ran = warming.run(first, warming.file)
    assert ran.code == 0, ran.err
    assert "1 completed now" in ran.out
    assert "/srv/elsewhere: 1 directory: 1 left" in ran.out


def test_a_paused_mount_is_left_alone(warming: Warming) -> None:
    if warming.daemon is None:
        pytest.skip("only a daemon is paused")
    promoterd("pause", "--config", warming.config)
    warming.write(b"app/search1")
    ran = warming.run(warming.file)
    assert ran.code == 11
    assert "promoterd resume" in ran.hint
    assert assert_marks_are_sound(warming.site.mounted) == []


def test_more_than_fits_into_one_request(warming: Warming) -> None:
    warming.write(*(b"app/gone/" + b"\xff" * 200 + b"%d" % number for number in range(600)), b"app/search1")
    found = warming.warm()
    assert outcomes(found) == {"complete": 1, "gone": 600}


def test_who_pins_is_counted(make_site: Callable[..., Site]) -> None:
    warming = Warming(make_site(TREE))
    warming.write(b"app/search1", b"app/search2")
    with sleeping_process("-c", "print(flush=True); input()", cwd=warming.site.mounted.at("app/search1")):
        ran = warming.run(warming.file)
    assert (ran.code, "2 completed now, 1 pinned by processes" in ran.out) == (0, True), ran
    assert warming.warm()["pinned"] == 0, "what waits is activated by whoever comes next"


class TestBrokenOff:
    COUNT = 12

    @pytest.fixture(params=["directly", "daemon"])
    def slow(self, request: pytest.FixtureRequest, make_site: Callable[..., Site]) -> Iterator[Warming]:
        site = make_site({"app": {f"d{number:02}": files(40) for number in range(self.COUNT)}})
        site.mount["limits"] |= {"entries_per_second": 100, "concurrency": 1}
        site.mount["heat"]["threshold"] = 10_000
        site.write()
        if request.param == "directly":
            warming = Warming(site)
            warming.write(*self.paths)
            yield warming
            return
        with RunningDaemon(os.fsencode(site.base), site.mount) as daemon:
            warming = Warming(site, daemon.start())
            warming.write(*self.paths)
            yield warming

    @property
    def paths(self) -> list[bytes]:
        return [b"app/d%02d" % number for number in range(self.COUNT)]

    def start(self, warming: Warming, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "promoterd", "warm", *arguments, "--config", warming.config],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(),
        )

    def wait_begun(self, warming: Warming) -> None:
        """Until it is in the middle; a daemon tells what is done in portions of a second."""
        wait_for(lambda: os.path.exists(warming.site.mounted.in_upper("app/d05/f0010")))

    def check_it_goes_on(self, warming: Warming, before: Any) -> None:
        done = sorted(assert_marks_are_sound(warming.site.mounted))
        assert 2 <= len(done) < self.COUNT
        assert done == self.paths[: len(done)], "the hottest first"
        skip = {b".promoterd"}
        assert differences(before, snapshot(warming.site.mounted.mountpoint, skip=skip, threads=1)) == []
        found = warming.warm()
        assert found["code"] == 0
        assert found["already"] >= len(done)
        assert found["complete"] == self.COUNT - found["already"]
        assert sorted(assert_marks_are_sound(warming.site.mounted)) == self.paths
        assert differences(before, snapshot(warming.site.mounted.mountpoint, skip=skip, threads=1)) == []

    def test_by_ctrl_c(self, slow: Warming) -> None:
        before = snapshot(slow.site.mounted.mountpoint, skip={b".promoterd"}, threads=1)
        process = self.start(slow, slow.file)
        self.wait_begun(slow)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
        assert process.returncode == 130, err
        assert "Traceback" not in out + err
        assert "the same command goes on from here" in err
        assert " left" in out
        if slow.daemon is not None:
            wait_for(lambda: slow.daemon.status()["states"]["shadowing"] == 0)  # type: ignore[union-attr]
        self.check_it_goes_on(slow, before)

    def test_by_kill(self, slow: Warming) -> None:
        before = snapshot(slow.site.mounted.mountpoint, skip={b".promoterd"}, threads=1)
        process = self.start(slow, slow.file)
        self.wait_begun(slow)
        if slow.daemon is not None:
            slow.daemon.kill()
            out, err = process.communicate(timeout=20)
            assert process.returncode == 9, err
            assert "Traceback" not in out + err
            slow.daemon.start()
        else:
            process.kill()
            process.communicate()
        self.check_it_goes_on(slow, before)

    def test_a_retry_loses_nothing(self, slow: Warming) -> None:
        whole = read_list([slow.file])
        process = self.start(slow, "--retry", slow.file)
        self.wait_begun(slow)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=20)
        left = read_list([slow.file])
        assert 0 < len(left) < self.COUNT
        assert left == whole.only((slow.site.mounted.mountpoint, path) for path in self.paths[-len(left) :])

    def test_a_bar_on_a_terminal(self, slow: Warming) -> None:
        code, shown = on_a_terminal("warm", slow.file, "--top", "3", "--config", slow.config)
        assert code == 0
        assert "/3" in shown
        assert "directories" in shown
        assert shown.rstrip().endswith("3 completed now")


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ([], 2, "either lists or --retry"),
        (["a.yaml", "--retry", "b.yaml"], 2, "either lists or --retry"),
        (["--retry", "b.yaml", "--dry-run"], 2, "no other option"),
        (["none.yaml"], 15, "none.yaml cannot be read: No such file"),
        (["bad.yaml"], 15, "bad.yaml:1: no heat list"),
        (["good.yaml", "--failures", "no/where.yaml"], 15, "there is no directory"),
    ],
)
def test_what_cannot_be(arguments: list[str], code: int, said: str, make_site: Callable[..., Site]) -> None:
    site = make_site(TREE)
    (site.base / "bad.yaml").write_text("mounts: []\n")
    write_list(HeatList(1), str(site.base / "good.yaml"))
    ran = promoterd("warm", *arguments, "--config", site.config, cwd=str(site.base))
    assert (ran.code, said in ran.err) == (code, True), ran.err
    empty = promoterd("warm", "good.yaml", "--config", site.config, cwd=str(site.base))
    assert (empty.code, empty.out) == (0, "The lists name no directory, or none on the mounts that were asked for.\n")


def test_it_says_what_it_waits_for(make_site: Callable[..., Site]) -> None:
    site = make_site(TREE, counting=True)
    site.mount["heat"]["threshold"] = 10_000
    site.mount["limits"]["request_budget"] = {"requests": 1, "window": "1h"}
    with RunningDaemon(os.fsencode(site.base), site.mount) as daemon:
        warming = Warming(site, daemon.start())
        warming.write(b"app/search1", b"app/search2", b"app/lib")
        asking = subprocess.Popen(
            [sys.executable, "-m", "promoterd", "warm", warming.file, "--config", warming.config],
            stderr=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment(),
        )
        with asking:
            assert asking.stderr is not None
            said = asking.stderr.readline()
            asking.send_signal(signal.SIGINT)
            asking.communicate(timeout=20)
    assert "limits.request_budget is used up until" in said
    assert asking.returncode == 130
