"""What a run says of itself."""

import sys

import pytest

from lab.__main__ import _command


@pytest.mark.parametrize(
    ("series", "given", "command"),
    [
        ("6.12", ["--kernel", "6.12"], "make lab"),
        ("6.1", ["--kernel", "6.1", "--short"], 'make lab KERNEL=6.1 ARGS="--short"'),
        ("6.12", ["--nfs", "3", "--latency", "1"], 'make lab ARGS="--nfs 3 --latency 1"'),
    ],
)
def test_the_command_repeats_the_run(
    monkeypatch: pytest.MonkeyPatch, series: str, given: list[str], command: str
) -> None:
    monkeypatch.setattr(sys, "argv", ["lab", *given])
    assert _command(series) == command
