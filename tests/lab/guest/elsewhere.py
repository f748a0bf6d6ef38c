"""A process that uses mounts on behalf of a test: a heat source leaves out what its own process does."""

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

_LOOP = """\
import json, os, subprocess, sys
for line in sys.stdin.buffer:
    what, rest = line[:1], line[1:-1]
    if what == b"L":
        try:
            os.lstat(rest)
        except OSError:
            pass
    else:
        code = subprocess.call(json.loads(rest)) if rest else 0
        sys.stdout.write(f"{code}\\n")
        sys.stdout.flush()
"""


class Elsewhere:
    """The process; it does what it is told."""

    def __init__(self, process: "subprocess.Popen[bytes]") -> None:
        self._process = process

    def look_up(self, paths: Iterable[str | bytes]) -> None:
        """lstat(2) each of them, whether it exists or not; returns when that is done."""
        assert self._process.stdin is not None
        for path in paths:
            self._process.stdin.write(b"L" + os.fsencode(path) + b"\n")
        self._answer(b"")

    def run(self, *command: str) -> None:
        """Run a command, which must end well."""
        self._answer(json.dumps(command).encode())

    def python(self, code: str, *arguments: str) -> None:
        """Run a few lines of Python, as :meth:`run`."""
        self.run(sys.executable, "-c", code, *arguments)

    def _answer(self, command: bytes) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(b"R" + command + b"\n")
        self._process.stdin.flush()
        assert self._process.stdout.readline() == b"0\n"


@contextmanager
def elsewhere() -> Iterator[Elsewhere]:
    """Start it, and end it after the block."""
    command: Sequence[str] = [sys.executable, "-c", _LOOP]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd="/") as process:
        try:
            yield Elsewhere(process)
        finally:
            process.kill()
