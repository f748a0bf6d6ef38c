"""One launch of the application: its phases as fresh processes, one after the other.

Each process starts without any PYTHON* or LD_* variable but these:

- ``libraries`` has LD_LIBRARY_PATH. ld.so searches it for what the interpreter itself needs too (libc.so.6, ...), which
  misses in every library directory, as in any program that is started with such a path.
- ``modules`` has PYTHONPATH, with the directory of this package *behind* the search directories. The interpreter's own
  start-up searches all of them: it imports ``encodings``, which is not frozen, before anything else, and so lists every
  Python search directory. Each later import (of the standard library, of ``lab``, of what the manifest names) asks for
  the time stamp of each directory up to where it is found, and looks up nothing that was not listed.
- the others have this package's directory as PYTHONPATH, and search the share for nothing but what they are to find.

Nothing is ever written: PYTHONDONTWRITEBYTECODE is set, and ``-P`` keeps the current directory off the path.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

from lab.manifest import Manifest

_LAB = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
"""The directory from which the package ``lab`` is imported."""


class LaunchFailed(Exception):
    """A phase did not find what it must find, or did not end in time; the message is its own."""


@dataclass(frozen=True)
class PhaseResult:
    """Seconds include the start of the process."""

    phase: str
    seconds: float
    found: int
    missed: int | None
    """Names that were not there; None where ld.so or the importers search, who do not tell."""


@dataclass(frozen=True)
class LaunchResult:
    """The phases in the order in which they ran."""

    phases: tuple[PhaseResult, ...]

    @property
    def seconds(self) -> float:
        return sum(phase.seconds for phase in self.phases)


def launch(
    root: str,
    manifest_path: str,
    phases: Sequence[str] = ("libraries", "modules", "plugins"),
    timeout: float = 600.0,
) -> LaunchResult:
    """Launch the application on the share that is seen at ``root``. Each phase may last ``timeout`` seconds.

    Raises LaunchFailed with what the first failing phase said.
    """
    root, manifest_path = os.path.abspath(root), os.path.abspath(manifest_path)
    manifest = Manifest.load(manifest_path)
    return LaunchResult(
        tuple(_run(phase, root, manifest_path, _environment(phase, root, manifest), timeout) for phase in phases)
    )


def _run(phase: str, root: str, manifest_path: str, environment: dict[str, str], timeout: float) -> PhaseResult:
    begin = time.monotonic()
    try:
        ran = subprocess.run(
            [sys.executable, "-P", "-m", "lab.guest.storm", phase, root, manifest_path],
            env=environment,
            cwd="/",
            capture_output=True,
            check=True,
            timeout=timeout,
        )
    except subprocess.TimeoutExpired:
        raise LaunchFailed(f"{phase}: not done within {timeout:g} s") from None
    except subprocess.CalledProcessError as error:
        raise LaunchFailed(error.stderr.decode(errors="replace").strip() or f"{phase}: {error}") from None
    seconds = time.monotonic() - begin
    counts = json.loads(ran.stdout)
    return PhaseResult(phase, seconds, counts["found"], counts.get("missed"))


def _environment(phase: str, root: str, manifest: Manifest) -> dict[str, str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "LD_"))}
    environment["PYTHONDONTWRITEBYTECODE"] = "1"
    searched = [f"{root}/{path}" for path in manifest.python_path] if phase == "modules" else []
    environment["PYTHONPATH"] = ":".join([*searched, _LAB])
    if phase == "libraries":
        environment["LD_LIBRARY_PATH"] = ":".join(f"{root}/{path}" for path in manifest.library_path)
    return environment
