"""The command line as users run it: a process of its own, its output, its exit code."""

import json
import os
import pty
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support.forking import Forked
from support.needs import need

PATIENCE = 60.0


@dataclass(frozen=True)
class Ran:
    """What a command came to."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def hint(self) -> str:
        """The way out that the message names; empty if it names none."""
        return self.err.partition("  way out: ")[2].strip()


def environment(changes: Mapping[str, str | None] | None = None) -> dict[str, str]:
    """Ours, without what would change the commands' output."""
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("PROMOTERD_", "COLUMNS", "FORCE_"))
    }
    for name, value in (changes or {}).items():
        kept.pop(name, None)
        if value is not None:
            kept[name] = value
    return kept


def promoterd(
    *arguments: str | bytes,
    cwd: str | bytes | None = None,
    env: Mapping[str, str | None] | None = None,
    prefix: tuple[str, ...] = (),
    nobody: bool = False,
) -> Ran:
    """Run a command; a traceback is a failure whatever the test looks at. ``prefix`` is a program to run it by.

    With ``prefix`` or ``env`` it has an interpreter of its own, see :mod:`support.forking`, and is not ``nobody``'s.
    """
    if prefix or env:
        assert not nobody
        ran = _start(arguments, cwd, env, prefix)
    else:
        ran = _fork(arguments, cwd, nobody=nobody)
    assert "Traceback" not in ran.out + ran.err, ran.out + ran.err
    return ran


def _fork(arguments: Sequence[str | bytes], cwd: str | bytes | None, *, nobody: bool) -> Ran:
    if nobody:
        need("root")
    with tempfile.TemporaryDirectory(prefix="promoterd-said-") as home:
        out, err = Path(home, "out"), Path(home, "err")
        forked = Forked(arguments, stdout=str(out), stderr=str(err), env=environment(), cwd=cwd, nobody=nobody)
        try:
            code = forked.wait(PATIENCE)
        finally:
            forked.kill()
        return Ran(code, out.read_text("utf-8"), err.read_text("utf-8"))


def _start(
    arguments: Sequence[str | bytes],
    cwd: str | bytes | None,
    env: Mapping[str, str | None] | None,
    prefix: Sequence[str],
) -> Ran:
    done = subprocess.run(
        [*prefix, sys.executable, "-m", "promoterd", *arguments],
        capture_output=True,
        cwd=cwd,
        env=environment(env),
        timeout=PATIENCE,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    return Ran(done.returncode, done.stdout.decode("utf-8"), done.stderr.decode("utf-8"))


def on_a_terminal(*arguments: str, until: str | None = None) -> tuple[int, str]:
    """Run a command on a terminal of its own; its exit code, and all that it wrote there.

    ``until``: when that is seen there, Ctrl-C is typed.
    """
    leader, follower = pty.openpty()
    with subprocess.Popen(
        ["setsid", "--ctty", sys.executable, "-m", "promoterd", *arguments],
        stdin=follower,
        stdout=follower,
        stderr=follower,
        env=environment({"TERM": "xterm", "COLUMNS": "150"}),
    ) as process:
        os.close(follower)
        shown = b""
        try:
            while part := os.read(leader, 65536):
                shown += part
                if until is not None and until.encode() in shown:
                    os.write(leader, b"\x03")
                    until = None
        except OSError:  # EIO: nobody has the terminal open any more
            pass
        finally:
            os.close(leader)
    return process.returncode, shown.decode()
