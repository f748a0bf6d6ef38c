"""The command line without the loading of its modules: a process that has loaded them all forks for each run of it.

Loading takes most of a second of a processor, and ten in an emulated machine. What comes of it is a process as any
other, with its own arguments, streams, environment and directory. Whatever changes how an interpreter starts, or looks
at that, starts one.
"""

import contextlib
import multiprocessing
import os
import pkgutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from multiprocessing.context import ForkServerContext, ForkServerProcess
from typing import NoReturn

import promoterd
from promoterd.cli import main

NOBODY = 65534
_NOT_LOADED = ("promoterd.demo", "promoterd.__main__")


class Forked:
    """``promoterd`` with these arguments, as :class:`subprocess.Popen` shows it; its outputs are appended to files.

    ``nobody`` runs it as a user who need not be able to read the interpreter's own files.
    """

    def __init__(
        self,
        arguments: Sequence[str | bytes],
        *,
        stdout: str,
        stderr: str,
        env: Mapping[str, str],
        cwd: str | bytes | None = None,
        nobody: bool = False,
    ) -> None:
        self.args = ["promoterd", *map(os.fsdecode, arguments)]
        self._process: ForkServerProcess = _context().Process(
            target=_become, args=(self.args, (stdout, stderr), dict(env), cwd or os.getcwd(), nobody), daemon=True
        )
        self._process.start()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    def poll(self) -> int | None:
        """The exit code, or minus the number of the signal that ended it; None while it runs."""
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        """Raises subprocess.TimeoutExpired."""
        self._process.join(timeout)
        code = self.poll()
        if code is None:
            assert timeout is not None
            raise subprocess.TimeoutExpired(self.args, timeout)
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


@cache
def _context() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    found = pkgutil.walk_packages(promoterd.__path__, "promoterd.")
    context.set_forkserver_preload(
        [
            *(module.name for module in found if not module.name.startswith(_NOT_LOADED)),
            *("rich.live", "rich.progress", "rich.table", "typer.rich_utils"),
        ]
    )
    return context


def _become(
    arguments: list[str], outputs: Sequence[str], env: dict[str, str], cwd: str | bytes, nobody: bool
) -> NoReturn:
    for number, path in enumerate((os.devnull, *outputs)):
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT if number else os.O_RDONLY
        opened = os.open(path, flags, 0o600)
        os.dup2(opened, number)
        os.close(opened)
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    if nobody:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
    sys.argv = arguments
    main()
