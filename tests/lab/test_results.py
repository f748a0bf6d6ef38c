import json
import os
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from lab.errors import LabError
from lab.results import STATES, WORKLOADS, Cell, Results, Run
from lab.samples import good_run, launched

BARE = """
{"runs": [{"kernel": "6.1.0", "nfs": "4.2",
  "workloads": {"plain": {"ls -l": {"rpcs": {"READDIR": 9}, "total": 9, "seconds": 0.1}}},
  "launch": {"plain": {"rpcs": {"LOOKUP": 7}, "total": 7, "noent": 5, "seconds": 2.5}},
  "promotion": {"opaque": {"entries": 2, "rpcs_per_entry": 6.5, "entries_per_second": 40}},
  "reader_errors": 0, "view_identical": true}]}
"""


def test_what_is_dumped_is_loaded_again(tmp_path: Path) -> None:
    path = str(tmp_path / "results.json")
    results = Results(runs=[good_run(), good_run(nfs="3")])
    results.dump(path)
    assert Results.load(path) == results
    assert os.listdir(tmp_path) == ["results.json"]


def test_the_schema_without_what_we_add_is_enough(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    path.write_text(BARE)
    results = Results.load(str(path))
    assert results.runs[0].launch["plain"].noent == 5
    results.dump(str(path))
    written = json.loads(path.read_text())["runs"][0]
    bare = json.loads(BARE)["runs"][0]
    assert {key: written[key] for key in bare} == bare


def test_a_dump_that_fails_leaves_the_former_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = str(tmp_path / "results.json")
    Results(runs=[good_run()]).dump(path)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        Results().dump(path)
    assert len(Results.load(path).runs) == 1


@pytest.mark.parametrize("text", ["", "[]", '{"runs": [{"kernel": "6.1.0"}]}', BARE.replace('"opaque"', '"opake"')])
def test_something_else_is_no_results(tmp_path: Path, text: str) -> None:
    path = tmp_path / "results.json"
    path.write_text(text)
    with pytest.raises(LabError, match=r"results\.json does not hold"):
        Results.load(str(path))


@pytest.mark.parametrize(
    "change",
    [
        {"workloads": {"plain": {"cp": {"rpcs": {}, "total": 0, "seconds": 0}}}},
        {"launch": {"shiny": {"rpcs": {}, "total": 0, "noent": 0, "seconds": 0}}},
        {"date": "yesterday"},
        {"reader_errors": -1},
        {"surprise": 1},
    ],
)
def test_unknown_names_and_impossible_values_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Run.model_validate(good_run().model_dump() | change)


def test_a_total_that_is_not_the_sum_is_refused() -> None:
    with pytest.raises(ValidationError, match="add up to 3"):
        Cell(rpcs={"LOOKUP": 1, "READ": 2}, total=4, seconds=0)


def test_a_run_replaces_the_earlier_one_of_its_kernel_and_nfs_only() -> None:
    old = [good_run("6.1.0", "4.2"), good_run("6.1.0", "3"), good_run("6.12.94", "4.2")]
    again = good_run("6.1.0", "4.2").model_copy(update={"reader_errors": 7})
    other = good_run("6.18.1", "4.2")
    assert Results(runs=old).merge(Results(runs=[again, other])).runs == [again, *old[1:], other]
    assert Results().merge(Results(runs=old)).runs == old


@pytest.mark.parametrize(("nfs", "server_total", "requests"), [("4.2", 9, 7), ("3", 9, 9), ("3", None, 7)])
def test_nfs_3_is_counted_at_the_server(nfs: str, server_total: int | None, requests: int) -> None:
    assert good_run(nfs=nfs).requests(launched(0, server_total, LOOKUP=7)) == requests


def test_the_order_of_the_report() -> None:
    assert STATES[:4] == ("plain", "unpromoted", "metacopy", "opaque")
    assert STATES[4:] == ("layer", "layer+chain", "layer+chain+data", "prime", "finalize")
    assert WORKLOADS == ("stat existing", "stat missing", "access", "readdir", "ls -l", "open+read")
