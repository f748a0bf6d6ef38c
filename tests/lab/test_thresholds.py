from typing import Any

import pytest

from lab.results import WORKLOADS, Cell, Promotion, Results, Run, Scale
from lab.samples import good_run, launched, launches, workloads
from lab.thresholds import LAUNCH_SHARE, LAUNCH_SHARE_SHORT, NOENT_SHARE, PROMOTED, RPCS_PER_ENTRY, UNPROMOTED, check

REQUIRED = (*UNPROMOTED, *PROMOTED)


def changed(**changes: Any) -> Run:
    return good_run().model_copy(update=changes)


def without(state: str, table: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in table.items() if name != state}


def costing(rpcs_per_entry: float, entries: int = 10) -> Promotion:
    return Promotion(entries=entries, rpcs_per_entry=rpcs_per_entry, entries_per_second=1.0)


def violations(run: Run, *, short: bool = False) -> list[str]:
    return check(Results(runs=[run]), short=short)


@pytest.mark.parametrize("nfs", ["4.2", "4.1", "4.0", "3"])
def test_a_good_run_violates_nothing(nfs: str) -> None:
    assert violations(good_run(nfs=nfs)) == violations(good_run(nfs=nfs), short=True) == []


PROMOTION = good_run().promotion
WARM = Cell(rpcs={"GETATTR": 2}, total=2, seconds=0.1)
UNASKED = Cell(rpcs={}, total=0, seconds=0.1)


@pytest.mark.parametrize(
    ("run", "violation"),
    [
        (changed(noent_in_complete=1), "complete directories asked the server for 1 names"),
        (changed(noent_in_complete=None), "nobody looked for lookups of missing names"),
        (changed(reader_errors=2), "a reader saw 2 errors"),
        (changed(view_identical=False), "view differs"),
        (changed(scale=None), "nobody wrote down"),
        (
            changed(scale=Scale(search_directories=200, entries=10_000, missing=14_501, found=1)),
            "14,500 missing names only, at least 14,501 are in it: the storm is broken",
        ),
        (
            changed(launch=launches() | {"opaque": launched(15, LOOKUP=1_000)}),
            "opaque looked for 15 missing names, more than 0.1% of plain's 14,500",
        ),
        (
            changed(launch=launches() | {"opaque": launched(3, LOOKUP=12_000)}),
            "opaque took 12,000 RPCs, more than 30% of plain's 18,950",
        ),
        (
            changed(launch=launches() | {"unpromoted": launched(3, LOOKUP=30_000)}),
            "unpromoted took 30,000 RPCs, more than 110% of plain's 18,950",
        ),
        (
            changed(launch=launches() | {"metacopy": launched(3, LOOKUP=40_000)}),
            "metacopy took 40,000 RPCs, more than 115% of plain's 18,950",
        ),
        (changed(promotion=PROMOTION | {"opaque": costing(8.01)}), "opaque took 8.01 RPCs per entry, more than 8"),
        (changed(promotion=PROMOTION | {"metacopy": costing(7.01)}), "metacopy took 7.01 RPCs per entry, more than 7"),
        (changed(promotion=PROMOTION | {"opaque": costing(1, 0)}), "promotion to the state opaque promoted nothing"),
        (changed(launch_by_heat={}), "no launch after promotion by heat alone"),
        (
            changed(launch_by_heat={"opaque": launched(9_000, LOOKUP=17_000)}),
            "by heat alone the launch in the state opaque took 17,000 RPCs",
        ),
        (
            changed(launch_by_heat={"metacopy": launched(3)}),
            "no bound for a launch by heat alone in the state metacopy",
        ),
        (changed(launch_absent={}), "no launch with search paths that do not exist"),
        (
            changed(workloads=workloads() | {"plain": dict.fromkeys(WORKLOADS, WARM)}),
            "stat existing in the state plain took 0 LOOKUPs: caches were warm",
        ),
        (
            changed(
                workloads=workloads() | {"opaque": workloads()["opaque"] | {"readdir": workloads()["plain"]["readdir"]}}
            ),
            "readdir in a complete directory took 507 RPCs, more than 20",
        ),
        (
            changed(workloads=workloads() | {"prime": {"ls -l": workloads()["plain"]["stat missing"]}}),
            "ls -l in a primed directory took 507 RPCs, more than 20",
        ),
        (changed(promotion=PROMOTION | {"prime": costing(0.51)}), "prime took 0.51 RPCs per entry, more than 0.5"),
        (changed(launch=launches() | {"finalize": launched(0)}), "no bound for a launch in the state finalize"),
        (
            changed(promotion=PROMOTION | {"finalize": costing(0)}),
            "no bound for a promotion to the state finalize over NFS 4.2",
        ),
    ],
)
def test_each_bound_can_be_violated(run: Run, violation: str) -> None:
    (found,) = violations(run)
    assert found.startswith("Linux 6.12.94, NFS 4.2: ")
    assert violation in found


