"""Results as tables: in Markdown for the documents, and on the terminal."""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Final

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from lab.errors import LabError
from lab.results import STATES, WORKLOADS, Cell, LaunchCell, Results, Run, State

OPERATIONS: Final[Mapping[str, tuple[str, ...]]] = {
    "LOOKUP": ("LOOKUP",),
    "GETATTR": ("GETATTR",),
    "ACCESS": ("ACCESS",),
    "READDIR": ("READDIR", "READDIRPLUS"),
    "OPEN": ("OPEN", "OPEN_NOATTR"),
    "READ": ("READ", "READ_PLUS"),
}
"""The columns of operations, and what mountstats calls what is counted in them. All else is ``other``."""
OTHER: Final = "other"
_BLOCK: Final = re.compile(r"(<!-- lab: results -->\n).*?(<!-- end -->)", re.DOTALL)
_FEW: Final = 0.1
"""Shares below this are shown with a decimal."""

Rows = list[list[str]]
"""The header first; the first column names the row."""


def render(results: Results) -> str:
    """A document of its own."""
    return f"# Results of the NFS lab\n\n{_sections(results)}"


def insert(document: str, results: Results) -> str:
    """The document with these results between its markers. Raises LabError if it has no markers."""
    replaced, found = _BLOCK.subn(lambda block: f"{block[1]}{_sections(results)}{block[2]}", document)
    if not found:
        raise LabError("the document has no place for results: put <!-- lab: results --> and <!-- end --> on lines")
    return replaced


def summary(run: Run) -> RenderableType:
    """The launches and the promotion of a run, for a terminal."""
    parts: list[RenderableType] = [Text(run.title, style="bold")]
    for heading, rows in _tables(run):
        table = Table(title=heading, title_justify="left", title_style="", box=box.SIMPLE_HEAD)
        for number, name in enumerate(rows[0]):
            table.add_column(name, justify="right" if number else "left", no_wrap=True)
        for row in rows[1:]:
            table.add_row(*map(Text, row))
        parts.append(table)
    parts.append(Text(_health(run)))
    return Group(*parts)


def by_operation(run: Run, cell: Cell) -> dict[str, int]:
    """RPCs for each of OPERATIONS and OTHER; they add up to :meth:`lab.results.Run.requests`."""
    counts = {label: sum(cell.rpcs.get(name, 0) for name in names) for label, names in OPERATIONS.items()}
    return counts | {OTHER: run.requests(cell) - sum(counts.values())}


def _sections(results: Results) -> str:
    return "\n".join(line for run in results.runs for line in _section(run)) or "Nothing has been measured.\n"


def _section(run: Run) -> Iterator[str]:
    yield f"### {run.title}\n"
    yield f"{_circumstances(run)}\n"
    for heading, rows in _tables(run):
        yield f"#### {heading}\n"
        yield _markdown(rows)
    yield f"{_health(run)}\n"


def _circumstances(run: Run) -> str:
    facts = [f"Measured on {run.date}" if run.date else "", f"with `{run.command}`" if run.command else ""]
    sentences = [" ".join(fact for fact in facts if fact)]
    if run.scale:
        sentences.append(
            f"{run.scale.search_directories:,} search directories with {run.scale.entries:,} entries; a launch looks "
            f"for at least {run.scale.missing:,} names that are not there, and {run.scale.found:,} that are"
        )
    sentences.append(", ".join(f"{name} `{value}`" for name, value in run.options.items()))
    sentences.append(", ".join(f"{name} {version}" for name, version in run.versions.items()))
    if run.counted_at_server:
        sentences.append("RPCs are those that the server counted, and ACL calls are among the other ones")
    return ". ".join(sentence for sentence in sentences if sentence) + "."


def _health(run: Run) -> str:
    noent = "not looked for" if run.noent_in_complete is None else f"{run.noent_in_complete:,}"
    return (
        f"ENOENT in complete directories: {noent}. Errors seen by a reader meanwhile: {run.reader_errors:,}. "
        f"The promoted view is {'identical' if run.view_identical else 'NOT identical'} to the server's."
    )


def _tables(run: Run) -> Iterator[tuple[str, Rows]]:
    """All tables of a run that have something in them, with their headings."""
    tables: list[tuple[str, Callable[[Run], Rows]]] = [
        ("RPCs for one directory of 500 files", _workloads),
        ("One launch", lambda run: _launches(run, run.launch, run.launch)),
        ("One launch, promoted by heat alone", lambda run: _launches(run, run.launch_by_heat, run.launch)),
        ("Search paths that do not exist", lambda run: _launches(run, run.launch_absent, run.launch_absent)),
        ("What promotion costs", _promotion),
    ]
    for heading, make in tables:
        rows = make(run)
        if len(rows) > 1:
            yield heading, rows


def _workloads(run: Run) -> Rows:
    states = [state for state in STATES if state in run.workloads]
    rows = [["500 times", *states]]
    for workload in WORKLOADS:
        cells = [run.workloads[state].get(workload) for state in states]
        if any(cells):
            rows.append([workload, *(f"{run.requests(cell):,}" if cell else "" for cell in cells)])
    return rows


def _launches(run: Run, launches: Mapping[State, LaunchCell], base: Mapping[State, LaunchCell]) -> Rows:
    """``base`` is where plain is to be found, of which the others are shares."""
    rows = [["state", "RPCs", "of plain", *OPERATIONS, OTHER, "NOENT", "seconds"]]
    whole = run.requests(base["plain"]) if "plain" in base else 0
    for state in STATES:
        if state in launches:
            cell = launches[state]
            total = run.requests(cell)
            counts = [f"{count:,}" for count in by_operation(run, cell).values()]
            share = _percent(total / whole) if whole else ""
            rows.append([state, f"{total:,}", share, *counts, f"{cell.noent:,}", f"{cell.seconds:.1f}"])
    return rows


def _promotion(run: Run) -> Rows:
    rows = [["state", "entries", "RPCs per entry", "entries per second"]]
    for state in STATES:
        if state in run.promotion:
            cost = run.promotion[state]
            rows.append([state, f"{cost.entries:,}", f"{cost.rpcs_per_entry:.2f}", f"{cost.entries_per_second:,.0f}"])
    return rows


def _percent(share: float) -> str:
    return f"{share:.1%}" if share < _FEW else f"{share:.0%}"


def _markdown(rows: Rows) -> str:
    lines = [f"| {' | '.join(row)} |" for row in rows]
    lines.insert(1, "|---" + "|---:" * (len(rows[0]) - 1) + "|")
    return "\n".join(lines) + "\n"
