"""Results as a picture: the RPCs of a launch in each state, by operation."""

import io
import os
from typing import TYPE_CHECKING, Any, Final

from lab.report import OPERATIONS, OTHER, by_operation
from lab.results import STATES, LaunchCell, Results, Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MISSING: Final = "LOOKUP or OPEN of a missing name"
_EXISTING: Final = "LOOKUP or OPEN of a name that exists"
# the palette of Okabe and Ito, which colour-blind people can tell apart, with grey for its black
_COLOURS: Final = {
    _MISSING: "#D55E00",
    _EXISTING: "#E69F00",
    "GETATTR": "#0072B2",
    "ACCESS": "#56B4E9",
    "READDIR": "#CC79A7",
    "READ": "#009E73",
    OTHER: "#999999",
}
_STYLE: Final[dict[Any, Any]] = {
    "svg.hashsalt": "promoterd",
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
}
_PANEL: Final = (5.6, 3.6)
"""Inches."""
_COLUMNS: Final = 2
_HEADROOM: Final = 1.1
"""Of the axis over the highest bar, for its value."""
_NARROW: Final = 5
"""With more states than these the labels are slanted."""


def plot(results: Results, path: str | os.PathLike[str]) -> None:
    """Write the picture to a file. Raises OSError."""
    with open(path, "wb") as file:
        file.write(svg(results))


def svg(results: Results) -> bytes:
    """The picture, which is the same for the same results and release of matplotlib."""
    import matplotlib as mpl  # noqa: PLC0415 - whoever draws nothing need not have it

    file = io.BytesIO()
    with mpl.rc_context(_STYLE):
        _figure(results).savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    return file.getvalue()


def _figure(results: Results) -> "Figure":
    """A panel for each run, all with the same scale."""
    from matplotlib.figure import Figure  # noqa: PLC0415 - as above

    runs = [run for run in results.runs if run.launch]
    columns = max(1, min(len(runs), _COLUMNS))
    rows = max(1, -(-len(runs) // columns))
    legend = 0.55 if columns > 1 else 1.0
    figure = Figure(figsize=(_PANEL[0] * columns, _PANEL[1] * rows + legend), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False, sharey=True).flat
    for panel in panels[len(runs) :]:
        panel.remove()
    for panel, run in zip(panels[: len(runs)], runs, strict=True):
        _draw(panel, run)
    highest = max((run.requests(cell) for run in runs for cell in run.launch.values()), default=1)
    panels[0].set_ylim(0, highest * _HEADROOM)
    figure.supylabel("RPCs for one launch, cold caches", fontsize="medium")
    if runs:
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=4 if columns > 1 else 3, frameon=False)
    return figure


def _draw(panel: "Axes", run: Run) -> None:
    """Stacked bars, with the totals on top of them."""
    states = [state for state in STATES if state in run.launch]
    stacks = [_stack(run, run.launch[state]) for state in states]
    bottoms = [0] * len(states)
    for label, colour in _COLOURS.items():
        heights = [stack[label] for stack in stacks]
        bars = panel.bar(
            states, heights, bottom=bottoms, color=colour, label=label, width=0.65, edgecolor="white", linewidth=0.4
        )
        bottoms = [bottom + height for bottom, height in zip(bottoms, heights, strict=True)]
    panel.bar_label(bars, labels=[f"{total:,}" for total in bottoms], padding=2)
    panel.set_title(run.title, fontsize="medium", pad=8)
    panel.yaxis.set_major_formatter("{x:,.0f}")
    panel.tick_params(labelleft=True)
    panel.set_axisbelow(True)
    panel.grid(axis="y", color="#dddddd", linewidth=0.6)
    if len(states) > _NARROW:
        panel.set_xticks(range(len(states)), states, rotation=25, ha="right", rotation_mode="anchor")


def _stack(run: Run, cell: LaunchCell) -> dict[str, int]:
    """What lies on top of each other in a bar, from below."""
    counts = by_operation(run, cell)
    by_name = counts["LOOKUP"] + counts["OPEN"]
    missing = min(cell.noent, by_name)
    rest = {label: counts[label] for label in (*OPERATIONS, OTHER) if label not in ("LOOKUP", "OPEN")}
    return {_MISSING: missing, _EXISTING: by_name - missing} | rest
