"""What can be typed, and what is said of what cannot."""

import json

import pytest
from pydantic_core import SchemaError, SchemaValidator, core_schema
from typer.testing import CliRunner

from promoterd import __version__
from promoterd.cli.app import app
from promoterd.cli.entry import execute, explain
from promoterd.errors import InternalError, Interrupted, PromoterdError

COMMANDS = (
    "run", "check", "doctor", "layout", "status", "top", "promote", "reopen", "explain", "pause", "resume", "retire",
    "reload", "demo", "fsck", "record", "warm", "heat",
)  # fmt: skip


def test_the_help_names_every_command() -> None:
    result = CliRunner().invoke(app, ["--help"])
    assert result.exit_code == 0
    listed = {line.split()[0] for line in result.output.split("Commands:")[1].splitlines() if line.strip()}
    assert listed == set(COMMANDS)
    assert "..." not in result.output.split("Commands:")[1], "a summary is cut off"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str) -> None:
    result = CliRunner().invoke(app, [command, "--help"])
    assert result.exit_code == 0
    assert f"promoterd {command}" in result.output or f"root {command}" in result.output or command in result.output
    assert ("--json" in result.output) == (command not in ("run", "heat"))


def test_the_commands_about_lists_explain_themselves() -> None:
    listed = CliRunner().invoke(app, ["heat", "--help"]).output
    for command in ("merge", "dump"):
        assert command in listed
        assert "--json" in CliRunner().invoke(app, ["heat", command, "--help"]).output


def test_the_version() -> None:
    result = CliRunner().invoke(app, ["--version"])
    assert (result.exit_code, result.output) == (0, f"promoterd {__version__}\n")


@pytest.mark.parametrize(
    ("arguments", "named", "way_out"),
    [
        (["stauts"], "stauts", "status"),
        (["--vresion"], "--vresion", "--version"),
        (["status", "--josn"], "--josn", "--json"),
        (["promote", "--recursiv", "/x"], "--recursiv", "--recursive"),
        (["run", "--confg", "x"], "--confg", "--config"),
        (["promote"], "PATH", "promoterd promote --help"),
        (["retire"], "MOUNT", "promoterd retire --help"),
        (["explain"], "PATH", "promoterd explain --help"),
        (["explain", "/a", "/b"], "/b", "promoterd explain --help"),
        (["top", "-n", "many"], "--limit", "promoterd top --help"),
        (["top", "-n", "0"], "--limit", "promoterd top --help"),
        (["top", "--interval", "0"], "--interval", "promoterd top --help"),
        (["run", "--config"], "--config", "promoterd --help"),
        (["reopen"], "nothing to reopen", "--all"),
        (["reopen", "/x", "--upper", "/u"], "--upper", "--offline"),
        (["reopen", "/x", "--lower", "/l"], "--lower", "--offline"),
        (["reopen", "--deferred"], "--deferred", "--offline"),
        (["reopen", "--offline", "/x"], "--upper", "upperdir"),
        (["reopen", "--offline", "--upper", "/u"], "--deferred", "--help"),
        (["reopen", "--offline", "--all", "--deferred", "--upper", "/u"], "--all", "--help"),
        (["explain", ""], "empty path", ""),
        (["explain", "a/../b"], "..", "direct path"),
        (["explain", "/" + "x" * 5000], "4095 bytes", ""),
        (["pause", "/" + "x/" * 3000], "4095 bytes", ""),
        (["status", "--\udcff\n"], "\\x0a", "promoterd status --help"),
    ],
)
def test_a_wrong_line_names_what_is_wrong_and_a_way_out(
    arguments: list[str], named: str, way_out: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert execute(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    lines = err.splitlines()
    assert lines[0].startswith("promoterd: ")
    assert named in lines[0]
    assert way_out in err
    assert len(lines) <= 2


def test_a_wrong_line_in_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["promote", "--json", "--recursiv"]) == 2
    out, err = capsys.readouterr()
    assert err == ""
    error = json.loads(out)["error"]
    assert error["class"] == "UsageError"
    assert error["exit_code"] == 2
    assert "--recursiv" in error["message"]
    assert "--recursive" in error["hint"]


def test_what_follows_two_dashes_is_no_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["explain", "--", "--json", "/b"]) == 2
    assert capsys.readouterr().out == ""


def test_no_command_at_all_shows_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    code = execute([])
    out, err = capsys.readouterr()
    assert code == 2
    assert "Commands:" in out + err


class _Interrupting:
    def __repr__(self) -> str:
        raise KeyboardInterrupt


class _Broken:
    def __repr__(self) -> str:
        raise ValueError


@pytest.mark.parametrize(("value", "kind"), [(_Interrupting, Interrupted), (_Broken, InternalError)])
def test_a_ctrl_c_that_fell_into_the_building_of_a_model(value: type, kind: type[PromoterdError]) -> None:
    with pytest.raises(SchemaError) as caught:
        SchemaValidator(core_schema.literal_schema([value()]))
    assert type(explain(caught.value)) is kind
