"""What one run of the lab does: guests with a job each, two at a time."""

import fcntl
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import IO

from lab import disks, image
from lab.errors import GuestFailed, LabError
from lab.kernel import Kernel
from lab.machine import Disk, Machine
from lab.share import Scale

AT_ONCE = 2
"""Guests that run at the same time; each keeps one CPU busy."""
_PYTEST = "python3 -m pytest -c /lab/lab/guest/pytest.ini -p no:cacheprovider"


@dataclass(frozen=True)
class Job:
    """Commands for the guest's shell, one for each boot; the upper layers outlive the boots of a job."""

    name: str
    boots: Sequence[str]
    seconds: float
    """How long one boot may take."""
    results: list[str] = field(default_factory=list, compare=False)


def measuring(nfs: str, seconds: float) -> Job:
    """All states measured over one NFS version."""
    return Job(f"measure-{nfs}", [f"python3 -m lab.guest.measure --nfs {nfs}"], seconds)


def testing(names: str, seconds: float, *, thorough: bool) -> Job:
    """The tests that run in one boot; only those that pytest's ``-k`` finds, if there are names."""
    selected = [f"-k '{names}'"] if names else []
    selected += [] if thorough else ["-m 'not thorough'"]
    return Job("tests", [" ".join([_PYTEST, *selected, "/lab/lab/guest/tests"])], seconds)


def rebooting(seconds: float) -> Job:
    """The tests that need the guest to be booted again."""
    boots = [f"{_PYTEST} /lab/lab/guest/reboot/test_{when}.py" for when in ("before", "after")]
    return Job("reboot", boots, seconds)


class Lab:
    """A kernel, a share and a place for what comes out of it."""

    def __init__(self, root: str, build: str, kernel: Kernel, scale: Scale, said: Callable[[str, str], None]) -> None:
        self.root, self.kernel = root, kernel
        self.home = f"{build}/{kernel.release}"
        self._said = said
        os.makedirs(self.home, exist_ok=True)
        self._lock = _locked(build)
        self._share, self._manifest = disks.share_disk(f"{build}/disks", scale)
        self._system = f"{self.home}/system.cpio"
        image.write_system(self._system, kernel)

    def run(self, jobs: Sequence[Job]) -> list[GuestFailed]:
        """Do them all; returns what failed. The directories with what each boot left are added to its results."""
        with ThreadPoolExecutor(AT_ONCE) as pool:
            return [failure for failure in pool.map(self._do, jobs) if failure is not None]

    def _do(self, job: Job) -> GuestFailed | None:
        home = f"{self.home}/{job.name}"
        uppers = [disks.upper_disk(kind, f"{home}/{kind}.img") for kind in ("ext4", "xfs")]
        try:
            for number, command in enumerate(job.boots):
                project = f"{home}/project-{number}.cpio"
                image.write_project(project, self.root, command, self._manifest)
                machine = Machine(
                    kernel=self.kernel.image,
                    archives=[self._system, project],
                    disks=[Disk(self._share), *(Disk(path, keep=len(job.boots) > 1) for path in uppers)],
                    console=f"{home}/console-{number}.log",
                    said=lambda line: self._said(job.name, line),
                )
                machine.run(f"{home}/results-{number}", job.seconds)
                job.results.append(f"{home}/results-{number}")
        except GuestFailed as failure:
            return failure
        finally:
            for path in uppers:
                os.unlink(path)
        return None


def _locked(build: str) -> IO[bytes]:
    """Two runs would write over each other's disks. Raises LabError while another one is at work there."""
    lock = open(f"{build}/lock", "wb")  # noqa: SIM115 - held for as long as the process runs
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        raise LabError(f"another lab is at work in {build}: wait for its end, or say --build DIRECTORY") from None
    return lock
