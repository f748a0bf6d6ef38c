"""``promoterd fsck`` as it is typed: what it says, what it exits with, and what it refuses."""

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from promoterd.cli.entry import execute
from promoterd.overlay.lock import WriterLock
from support.checking import assert_shows_the_server, checked, errors
from support.commands import Ran, on_a_terminal, promoterd
from support.daemons import RunningDaemon, daemons, mount_policy
from support.handmade import OPAQUE, Layer
from support.promotions import assert_marks_are_sound
from support.sites import Site
from support.soundness import xattr
from support.trees import files

if TYPE_CHECKING:
    from promoterd.fsck.findings import Report

LIB = "app/lib"


@pytest.fixture
def layered(make_site: Callable[..., Site]) -> Site:
    site = make_site(counting=True, layered=True)
    Layer(site.mounted).complete(LIB, "app/lib/sub")
    return site


def fsck(site: Site, *arguments: str, **options: Any) -> Ran:
    return promoterd("fsck", os.fsdecode(site.mounted.mountpoint), *arguments, "--config", site.config, **options)


def offline(site: Site, *arguments: str) -> Ran:
    mounted = site.mounted
    mounted.umount()
    lowers = [word for layer in (*mounted.metadata, *mounted.layers) for word in ("--lower", os.fsdecode(layer))]
    try:
        upper = os.fsdecode(mounted.upper)
        return promoterd("fsck", "--offline", "--upper", upper, *lowers, *arguments, "--config", site.config)
    finally:
        mounted.mount()


def test_a_layer_found_broken_and_put_right(layered: Site) -> None:
    clean = fsck(layered)
    assert (clean.code, clean.err) == (0, "")
    assert clean.out == "4 directories checked, 25 entries: clean\n"
    os.chmod(layered.mounted.in_files(b"app/lib/odd \xff\n[red]"), 0o600)
    found = fsck(layered)
    assert found.code == 4
    line, summary = found.out.splitlines()
    assert line.startswith("error layer /app/lib/odd \\xff\\n[red]: mode 0600, the server has 0644 (--repair ")
    assert summary == "4 directories checked, 25 entries: 1 left"
    told = fsck(layered, "--json").json
    (finding,) = told["findings"]
    assert (finding["path"], finding["kind"], finding["area"]) == ("/app/lib/odd \\xff\\n[red]", "mode", "layer")
    assert (told["checked"], told["exit_code"]) == (os.fsdecode(layered.mounted.mountpoint), 4)
    assert (told["directories"], told["uncorrected"], told["corrected"]) == (4, 1, 0)
    repaired = fsck(layered, "--repair")
    assert repaired.code == 1
    assert repaired.out.splitlines()[0].startswith("corrected layer /app/lib/odd \\xff\\n[red]: mode 0600")
    assert repaired.out.endswith("1 corrected\n")
    again = fsck(layered)
    assert again.code == 0
    assert again.out.startswith("information layer /app/lib: not complete")
    assert_shows_the_server(layered.mounted)


def test_offline(layered: Site) -> None:
    os.chmod(layered.mounted.in_files("app/lib/f0001"), 0o600)
    assert offline(layered, "--repair").code == 1
    assert offline(layered).code == 0
    assert_shows_the_server(layered.mounted)


class TestUpper:
    @pytest.fixture
    def promoted(self, site: Site) -> Site:
        assert promoterd("promote", site.at(LIB), "--config", site.config).code == 0
        assert fsck(site).out == "2 directories checked, 25 entries: clean\n"
        Path(os.fsdecode(site.mounted.on_server("app/lib/new"))).write_text("new")
        return site

    def test_reopened_on_the_live_mount(self, promoted: Site) -> None:
        found = fsck(promoted)
        assert found.code == 4
        assert "error upper /app/lib/new: the server has it, and it is not shadowed" in found.out
        repaired = fsck(promoted, "--repair")
        assert (repaired.code, "(reopened)" in repaired.out) == (1, True)
        assert assert_marks_are_sound(promoted.mounted) == [b"app/lib/sub"]
        assert os.path.exists(promoted.at("app/lib/new"))
        assert fsck(promoted).code == 0

    def test_where_that_is_not_safe_it_waits(self, promoted: Site) -> None:
        promoted.mount["rules"][2]["writers"] = "any"
        promoted.write()
        ran = fsck(promoted, "--repair")
        assert ran.code == 4
        assert "--offline" in ran.out
        assert xattr(promoted.mounted.in_upper(LIB), OPAQUE) == b"y"
        promoted.mounted.umount()
        words = ("fsck", "--offline", "--upper", os.fsdecode(promoted.mounted.upper), "--config", promoted.config)
        repaired, again = promoterd(*words, "--repair"), promoterd(*words)
        promoted.mounted.mount()
        assert (repaired.code, again.code) == (1, 0)
        assert os.path.exists(promoted.at("app/lib/new"))


