import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from lab.plots import _COLOURS, _figure, plot, svg
from lab.results import STATES, Results
from lab.samples import good_run, launched

TWO = Results(runs=[good_run(), good_run("6.1.0", "3")])
EVERY_STATE = good_run().model_copy(
    update={"launch": {state: launched(2, LOOKUP=10 + number) for number, state in enumerate(STATES)}}
)


def texts(drawn: bytes) -> list[str]:
    root = ET.fromstring(drawn)  # noqa: S314 - our own
    return [element.text or "" for element in root.iter("{http://www.w3.org/2000/svg}text")]


def test_it_names_runs_states_operations_and_totals() -> None:
    found = texts(svg(TWO))
    assert {"plain", "unpromoted", "metacopy", "opaque", *_COLOURS} <= set(found)
    assert {"Linux 6.12.94, NFS 4.2", "Linux 6.1.0, NFS 3"} <= set(found)
    assert found.count("18,950") == found.count("5,100") == 2
    assert set(STATES) <= set(texts(svg(Results(runs=[EVERY_STATE]))))


def test_the_same_results_make_the_same_file(tmp_path: Path) -> None:
    first = svg(TWO)
    assert svg(TWO) == first
    plot(TWO, tmp_path / "results.svg")
    assert (tmp_path / "results.svg").read_bytes() == first
    assert b"<dc:date>" not in first


def test_another_process_makes_the_same_file() -> None:
    code = (
        "import sys; from lab.plots import svg; from lab.results import Results; from lab.samples import good_run;"
        "sys.stdout.buffer.write(svg(Results(runs=[good_run(), good_run('6.1.0', '3')])))"
    )
    tests = str(Path(__file__).parents[1])
    ran = subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": tests}, capture_output=True, check=True)
    assert ran.stdout == svg(TWO)


@pytest.mark.parametrize("number", [1, 2, 3])
def test_each_run_has_a_panel_that_begins_at_0_with_the_same_scale(number: int) -> None:
    panels = _figure(Results(runs=[good_run(f"6.{minor}") for minor in range(number)])).axes
    assert len(panels) == number
    for panel in panels:
        assert panel.get_ylim() == pytest.approx((0, 21_050 * 1.1))


def test_bars_are_as_high_as_what_is_counted() -> None:
    (panel,) = _figure(Results(runs=[good_run()])).axes
    heights = [0.0] * 4
    for bars in panel.containers:
        heights = [height + bar.get_height() for height, bar in zip(heights, bars, strict=True)]
    assert heights == [18_950, 20_070, 21_050, 5_100]
    missing = [bar.get_height() for bar in panel.containers[0]]
    assert missing == [14_500, 14_500, 14_500, 3]


def test_without_a_run_it_is_empty() -> None:
    assert texts(svg(Results())) == ["RPCs for one launch, cold caches"]


def test_matplotlib_is_imported_by_drawing_only() -> None:
    code = "import sys, lab.plots; sys.exit('matplotlib' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": str(Path(__file__).parents[1])}, check=True)