@pytest.mark.parametrize("state", REQUIRED)
def test_each_state_must_have_been_measured(state: str) -> None:
    assert f"no launch was measured in the state {state}" in violations(changed(launch=without(state, launches())))[0]
    found = violations(changed(workloads=without(state, workloads())))
    assert len(found) == len(WORKLOADS)
    assert f"ls -l was not measured in the state {state}" in "".join(found)


@pytest.mark.parametrize("state", PROMOTED)
def test_each_promotion_must_have_been_measured(state: str) -> None:
    (found,) = violations(changed(promotion=without(state, PROMOTION)))
    assert f"no promotion to the state {state} was measured" in found


@pytest.mark.parametrize("workload", WORKLOADS)
def test_each_workload_must_have_been_measured(workload: str) -> None:
    cells = workloads()
    (found,) = violations(changed(workloads=cells | {"opaque": without(workload, cells["opaque"])}))
    assert f"{workload} was not measured in the state opaque" in found


def test_an_unknown_version_of_nfs_has_no_bound() -> None:
    assert len(violations(good_run(nfs="5.0"))) == 2


def test_a_short_run_has_bounds_of_its_own() -> None:
    run = changed(launch=launches() | {"opaque": launched(3, LOOKUP=8_000)})
    assert violations(run, short=True) == []
    assert len(violations(run)) == 1


def test_a_short_run_need_not_have_measured_what_is_not_the_best() -> None:
    states = {
        "plain": launches()["plain"],
        "unpromoted": launches()["unpromoted"],
        "layer+chain+data": launched(3, LOOKUP=900),
    }
    kept = {state: workloads()["plain"] for state in UNPROMOTED} | {
        "layer+chain+data": dict.fromkeys(WORKLOADS, UNASKED)
    }
    run = changed(
        launch=states, workloads=kept, launch_by_heat={"layer+chain+data": launched(3, LOOKUP=900)}, promotion={}
    )
    assert violations(run, short=True) == []
    (found,) = violations(run.model_copy(update={"launch": without("layer+chain+data", states)}), short=True)
    assert "no launch was measured in the state layer+chain+data" in found
    (found,) = violations(run.model_copy(update={"launch_by_heat": {}}), short=True)
    assert "no launch after promotion by heat alone" in found


def test_a_run_with_layers_alone_needs_nothing_else() -> None:
    layers = dict.fromkeys(("layer", "layer+chain"), launched(3, LOOKUP=900))
    states = {state: launches()[state] for state in UNPROMOTED} | layers
    kept = {state: workloads()["plain"] for state in UNPROMOTED} | {"layer": dict.fromkeys(WORKLOADS, UNASKED)}
    run = changed(launch=states, workloads=kept, launch_by_heat={}, promotion={})
    assert check(Results(runs=[run]), only_layers=True) == []
    (found,) = check(Results(runs=[run.model_copy(update={"launch": without("plain", states)})]), only_layers=True)
    assert "no launch was measured in the state plain" in found


def test_nfs_3_is_judged_by_what_the_server_counted() -> None:
    cells = launches() | {"opaque": launched(3, 12_000, LOOKUP=1_000)}
    assert violations(good_run(nfs="4.2").model_copy(update={"launch": cells})) == []
    (found,) = violations(good_run(nfs="3").model_copy(update={"launch": cells}))
    assert "opaque took 12,000 RPCs" in found


def test_every_run_is_checked_and_there_must_be_one() -> None:
    bad = good_run("6.1.0", "3").model_copy(update={"reader_errors": 1})
    (found,) = check(Results(runs=[good_run(), bad]), short=False)
    assert found.startswith("Linux 6.1.0, NFS 3: ")
    assert check(Results(), short=False) == ["nothing has been measured"]


def test_every_state_that_is_demanded_has_its_bounds() -> None:
    known = {"prime", "layer", "layer+chain", "layer+chain+data"}  # not every kernel has them all
    assert set(LAUNCH_SHARE) == set(LAUNCH_SHARE_SHORT) == {*REQUIRED, *known} - {"plain"}
    assert set(RPCS_PER_ENTRY) == {*PROMOTED, *known}
    assert set(NOENT_SHARE) <= {*REQUIRED, *known}