class TestWithADaemon:
    @pytest.fixture
    def make_daemon(self, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., RunningDaemon]]:
        with daemons(lambda: bytes(tmp_path_factory.mktemp("daemon"))) as make:
            yield make

    def test_checking_works_and_repairing_is_refused(
        self, make_site: Callable[..., Site], make_daemon: Callable[..., RunningDaemon]
    ) -> None:
        site = make_site()
        rule = {"path": "**", "recheck": "1h", "writers": "none"}
        daemon = make_daemon(mount_policy(site.mounted, [rule], quiet_period="0s")).start()
        daemon.ask("promote", site.mounted.at(LIB))
        words = ("fsck", os.fsdecode(site.mounted.mountpoint), "--config", daemon.policy_file)
        clean = promoterd(*words)
        assert (clean.code, clean.out) == (0, "2 directories checked, 25 entries: clean\n"), "its scratch is in use"
        Path(os.fsdecode(site.mounted.on_server("app/lib/new"))).write_text("new")
        found = promoterd(*words)
        assert found.code == 4
        assert f"pid {daemon.pid}" in found.out.splitlines()[-1]
        refused = promoterd(*words, "--repair")
        assert refused.code == 8
        assert f"pid {daemon.pid}" in refused.err
        assert "systemctl stop promoterd" in refused.hint
        assert daemon.status()["states"]["active"] == 2, "it works on"

    def test_what_it_is_in_the_middle_of_is_no_finding(
        self, make_site: Callable[..., Site], make_daemon: Callable[..., RunningDaemon]
    ) -> None:
        site = make_site({"app": {"lib": {**files(60), "sub": files(20)}}})
        rule = {"path": "**", "recheck": "1h", "writers": "none"}
        daemon = make_daemon(mount_policy(site.mounted, [rule], quiet_period="0s")).start()
        over = threading.Event()
        rounds: list[int] = []
        reports: list[Report] = []

        def work() -> None:
            while not over.is_set():
                daemon.ask("promote", site.mounted.at(LIB))
                daemon.ask("reopen", site.mounted.mountpoint, all=True)
                rounds.append(1)

        worker = threading.Thread(target=work)
        worker.start()
        try:
            while worker.is_alive() and (len(rounds) < 3 or not any(report.entries for report in reports)):
                reports.append(checked(site.mounted, state=daemon.state_dir))
        finally:
            over.set()
            worker.join()
        assert len(rounds) >= 3
        assert [errors(report) for report in reports if errors(report)] == []


class TestRefusals:
    def test_while_somebody_else_writes(self, layered: Site) -> None:
        with WriterLock(layered.mounted.layer_home):
            ran = fsck(layered, "--repair", "--json")
        error = ran.json["error"]
        assert (ran.code, error["exit_code"], error["class"]) == (8, 8, "AlreadyLocked")

    def test_a_mount_that_no_policy_names(self, layered: Site) -> None:
        layered.mount["mountpoint"] = "/elsewhere"
        layered.write()
        assert fsck(layered).code == 0, "looking needs no permission"
        ran = fsck(layered, "--repair")
        assert ran.code == 8
        assert "without --repair" in ran.hint

    def test_offline_while_it_is_mounted(self, layered: Site) -> None:
        mounted = layered.mounted
        words = [word for layer in (*mounted.metadata, *mounted.layers) for word in ("--lower", os.fsdecode(layer))]
        ran = promoterd("fsck", "--offline", "--upper", os.fsdecode(mounted.upper), *words)
        assert ran.code == 8
        assert "in use by the overlay at" in ran.err
        assert "leave --offline out" in ran.hint

    def test_no_overlay(self, tmp_path: Path) -> None:
        ran = promoterd("fsck", str(tmp_path))
        assert ran.code == 8
        assert "No overlay is mounted" in ran.err

    def test_without_privilege(self, layered: Site) -> None:
        ran = fsck(layered, prefix=("setpriv", "--bounding-set", "-all", "--inh-caps", "-all", "--"))
        assert ran.code == 8
        assert "CAP_SYS_ADMIN" in ran.err


@pytest.mark.parametrize(
    ("arguments", "named", "way_out"),
    [
        (["fsck"], "nothing to check", "--offline"),
        (["fsck", "--repiar", "/x"], "--repiar", "--repair"),
        (["fsck", "/x", "--rate", "-1"], "--rate", "promoterd fsck --help"),
        (["fsck", "/x", "--upper", "/u"], "--upper", "--offline"),
        (["fsck", "/x", "--lower", "/l"], "--lower", "--offline"),
        (["fsck", "--offline"], "--upper", "upperdir"),
        (["fsck", "/a/../b"], "..", "direct path"),
    ],
)
def test_a_wrong_line(arguments: list[str], named: str, way_out: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(arguments) == 16
    out, err = capsys.readouterr()
    assert (out, named in err.splitlines()[0], way_out in err) == ("", True, True)


@pytest.mark.needs("root")
def test_no_such_layers(tmp_path: Path) -> None:
    upper = tmp_path / "upper"
    upper.mkdir()
    for words, named in (
        (("--upper", str(upper)), "does not know the lower layers"),
        (("--upper", str(upper), "--lower", "/nonexistent"), "/nonexistent"),
    ):
        ran = promoterd("fsck", "--offline", *words)
        assert ran.code == 16
        assert named in ran.err
        assert ran.hint or "--upper" in ran.err
    assert os.listdir(tmp_path) == ["upper"]


def test_on_a_terminal_a_bar_is_shown_and_gone(make_site: Callable[..., Site]) -> None:
    site = make_site({"app": {"lib": files(300)}})
    assert promoterd("promote", site.at(LIB), "--config", site.config).code == 0
    words = ("fsck", os.fsdecode(site.mounted.mountpoint), "--config", site.config, "--rate")
    code, shown = on_a_terminal(*words, "600")
    assert code == 0
    assert "/300" in shown
    assert shown.rstrip().endswith("1 directory checked, 300 entries: clean")
    code, shown = on_a_terminal(*words, "100", until="/300")
    assert code == 32
    assert "Interrupted" in shown
