"""The tables of docs/operations.md are those of the code."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from promoterd import errors
from promoterd.cli.entry import CLOSED
from promoterd.control.protocol import _OPTIONS, Request, line_to_request
from promoterd.metrics import EFFECTS, OUTCOMES, REOPENS, WARMING, Metrics

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "operations.md").read_text()
LEVEL_BY_CASE = frozenset({"mount", "heat_sources"})
"""Events that are logged at one level or another."""
LEVELS = {"debug": "debug", "info": "info", "warning": "warning", "error": "error", "exception": "error"}


def table(heading: str) -> list[list[str]]:
    """The cells of the first table below a heading."""
    section = re.split(r"^#+ ", TEXT.split(f"# {heading}\n", 1)[1], maxsplit=1, flags=re.MULTILINE)[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[re.sub(r"^`([^`]*)`$", r"\1", cell.strip()) for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_every_error_stands_with_its_exit_code() -> None:
    documented = {(name, int(code)) for code, name, _ in table("Exit codes") if name}
    defined = {
        (name, error.exit_code)
        for name, error in vars(errors).items()
        if isinstance(error, type) and issubclass(error, errors.PromoterdError)
    }
    assert documented == defined
    assert {int(code) for code, name, _ in table("Exit codes") if not name} == {0, CLOSED}
    codes = [int(code) for code, _, _ in table("Exit codes")]
    assert codes == sorted(codes)


def test_every_metric_stands_with_its_type_and_labels() -> None:
    metrics = Metrics()
    families = [
        metric for metric in vars(metrics).values() if hasattr(metric, "collect") and metric is not metrics.registry
    ]
    defined = {
        (family.name + ("_total" if family.type == "counter" else ""), family.type, ", ".join(metric._labelnames))
        for metric in families
        for family in metric.collect()
    }
    assert {(name, kind, labels) for name, kind, labels, _ in table("Metrics")} == defined
    assert len(defined) > 30


@pytest.mark.parametrize(
    ("metric", "values"),
    [
        ("promoterd_promotions_total", OUTCOMES),
        ("promoterd_activation_effects_total", EFFECTS),
        ("promoterd_reopens_total", REOPENS),
        ("promoterd_warm_directories", WARMING),
    ],
)
def test_the_values_of_a_label_are_named(metric: str, values: tuple[str, ...]) -> None:
    (meaning,) = [text for name, _, _, text in table("Metrics") if name == metric]
    assert [value for value in values if not re.search(rf"\b{value}\b", meaning)] == []


def test_alarms_are_raised_for_metrics_that_exist() -> None:
    known = {name for name, _, _, _ in table("Metrics")}
    used = {
        name
        for expression, _ in table("What to raise an alarm for")
        for name in re.findall(r"promoterd_\w+", expression)
    }
    assert len(used) > 8
    assert used <= known


def logged() -> Iterator[tuple[str, str]]:
    """Each event in the code, with its level."""
    for file in (ROOT / "promoterd").rglob("*.py"):
        if "demo" in file.parts:
            continue
        for node in ast.walk(ast.parse(file.read_text())):
            match node:
                case ast.Call(func=ast.Attribute(value=logger, attr=method), args=[ast.Constant(value=str(event)), *_]):
                    if method in LEVELS and re.search(r"\b_?log(ger)?$", ast.unparse(logger)):
                        yield event, LEVELS[method]


def test_every_log_event_stands_with_its_level() -> None:
    defined = {pair for pair in logged() if pair[0] not in LEVEL_BY_CASE}
    documented = {(event, level) for event, level, _ in table("Log events") if event not in LEVEL_BY_CASE}
    assert documented == defined
    assert len(defined) > 30


def test_the_options_of_each_request_are_named() -> None:
    documented = {
        command: set(re.findall(r"`(\w+)`", f"`{options}`"))
        for commands, options in table("The control socket")
        for command in re.findall(r"\w+", commands)
    }
    assert documented == {command: set(options) for command, options in _OPTIONS.items()}


def test_the_request_in_the_text_is_a_request() -> None:
    (example,) = re.findall(r"^(\{\"version\".*\})$", TEXT, re.MULTILINE)
    assert line_to_request(example.encode()) == Request(command="promote", path=b"/srv/app/lib", recursive=True)
