"""The backend in docs/backends.md, as it stands there."""

import os
import re
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from promoterd.backends import base, choice
from promoterd.backends.base import MarkState
from promoterd.errors import Refused
from promoterd.overlay import mounts, probe
from promoterd.policy.load import parse_policy
from support.overlays import MountedOverlay
from support.promotions import Bench, assert_marks_are_sound, assert_same_view
from support.trees import files

MakeOverlay = Callable[..., MountedOverlay]
DOCUMENT = (Path(__file__).parents[2] / "docs" / "backends.md").read_text("utf-8")
FILES = dict(re.findall(r"<!-- file: (\S+) -->\n```\w+\n(.*?)```", DOCUMENT, re.DOTALL))
RELEASE = b"apps/nuke/15.1"


@pytest.fixture(autouse=True)
def _installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The package of the document, installed as far as importlib.metadata can tell."""
    project = tomllib.loads(FILES["pyproject.toml"])["project"]
    for name, text in FILES.items():
        (tmp_path / name).write_text(text, "utf-8")
    information = tmp_path / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    information.mkdir()
    (information / "METADATA").write_text(f"Name: {project['name']}\nVersion: {project['version']}\n")
    lines = [
        f"[{group}]\n" + "".join(f"{name} = {value}\n" for name, value in points.items())
        for group, points in project["entry-points"].items()
    ]
    (information / "entry_points.txt").write_text("\n".join(lines))
    monkeypatch.syspath_prepend(tmp_path)


@pytest.fixture
def bench(make_overlay: MakeOverlay) -> Bench:
    return Bench(make_overlay({"apps": {"nuke": {"15.1": {"lib": files(20), **files(3)}}}}, counting=True), "released")


def sign_off(bench: Bench) -> None:
    Path(os.fsdecode(bench.mounted.on_server(RELEASE + b"/.released"))).touch()


def test_it_is_found_beside_the_others() -> None:
    assert set(base.names()) == {"finalize", "layer", "observe", "opaque", "prime", "released"}
    assert base.load("released").name == "released"


def test_policy_can_name_it() -> None:
    policy = next(block for block in re.findall(r"```yaml\n(.*?)```", DOCUMENT, re.DOTALL) if "released" in block)
    (mount,) = parse_policy(policy, known_backends=base.names()).mounts
    assert mount.backend == "released"


def test_it_is_taken_where_policy_names_it_and_never_by_itself(bench: Bench) -> None:
    overlay = mounts.overlay_at(bench.mounted.mountpoint)
    facts = probe.gather(overlay)
    assert choice.backend_for("released", overlay, facts).name == "released"
    assert choice.backend_for("auto", overlay, facts).name == "opaque"
    assert {verdict.backend: verdict.fit for verdict in choice.verdicts(overlay, facts)}["released"]


@pytest.mark.parametrize("path", [RELEASE, RELEASE + b"/lib"])
def test_what_is_not_signed_off_is_refused_untouched(bench: Bench, path: bytes) -> None:
    before = os.listdir(bench.mounted.upper)
    with pytest.raises(Refused, match=r"there is no \.released in it or above it on the server"):
        bench.plan(path)
    assert os.listdir(bench.mounted.upper) == before


@pytest.mark.parametrize("path", [RELEASE, RELEASE + b"/lib"])
def test_what_is_signed_off_is_completed_and_can_be_reopened(bench: Bench, path: bytes) -> None:
    sign_off(bench)
    before = bench.view()
    assert bench.promote(path)[-1] == path
    assert_marks_are_sound(bench.mounted)
    assert_same_view(before, bench.view())
    found = bench.on_disk(path)
    assert (found.mark, found.in_effect) == (MarkState.OURS, True)
    assert found.provenance is not None
    assert found.provenance.backend == "released"
    bench.mounted.cool()
    bench.mounted.counted.reset()
    assert not os.path.exists(bench.mounted.at(path + b"/missing"))
    assert bench.mounted.counted.counts()["LOOKUP_NEGATIVE"] == 0
    bench.reopen(path)
    assert bench.on_disk(path).mark is MarkState.NONE
    assert_same_view(before, bench.view())
