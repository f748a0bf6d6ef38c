"""What one run of the lab does: guests with a job each, some at a time."""

import fcntl
import os
import shlex
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from typing import Self

from lab import disks, image
from lab.errors import LabError
from lab.kernel import Kernel
from lab.machine import Disk, Machine
from lab.share import Scale

AT_ONCE = 3
"""Guests that run at the same time; each keeps one CPU busy for about two thirds of the time."""
_PYTEST = "python3 -m pytest -c /lab/lab/guest/pytest.ini -p no:cacheprovider"


@dataclass(frozen=True)
class Job:
    """Commands for the guest's shell, one for each boot; the upper layers outlive the boots of a job."""

    name: str
    boots: Sequence[str]
    seconds: float
    """How long one boot may take."""
    results: list[str] = field(default_factory=list, compare=False)


def measuring(nfs: str, options: Sequence[str], seconds: float) -> Job:
    """All states measured over one NFS version; ``options`` are those of :mod:`lab.guest.measure`."""
    return Job(f"measure-{nfs}", [shlex.join(["python3", "-m", "lab.guest.measure", "--nfs", nfs, *options])], seconds)


def racing(latency: float, seconds: float) -> Job:
    """Times as ratios within one boot, see :mod:`lab.guest.race`."""
    return Job("race", [shlex.join(["python3", "-m", "lab.guest.race", "--latency", str(latency or 1.0)])], seconds)


def neighbouring(repeats: int, seconds: float) -> Job:
    """What another client notices of the daemon's work, see :mod:`lab.guest.neighbour`."""
    return Job("neighbour", [shlex.join(["python3", "-m", "lab.guest.neighbour", "--repeats", str(repeats)])], seconds)


def testing(names: str, seconds: float, *, thorough: bool) -> list[Job]:
    """The tests that run in one boot, in two guests; if there are names, those that pytest's ``-k`` finds, in one."""
    selected = [] if thorough else ["-m", "not thorough"]
    parts = {"tests": ["-k", names]} if names else {f"tests-{n}": ["--part", f"{n}/2"] for n in (1, 2)}
    return [
        Job(name, [f"{_PYTEST} {shlex.join([*selected, *part, '/lab/lab/guest/tests'])}"], seconds)
        for name, part in parts.items()
    ]


def rebooting(seconds: float) -> Job:
    """The tests that need the guest to be booted again."""
    boots = [f"{_PYTEST} /lab/lab/guest/reboot/test_{when}.py" for when in ("before", "after")]
    return Job("reboot", boots, seconds)


class Lab:
    """A kernel, a share and a place for what comes out of it, which only one lab works in at a time; a context manager.

    ``instructions``: as for :class:`lab.machine.Machine`. Raises LabError when it is entered while another lab is at
    work there.
    """

    def __init__(self, root: str, build: str, said: Callable[[str, str], None], *, instructions: bool = False) -> None:
        self._root, self._build, self._said, self._instructions = root, build, said, instructions
        self._archives: list[str] = []
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        os.makedirs(self._build, exist_ok=True)
        lock = self._stack.enter_context(open(f"{self._build}/lock", "wb"))
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._stack.close()
            raise LabError(
                f"another lab is at work in {self._build}: wait for its end, or say --build DIRECTORY"
            ) from None
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def build(self, kernel: Kernel, scale: Scale) -> None:
        """Make what every guest is made of. Raises LabError."""
        self._kernel = kernel
        self._home = f"{self._build}/{kernel.release}"
        os.makedirs(self._home, exist_ok=True)
        self._share, manifest = disks.share_disk(f"{self._build}/disks", scale)
        self._archives = [f"{self._home}/system.cpio", f"{self._home}/project.cpio"]
        image.write_system(self._archives[0], kernel)
        image.write_project(self._archives[1], self._root, manifest)

    def run(self, jobs: Sequence[Job]) -> list[LabError]:
        """Do them all; returns what failed. The directories with what each boot left are added to its results."""
        with ThreadPoolExecutor(AT_ONCE) as pool:
            return [failure for failure in pool.map(self._do, jobs) if failure is not None]

    def _do(self, job: Job) -> LabError | None:
        home = f"{self._home}/{job.name}"
        os.makedirs(home, exist_ok=True)
        try:
            uppers = [disks.upper_disk(kind, f"{home}/{kind}.img") for kind in ("ext4", "xfs")]
            for number, command in enumerate(job.boots):
                image.write_job(f"{home}/job.cpio", command)
                machine = Machine(
                    kernel=self._kernel.image,
                    archives=[*self._archives, f"{home}/job.cpio"],
                    disks=[Disk(self._share), *(Disk(path, keep=len(job.boots) > 1) for path in uppers)],
                    console=f"{home}/console-{number}.log",
                    said=lambda line: self._said(job.name, line),
                    instructions=self._instructions,
                )
                machine.run(f"{home}/results-{number}", job.seconds)
                job.results.append(f"{home}/results-{number}")
        except LabError as failure:
            return failure
        finally:
            for kind in ("ext4", "xfs"):
                with suppress(FileNotFoundError):
                    os.unlink(f"{home}/{kind}.img")
        return None
