"""What the documents name exists: files, headings, commands, options, targets, tests; and their policies are good."""

import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from promoterd.backends import base as backends
from promoterd.backends.opaque import OpaqueBackend
from promoterd.cli.app import app
from promoterd.heat import base as heat
from promoterd.heatlist.text import dumps, loads
from promoterd.overlay import mounts, probe
from promoterd.overlay.fitness import Severity
from promoterd.policy import load_policy
from promoterd.policy.load import parse_policy
from support.overlays import MountedOverlay

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
TEXTS = {document.relative_to(ROOT).as_posix(): document.read_text("utf-8") for document in DOCUMENTS}
HELD_BY_OTHERS = {"https", "http", "mailto"}
COMMANDS: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
GROUPS = {name for name, command in COMMANDS.items() if hasattr(command, "commands")}
TARGETS = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
EVERYWHERE = pytest.mark.parametrize("name", TEXTS)


def blocks(text: str) -> Iterator[tuple[str, str]]:
    """Fenced blocks, with their languages."""
    yield from re.findall(r"^```(\w*)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def prose(text: str) -> str:
    return re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)


def spans(text: str) -> list[str]:
    """Inline code."""
    return [span.replace("\n", " ") for span in re.findall(r"(?<!`)`([^`]+)`(?!`)", prose(text))]


def lines_of_code(text: str) -> Iterator[str]:
    """Inline code, and what stands in blocks for a shell, comments left out."""
    yield from spans(text)
    for language, block in blocks(text):
        if language in ("sh", ""):
            for line in block.replace("\\\n", " ").splitlines():
                yield re.sub(r"(^|\s)#.*", "", line)


def anchors(text: str) -> set[str]:
    """What GitHub makes of headings."""
    headings = re.findall(r"^#+ +(.*?)\s*$", prose(text), re.MULTILINE)
    plain = [re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading) for heading in headings]
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in plain}


HEADINGS = "| 500 \u00d7 | not promoted | `opaque` | `layer` | `layer`, chained | and with data |"


@EVERYWHERE
def test_links_lead_somewhere(name: str) -> None:
    dead = []
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(TEXTS[name])):
        if target.partition(":")[0] in HELD_BY_OTHERS:
            continue
        path, _, anchor = target.partition("#")
        file = (ROOT / name).parent / path if path else ROOT / name
        if not file.exists() or (anchor and anchor not in anchors(file.read_text("utf-8"))):
            dead.append(target)
    assert dead == []


def invocations(text: str) -> Iterator[list[str]]:
    """Every ``promoterd ...`` that stands as code."""
    for line in lines_of_code(text):
        for command in re.split(r"&&|\|\||;|\| ", line):
            words = shlex.split(command.replace("'", ""))
            if words and words[0] == "sudo":
                words = words[1:]
            if len(words) > 1 and words[0] == "promoterd":
                yield words[1 : words.index("--")] if "--" in words else words[1:]


def options_of(command: str, *arguments: str) -> set[str]:
    """The options of a command, or of the command of a group that the first argument names; none of an unknown one."""
    commands, name = (COMMANDS[command].commands, "".join(arguments[:1])) if command in GROUPS else (COMMANDS, command)
    found = commands.get(name)
    return {option for parameter in found.params for option in parameter.opts} | {"--help"} if found else set()


@EVERYWHERE
def test_commands_and_their_options_exist(name: str) -> None:
    unknown = []
    for command, *arguments in invocations(TEXTS[name]):
        known = options_of(command, *arguments) or {"--version", "--help"} & {command}
        options = [argument.partition("=")[0] for argument in arguments if argument.startswith("-")]
        if not known or not {*options, "--help"} <= known | {"--help"}:
            unknown.append([command, *arguments])
    assert unknown == []


@EVERYWHERE
def test_options_that_stand_alone_are_those_of_a_command(name: str) -> None:
    within = [options_of(group, command) for group in GROUPS for command in COMMANDS[group].commands]
    known = {"--version"}.union(*map(options_of, COMMANDS), *within)
    found = {span.split()[0] for span in spans(TEXTS[name]) if span.startswith("--")}
    assert found <= known


def test_the_readme_names_every_command() -> None:
    table = TEXTS["README.md"].partition("| command | does |")[2].partition("\n\n")[0]
    named = {command for command, *_ in invocations(table)}
    assert named == set(COMMANDS)


@EVERYWHERE
def test_targets_of_make_exist(name: str) -> None:
    found = {
        word
        for line in lines_of_code(TEXTS[name])
        if re.match(r"make\s", line)
        for word in shlex.split(line)[1:]
        if "=" not in word
    }
    assert found <= TARGETS


@EVERYWHERE
def test_files_of_the_project_exist(name: str) -> None:
    missing = []
    for span in spans(TEXTS[name]):
        path, _, test = span.partition("::")
        if re.fullmatch(r"(promoterd|tests|docs|config|systemd|tools|benchmarks|\.ci)/[\w./-]+", path):
            file = ROOT / path
            if not file.exists() or (test and not re.search(rf"(def|class) {test}\b", file.read_text("utf-8"))):
                missing.append(span)
    assert missing == []


def policies() -> Iterator[Any]:
    for name, text in TEXTS.items():
        for number, (language, block) in enumerate(blocks(text)):
            if language == "yaml" and name != "docs/policy.md" and "promoterd-heat:" not in block:
                yield pytest.param(block, id=f"{name}-{number}")


@pytest.mark.parametrize("block", list(policies()))
def test_policies_are_good(tmp_path: Path, block: str) -> None:
    if "mounts:" not in block:
        block += "mounts: [{mountpoint: /x, rules: [{path: apps/**}]}]\n"
    file = tmp_path / "policy.yaml"
    file.write_text(block, "utf-8")
    known = ["auto", *backends.names(), "released"]  # the last one is that of the worked example
    policy = load_policy(file, known_backends=known, known_heat_sources=heat.names())
    assert policy.warnings == ()


def test_lists_are_as_they_are_written() -> None:
    lists = [block for text in TEXTS.values() for language, block in blocks(text) if "promoterd-heat:" in block]
    assert lists
    assert [dumps(loads(block)) for block in lists] == lists


def test_the_first_policy_does_what_it_says() -> None:
    (block,) = [block for language, block in blocks(TEXTS["README.md"]) if language == "yaml"]
    (mount,) = parse_policy(block).mounts
    assert mount.backend == "observe"
    assert [mount.is_growing(path) for path in (b"apps", b"apps/nuke", b"apps/nuke/15.1")] == [True, True, False]
    for path in (b"apps/nuke/15.1", b"apps/nuke/15.1/lib/plugins"):
        rule = mount.rule_for(path)
        assert rule is not None
        assert (rule.promote, rule.min_age, rule.writers) == ("hot", 3600.0, "none")
    assert not mount.may_promote(b"shots")
    assert f" {mount.mountpoint}\n" in TEXTS["README.md"].partition("mount -t overlay")[2]


@pytest.mark.needs("root", "overlay")
def test_the_mount_in_the_readme_is_fit(make_overlay: Callable[..., MountedOverlay]) -> None:
    (options,) = re.findall(r"mount -t overlay \S+ -o \S*workdir=[^,]+,(\S+) /srv/software", TEXTS["README.md"])
    made = make_overlay({"apps": {"a": "1"}}, options=options, upper_fs="ext4")
    overlay = mounts.overlay_at(made.mountpoint)
    findings = OpaqueBackend.findings(overlay, probe.gather(overlay))
    assert [finding.message for finding in findings if finding.severity is Severity.REFUSE] == []


def test_the_changelog_begins_with_this_version() -> None:
    versions = re.findall(r"^## \[([^]]+)\](.*)$", TEXTS["CHANGELOG.md"], re.MULTILINE)
    assert versions[0] == ("Unreleased", ": 0.1.0") or versions[0][0] == "0.1.0"


def counted_in(text: str, state: str) -> dict[str, dict[str, str]]:
    """What was counted for a directory of 500 files: workloads, and for each the states."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    at = next(number for number, row in enumerate(rows) if row[0] == "500 times" and state in row)
    table = rows[at + 2 : at + 8]
    return {row[0]: dict(zip(rows[at], row, strict=True)) for row in table}


def test_what_nfs_costs_is_what_the_lab_counted() -> None:
    run = TEXTS["docs/benchmarks.md"].partition("### Linux 6.12")[2].partition("\n### ")[0]
    assert "NFS 4.2" in run.partition("\n")[0]
    layers = TEXTS["docs/benchmarks.md"].partition("<!-- layers -->")[2].partition("<!-- end -->")[0]
    counted = counted_in(run, "opaque")
    for workload, cells in counted_in(layers, "layer").items():
        assert cells["unpromoted"] == counted[workload]["unpromoted"], "both runs began at the same point"
        counted[workload] |= cells
    said = TEXTS["docs/how-it-works.md"].partition(HEADINGS)[2]
    for row, workload in {
        "a name that does not exist": "stat missing",
        "list the directory": "readdir",
        "stat a file that exists": "stat existing",
        "`ls -l`": "ls -l",
        "open and read each file": "open+read",
    }.items():
        states_said = ("unpromoted", "opaque", "layer", "layer+chain", "layer+chain+data")
        line = " | ".join([row, *(counted[workload][state].replace(",", "") for state in states_said)])
        assert f"| {line} |" in said, line
    told = r"^\| (plain|opaque|layer\+chain|layer\+chain\+data) \| (.*) \|$"
    both = run.partition("#### One launch\n")[2].partition("####")[0] + layers.partition("| state |")[2]
    launches = dict(reversed(re.findall(told, both, re.MULTILINE)))  # plain as the other states were compared with it
    assert set(launches) == {"plain", "opaque", "layer+chain", "layer+chain+data"}
    for launch in launches.values():
        cells = launch.split(" | ")
        assert cells[0] in TEXTS["README.md"], "RPCs of a launch"
    assert launches["plain"].split(" | ")[-2] in TEXTS["README.md"], "missing names"
    assert launches["opaque"].split(" | ")[-2] == "0"
