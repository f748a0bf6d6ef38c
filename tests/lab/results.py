"""What the lab measured: ``results.json`` as models.

RPCs are requests to the NFS server, by operation as mountstats names them. Seconds are those of an emulated machine:
only ratios within one run mean anything.
"""

import os
from collections.abc import Callable
from typing import Annotated, Final, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    ValidationError,
    model_validator,
)

from lab.errors import LabError

STATES: Final = (
    "plain",
    "unpromoted",
    "metacopy",
    "opaque",
    "layer",
    "layer+chain",
    "layer+chain+data",
    "prime",
    "finalize",
)
"""How directories are seen: over NFS without an overlay, through one, and promoted in one way or another. In the order
in which they are reported."""
WORKLOADS: Final = ("stat existing", "stat missing", "access", "readdir", "ls -l", "open+read")
"""What is done to each of 500 files, or to their directory; in the order in which they are reported."""


def _one_of(known: tuple[str, ...]) -> Callable[[str], str]:
    def checked(name: str) -> str:
        if name not in known:
            raise ValueError(f"{name!r} is none of {', '.join(known)}")
        return name

    return checked


State = Annotated[str, AfterValidator(_one_of(STATES))]
Workload = Annotated[str, AfterValidator(_one_of(WORKLOADS))]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Cell(_Part):
    """What one thing that was done with cold caches cost. ValidationError if ``total`` is not the sum of ``rpcs``."""

    rpcs: dict[str, NonNegativeInt]
    total: NonNegativeInt
    """All that the client counted."""
    seconds: NonNegativeFloat
    server_total: NonNegativeInt | None = None
    """All that the server counted meanwhile, also what mountstats does not list; None if it was not asked."""

    @model_validator(mode="after")
    def _adds_up(self) -> Self:
        if self.total != sum(self.rpcs.values()):
            raise ValueError(f"total is {self.total}, but its RPCs add up to {sum(self.rpcs.values())}")
        return self


class LaunchCell(Cell):
    """A launch of the application."""

    noent: NonNegativeInt
    """Lookups that the server answered with ENOENT."""


class Promotion(_Part):
    """What it cost to promote directories, with all that was asked meanwhile."""

    entries: NonNegativeInt
    rpcs_per_entry: NonNegativeFloat
    """As :meth:`Run.requests` counts: for NFS 3 at the server."""
    entries_per_second: NonNegativeFloat


class Scale(_Part):
    """How large the share and the launch are."""

    search_directories: NonNegativeInt
    entries: NonNegativeInt
    """Names in the search directories and below them."""
    missing: NonNegativeInt
    """A launch looks for at least so many names, in existing search directories, that are not there."""
    found: NonNegativeInt
    """A launch looks for at least so many names that are there."""


class Run(_Part):
    """All measurements on one kernel over one version of NFS."""

    kernel: str
    """As ``uname -r`` says it."""
    nfs: str
    """The version: 4.2, 4.1, 4.0 or 3."""
    workloads: dict[State, dict[Workload, Cell]]
    launch: dict[State, LaunchCell]
    """After every search directory has been promoted, or none, as the state says."""
    promotion: dict[State, Promotion]
    reader_errors: NonNegativeInt
    """Errors that a program saw which read the share all the time while it was promoted."""
    view_identical: bool
    """Whether the promoted share looks just as the server's, name by name."""
    launch_by_heat: dict[State, LaunchCell] = Field(default_factory=dict)
    """After promotion of what heat alone finds: directories that are only ever missed stay as they were."""
    launch_absent: dict[State, LaunchCell] = Field(default_factory=dict)
    """The same search along paths that do not exist."""
    noent_in_complete: NonNegativeInt | None = None
    """Lookups of missing names in complete directories that reached the server; None if nobody looked."""
    scale: Scale | None = None
    options: dict[str, str] = Field(default_factory=dict)
    """How things were mounted: ``mount`` (NFS), ``upper`` (file system), and what else matters."""
    date: Annotated[str, Field(pattern=r"^\d{4}-\d{2}-\d{2}$")] | None = None
    versions: dict[str, str] = Field(default_factory=dict)
    """Of python, nfs-utils, qemu and promoterd."""
    command: str | None = None
    """What repeats it."""

    @property
    def series(self) -> str:
        """Of the kernel: the first two numbers of its version."""
        return ".".join(self.kernel.split(".")[:2])

    @property
    def title(self) -> str:
        """Which run it is."""
        return f"Linux {self.kernel}, NFS {self.nfs}"

    @property
    def counted_at_server(self) -> bool:
        """Whether the client's counts leave something out: mountstats lists no NFSACL calls, which only NFS 3 has."""
        return self.nfs.startswith("3")

    def requests(self, cell: Cell) -> int:
        """What the server was asked; for NFS 3 as it counted itself, if it was asked for that."""
        if self.counted_at_server and cell.server_total is not None:
            return cell.server_total
        return cell.total


class Results(_Part):
    """The runs on all kernels that were tried."""

    runs: list[Run] = Field(default_factory=list)

    @classmethod
    def load(cls, path: str) -> Self:
        """Read what :meth:`dump` wrote. Raises LabError if it is something else, and OSError if it cannot be read."""
        with open(path, "rb") as file:
            text = file.read()
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            raise LabError(f"{path} does not hold results of the lab, remove it: {error}") from None

    def dump(self, path: str) -> None:
        """Write to a file, which holds either all of it or what it held before. Raises OSError."""
        temporary = f"{path}.new"
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(self.model_dump_json(indent=1, exclude_none=True) + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)

    def merge(self, newer: "Results") -> "Results":
        """Both; of two runs on the same series of kernels over the same NFS the newer one, where the older was."""
        runs = {(run.series, run.nfs): run for run in (*self.runs, *newer.runs)}
        return Results(runs=list(runs.values()))
