from pathlib import Path

import pytest
from rich.console import Console

from lab.errors import LabError
from lab.report import by_operation, insert, render, summary
from lab.results import Results
from lab.samples import good_run, launched

DOCUMENT = "# Title\n\n<!-- lab: results -->\nNothing yet.\n<!-- end -->\n\n<!-- keys: X -->\nkept\n<!-- end -->\n"
PAGE = Path(__file__).parents[2] / "docs" / "benchmarks.md"


def lines_below(text: str, heading: str) -> list[str]:
    """The first table below a heading."""
    lines = text.partition(f"#### {heading}\n\n")[2].splitlines()
    return lines[: lines.index("")]


def test_workloads_are_rows_and_states_columns() -> None:
    table = lines_below(render(Results(runs=[good_run()])), "RPCs for one directory of 500 files")
    assert table[:4] == [
        "| 500 times | plain | unpromoted | metacopy | opaque |",
        "|---|---:|---:|---:|---:|",
        "| stat existing | 507 | 507 | 507 | 507 |",
        "| stat missing | 507 | 507 | 507 | 4 |",
    ]
    assert len(table) == 8


def test_a_launch_has_its_operations_and_its_share_of_plain() -> None:
    table = lines_below(render(Results(runs=[good_run()])), "One launch")
    assert table == [
        "| state | RPCs | of plain | LOOKUP | GETATTR | ACCESS | READDIR | OPEN | READ | other | NOENT | seconds |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
        "| plain | 18,950 | 100% | 15,600 | 300 | 400 | 250 | 750 | 900 | 750 | 14,500 | 12.3 |",
        "| unpromoted | 20,070 | 106% | 15,700 | 320 | 1,400 | 250 | 750 | 900 | 750 | 14,500 | 12.3 |",
        "| metacopy | 21,050 | 111% | 15,600 | 1,300 | 1,500 | 250 | 750 | 900 | 750 | 14,500 | 12.3 |",
        "| opaque | 5,100 | 27% | 1,200 | 1,100 | 400 | 0 | 750 | 900 | 750 | 3 | 12.3 |",
    ]


def test_what_heat_finds_is_compared_with_the_plain_launch_and_absent_paths_with_themselves() -> None:
    text = render(Results(runs=[good_run()]))
    assert lines_below(text, "One launch, promoted by heat alone")[2:] == [
        "| opaque | 5,200 | 27% | 5,200 | 0 | 0 | 0 | 0 | 0 | 0 | 9 | 12.3 |",
    ]
    assert lines_below(text, "Search paths that do not exist")[2:] == [
        "| plain | 5,000 | 100% | 5,000 | 0 | 0 | 0 | 0 | 0 | 0 | 5,000 | 12.3 |",
        "| opaque | 5,500 | 110% | 5,000 | 0 | 500 | 0 | 0 | 0 | 0 | 5,000 | 12.3 |",
    ]


def test_what_promotion_costs() -> None:
    assert lines_below(render(Results(runs=[good_run()])), "What promotion costs")[2:] == [
        "| metacopy | 10,000 | 1.12 | 1,234 |",
        "| opaque | 10,000 | 2.12 | 412 |",
    ]


def test_small_shares_have_a_decimal() -> None:
    run = good_run().model_copy(update={"launch": {"plain": launched(0, READ=1000), "opaque": launched(0, READ=4)}})
    assert "| opaque | 4 | 0.4% |" in render(Results(runs=[run]))


def test_what_was_not_measured_has_no_table() -> None:
    run = good_run().model_copy(
        update={"launch_by_heat": {}, "launch_absent": {}, "workloads": {"opaque": good_run().workloads["opaque"]}}
    )
    text = render(Results(runs=[run]))
    assert "heat alone" not in text
    assert "do not exist" not in text
    assert "| 500 times | opaque |" in text
    assert "Nothing has been measured" in render(Results())


def test_the_circumstances_are_told() -> None:
    text = render(Results(runs=[good_run()]))
    assert "### Linux 6.12.94, NFS 4.2\n" in text
    assert "Measured on 2025-03-04 with `make lab`. 200 search directories with 10,000 entries;" in text
    assert "mount `vers=4.2,proto=tcp`, upper `ext4`. python 3.11.2, qemu 7.2.15." in text
    assert "The promoted view is identical" in text


def test_what_went_wrong_is_told() -> None:
    wrong = {"view_identical": False, "reader_errors": 3, "noent_in_complete": None}
    text = render(Results(runs=[good_run().model_copy(update=wrong)]))
    assert "not looked for. Errors seen by a reader meanwhile: 3. The promoted view is NOT identical" in text


def test_what_nfs_3_does_not_list_is_among_the_others() -> None:
    run = good_run(nfs="3")
    cell = launched(0, 120, LOOKUP=50, READDIRPLUS=30, FSINFO=10)
    counts = by_operation(run, cell)
    assert counts == {"LOOKUP": 50, "GETATTR": 0, "ACCESS": 0, "READDIR": 30, "OPEN": 0, "READ": 0, "other": 40}
    assert "RPCs are those that the server counted" in render(Results(runs=[run]))
    assert "RPCs are those that the server counted" not in render(Results(runs=[good_run()]))


def test_results_stand_between_the_markers_and_nothing_else_changes() -> None:
    results = Results(runs=[good_run(), good_run("6.1.0")])
    once = insert(DOCUMENT, results)
    assert once.startswith("# Title\n\n<!-- lab: results -->\n### Linux 6.12.94")
    assert once.endswith("server's.\n<!-- end -->\n\n<!-- keys: X -->\nkept\n<!-- end -->\n")
    assert "Nothing yet" not in once
    assert insert(once, results) == once
    assert insert(once, Results()) == DOCUMENT.replace("Nothing yet", "Nothing has been measured")


def test_the_page_has_a_place_for_results_and_any_other_document_is_refused() -> None:
    assert "### Linux 6.12.94, NFS 4.2" in insert(PAGE.read_text("utf-8"), Results(runs=[good_run()]))
    with pytest.raises(LabError, match="no place"):
        insert("# Title\n", Results())


def test_the_terminal_shows_the_same_tables() -> None:
    console = Console(width=120, record=True, quiet=False, file=None, force_terminal=False)
    with console.capture() as capture:
        console.print(summary(good_run()))
    words = [line.split() for line in capture.get().splitlines()]
    assert ["Linux", "6.12.94,", "NFS", "4.2"] in words
    assert ["opaque", "10,000", "2.12", "412"] in words
    assert ["ls", "-l", "507", "507", "507", "507"] in words
