"""Results as a good run of the lab leaves them, in small, for tests of what is made of them."""

from typing import Final

from lab.results import WORKLOADS, Cell, LaunchCell, Promotion, Run, Scale

_ONE_STAT: Final = {"LOOKUP": 503, "ACCESS": 4}


def launched(noent: int, server_total: int | None = None, **rpcs: int) -> LaunchCell:
    """A launch of 12.34 seconds."""
    return LaunchCell(rpcs=rpcs, total=sum(rpcs.values()), noent=noent, seconds=12.34, server_total=server_total)


def launches() -> dict[str, LaunchCell]:
    """One in each state that exists."""
    rest = {"READDIR": 250, "OPEN": 700, "OPEN_NOATTR": 50, "READ": 900, "CLOSE": 750}
    return {
        "plain": launched(14_500, LOOKUP=15_600, GETATTR=300, ACCESS=400, **rest),
        "unpromoted": launched(14_500, LOOKUP=15_700, GETATTR=320, ACCESS=1_400, **rest),
        "metacopy": launched(14_500, LOOKUP=15_600, GETATTR=1_300, ACCESS=1_500, **rest),
        "opaque": launched(3, LOOKUP=1_200, GETATTR=1_100, ACCESS=400, OPEN=750, READ=900, CLOSE=750),
    }


def workloads() -> dict[str, dict[str, Cell]]:
    """Each costs the same in each state, but for stat of missing names in an opaque directory."""
    usual, opaque = Cell(rpcs=_ONE_STAT, total=507, seconds=1.5), Cell(rpcs={"ACCESS": 4}, total=4, seconds=0.5)
    cells = {state: dict.fromkeys(WORKLOADS, usual) for state in launches()}
    cells["opaque"] |= dict.fromkeys(("stat missing", "readdir"), opaque)
    return cells


def good_run(kernel: str = "6.12.94", nfs: str = "4.2") -> Run:
    """Within every bound."""
    cells = launches()
    return Run(
        kernel=kernel,
        nfs=nfs,
        workloads=workloads(),
        launch=cells,
        promotion={
            "metacopy": Promotion(entries=10_000, rpcs_per_entry=1.12, entries_per_second=1234.5),
            "opaque": Promotion(entries=10_000, rpcs_per_entry=2.12, entries_per_second=412.4),
        },
        reader_errors=0,
        view_identical=True,
        launch_by_heat={"opaque": launched(9, LOOKUP=5_200)},
        launch_absent={"plain": launched(5_000, LOOKUP=5_000), "opaque": launched(5_000, LOOKUP=5_000, ACCESS=500)},
        noent_in_complete=0,
        scale=Scale(search_directories=200, entries=10_000, missing=14_000, found=1_000),
        options={"mount": "vers=4.2,proto=tcp", "upper": "ext4"},
        date="2025-03-04",
        versions={"python": "3.11.2", "qemu": "7.2.15"},
        command="make lab",
    )
