"""Programs of the host."""

import shutil
import subprocess

from lab.errors import LabError

SEARCHED = ("/usr/sbin", "/usr/bin", "/sbin", "/bin")
"""Where a distribution puts programs; a plain user's PATH leaves some of it out."""


def found(program: str) -> str | None:
    """Its path, or None."""
    return shutil.which(program) or shutil.which(program, path=":".join(SEARCHED))


def run(*command: str, cwd: str | None = None) -> str:
    """What it says. Raises LabError if it is missing, or with what it says if it fails."""
    program = found(command[0])
    if program is None:
        raise LabError(f"{command[0]} is missing here; `make lab` as root installs what it needs")
    done = subprocess.run([program, *command[1:]], cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode:
        raise LabError(f"{' '.join(command)} failed: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout
