import io
import json
import logging
import os
import pty
import subprocess
import sys
import textwrap
import warnings
from pathlib import Path
from typing import Any

import pyinotify
import pytest
import structlog

from promoterd import log
from promoterd.errors import MountNotFound, UsageError
from promoterd.states import State


def written(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def json_log(level: log.Level = "info") -> io.StringIO:
    stream = io.StringIO()
    log.configure("json", level, stream)
    return stream


def test_one_line_of_json_for_one_event() -> None:
    stream = json_log()
    log.get_logger("promoterd.test").info(
        "directory_complete", entries=500, reason="hot", path=b"opt/lib", mount=b"/mnt/app", state=State.ACTIVE
    )
    (event,) = written(stream)
    assert list(event)[:6] == ["timestamp", "level", "event", "mount", "path", "reason"]
    del event["timestamp"]
    assert event == {
        "level": "info",
        "event": "directory_complete",
        "mount": "/mnt/app",
        "path": "opt/lib",
        "reason": "hot",
        "entries": 500,
        "state": "active",
        "logger": "promoterd.test",
    }


class Unshowable:
    def __repr__(self) -> str:
        raise ZeroDivisionError


@pytest.mark.parametrize("format", ["json", "console"])
@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (b"new\nline \xff \x1b[31m", r"new\nline \xff \x1b[31m"),
        (os.fsdecode(b"caf\xe9"), r"caf\xe9"),
        ("\ud800 alone", r"\ud800 alone"),
        ("tab\tand\r\n", r"tab\tand\r\n"),
        ("grüße 漢", "grüße 漢"),
        (Path(os.fsdecode(b"/x\xff")), r"/x\xff"),
        (OSError(2, "No such\nfile", b"\xff"), "No such\\nfile"),
        (MountNotFound(mountpoint="/mnt"), "No overlay is mounted at /mnt. (mount it first"),
        (Unshowable(), "<Unshowable>"),
        (frozenset({b"\xff"}), r"\xff"),
    ],
)
def test_odd_values_never_raise_nor_break_the_line(format: log.Format, value: object, shown: str) -> None:  # noqa: A002
    stream = io.StringIO()
    log.configure(format, "info", stream)
    log.get_logger("promoterd.test").warning("happened", path=value, nested={"deep": [value, {value: value}]})
    line = stream.getvalue()
    assert line.count("\n") == 1
    assert line.isprintable() or line[:-1].isprintable()
    if format == "json":
        assert shown in json.loads(line)["path"] or json.loads(line)["path"] == [shown]
    else:
        assert shown in line.replace("\\\\", "\\")  # a value with spaces is quoted, and escaped once more for that


def test_a_value_that_holds_itself_does_not_raise() -> None:
    stream = json_log()
    ring: list[object] = []
    ring.append(ring)
    log.get_logger("promoterd.test").info("happened", ring=ring)
    assert written(stream)[0]["event"] == "happened"


def test_the_level_holds_for_us_and_for_libraries() -> None:
    stream = json_log("warning")
    log.get_logger("promoterd.test").info("quiet")
    logging.getLogger("somebody").info("quiet too")
    log.get_logger("promoterd.test").warning("loud")
    logging.getLogger("somebody").warning("loud %s", "too")
    assert [(event["event"], event["logger"]) for event in written(stream)] == [
        ("loud", "promoterd.test"),
        ("loud too", "somebody"),
    ]
    json_log("debug")
    log.get_logger("promoterd.test").debug("after")


def test_configuring_again_replaces_what_was_configured() -> None:
    logger = log.get_logger("promoterd.test")
    first = json_log()
    logger.info("one")
    second = json_log("debug")
    logger.debug("two")
    assert ([event["event"] for event in written(first)], [event["event"] for event in written(second)]) == (
        ["one"],
        ["two"],
    )


def test_what_libraries_print_by_themselves_goes_through_it(capsys: pytest.CaptureFixture[str]) -> None:
    pyinotify.log.addHandler(logging.StreamHandler(sys.stderr))
    stream = json_log()
    pyinotify.log.error("add_watch: cannot watch \udcff")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("old ways", DeprecationWarning, stacklevel=1)
    (error, warning) = written(stream)
    assert (error["event"], error["logger"], error["level"]) == (r"add_watch: cannot watch \xff", "pyinotify", "error")
    assert "old ways" in warning["event"]
    assert capsys.readouterr() == ("", "")


def test_an_exception_is_one_event_with_its_traceback() -> None:
    stream = json_log()
    try:
        os.stat(b"/nowhere/\xff")
    except OSError:
        log.get_logger("promoterd.test").exception("failed", path=b"\xff")
    (event,) = written(stream)
    assert "Traceback" in event["exception"]
    assert "FileNotFoundError" in event["exception"]
    assert event["path"] == r"\xff"


def test_context_is_part_of_the_event() -> None:
    stream = json_log()
    with structlog.contextvars.bound_contextvars(mount=b"/mnt/app"):
        log.get_logger("promoterd.test").info("inside")
        logging.getLogger("somebody").info("inside too")
    log.get_logger("promoterd.test").info("outside")
    assert [event.get("mount") for event in written(stream)] == ["/mnt/app", "/mnt/app", None]


def test_unknown_words_are_refused() -> None:
    with pytest.raises(UsageError, match="unknown log level 'loud'") as caught:
        log.configure(level="loud")  # type: ignore[arg-type]
    assert caught.value.hint == "one of debug, info, warning, error"
    with pytest.raises(UsageError, match="unknown log format 'xml'"):
        log.configure("xml")  # type: ignore[arg-type]


SCRIPT = textwrap.dedent("""
    from promoterd import log
    log.configure()
    log.get_logger("promoterd.test").error("mount_stuck", mount=b"/mnt/\\xff\\xc3\\xbc")
""")


def test_a_terminal_gets_text() -> None:
    controller, terminal = pty.openpty()
    subprocess.run([sys.executable, "-c", SCRIPT], stderr=terminal, check=True)
    os.close(terminal)
    text = os.read(controller, 65536)
    os.close(controller)
    assert b"mount_stuck" in text
    assert rb"/mnt/\xff" in text
    assert b"\x1b[" in text
    assert not text.startswith(b"{")


@pytest.mark.parametrize("locale", ["C.UTF-8", "POSIX"])
def test_a_pipe_gets_json_and_the_journal_a_priority_before_it(locale: str) -> None:
    environment = {"LC_ALL": locale, "PATH": os.environ["PATH"], "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    command = [sys.executable, "-c", SCRIPT]
    plain = subprocess.run(command, stderr=subprocess.PIPE, check=True, env=environment).stderr
    assert json.loads(plain)["mount"] == "/mnt/\\xffü"
    reader, writer = os.pipe()
    status = os.fstat(writer)
    environment["JOURNAL_STREAM"] = f"{status.st_dev}:{status.st_ino}"
    subprocess.run(command, stderr=writer, check=True, env=environment)
    os.close(writer)
    with open(reader, "rb") as file:
        line = file.read()
    assert line.startswith(b"<3>{")
    assert json.loads(line[3:])["event"] == "mount_stuck"
