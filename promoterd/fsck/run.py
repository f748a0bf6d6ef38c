"""A whole check: every directory of the layer and every mark in upper, what was left behind, and the ledger."""

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field, replace

from promoterd.errors import LedgerError, MountGone, PromoterdError, Refused
from promoterd.fsck import books, leftovers
from promoterd.fsck.findings import IN_HAND, KEPT_IN_UPPER, Area, Finding, Kind, Report, Row
from promoterd.fsck.layer import LayerView, directories_of, layer_problems
from promoterd.fsck.reading import Pacer
from promoterd.fsck.repair import repair_layer_directory
from promoterd.fsck.session import Session
from promoterd.fsck.twice import Found, looked_at_twice
from promoterd.fsck.undoing import repair_upper_directory
from promoterd.fsck.upper import UpperView, marked_directories, upper_problems
from promoterd.paths import is_below

Advance = Callable[[int, int], None]
STILL_SO = "still so after the repair"
_WHOLE = frozenset({Kind.GHOST, Kind.TWIN})
"""What is true of everything below a directory as well, and told of the topmost one only."""
_DONE = {
    Area.LAYER: "put right; the server answers where the layer does not",
    Area.UPPER: "reopened",
    Area.HOME: "removed",
    Area.LEDGER: "the ledger says what disk says",
}


@dataclass(slots=True)
class Checked:
    """What a check came to. ``to_reopen``: what has to be reopened on the live mount, and is not in the report."""

    report: Report
    to_reopen: dict[bytes, list[Row]] = field(default_factory=dict)


def check(session: Session, *, rate: float = 0.0, advance: Advance = lambda _done, _of: None) -> Checked:
    """Check everything, at most ``rate`` entries a second (0: no limit), and repair it if the session is for that.

    Raises MountGone, and OSError where not even the local layers can be read.
    """
    return _Run(session, rate, advance).check()


def rows_of(found: Found) -> list[Row]:
    """Findings as they are told; the last of the errors carries those that are only counted."""
    rows = [Row(finding) for finding in found.findings]
    if found.more:
        rows[-1] = replace(rows[-1], more=found.more)
    return rows


class _Run:
    """One check."""

    def __init__(self, session: Session, rate: float, advance: Advance) -> None:
        self._session = session
        self._layer = list(directories_of(session.layers)) if session.layers.metadata else []
        self._upper = list(marked_directories(session.layers, session.scratch)) if session.layers.upper >= 0 else []
        total = sum(entries for _, entries in (*self._layer, *self._upper))
        self._pacer = Pacer(rate, lambda done: advance(min(done, total), total))
        self._places = leftovers.places_of_rolls(session, [path for path, _ in self._upper])
        self._checked = Checked(Report(writer=session.writer))
        self._in_last_look = 0

    def check(self) -> Checked:
        """All of it, the layer first."""
        session, report = self._session, self._checked.report
        self._directories(Area.LAYER, self._layer)
        self._directories(Area.UPPER, self._upper)
        if session.at_rest:
            report.add(map(self._leftover, list(leftovers.leftovers(session, self._places))))
        report.add(self._records([path for path, _ in (*self._upper, *self._layer)]))
        return self._checked

    def _directories(self, area: Area, paths: Iterable[tuple[bytes, int]]) -> None:
        wholly: bytes | None = None
        for path, _ in paths:
            if wholly is None or not is_below(path, wholly):
                found = self._directory(area, path)
                wholly = path if any(finding.kind in _WHOLE for finding in found.findings) else None

    def _directory(self, area: Area, path: bytes) -> Found:
        found = self._look(area, path)
        self._checked.report.directories += 1
        self._checked.report.entries += self._in_last_look
        if not found.has_errors or not self._session.repairing:
            self._checked.report.add(rows_of(found))
            return found
        try:
            repair = repair_layer_directory if area is Area.LAYER else repair_upper_directory
            kept = repair(self._session, path, found.findings)
        except MountGone:
            raise
        except PromoterdError as error:
            kept = str(error)
        except OSError as error:
            kept = error.strerror or str(error)
        if kept is None:
            self._checked.to_reopen[path] = rows_of(found)
            return found
        left = self._look(area, path)
        self._checked.report.add(_judged(row, left, kept) for row in rows_of(found))
        return left

    def _look(self, area: Area, path: bytes) -> Found:
        def state() -> tuple[object, ...]:
            with self._view(area, path) as view:
                return view.state()

        def problems(names: Collection[str]) -> Iterator[Finding]:
            before = self._pacer.entries
            with self._view(area, path) as view:
                found = (
                    layer_problems(view, self._pacer, names)
                    if isinstance(view, LayerView)
                    else upper_problems(view, self._pacer, names)
                )
                passing = frozenset() if self._session.at_rest else IN_HAND
                yield from (finding for finding in found if finding.kind not in passing)
            self._in_last_look = self._pacer.entries - before

        self._in_last_look = 0
        try:
            return looked_at_twice(area, path, state, problems)
        except Refused as refusal:
            return Found([Finding(area, path, Kind.UNREADABLE, str(refusal.fields["reason"]))])
        except OSError as error:
            return Found([Finding(area, path, Kind.UNREADABLE, error.strerror or str(error))])

    def _view(self, area: Area, path: bytes) -> LayerView | UpperView:
        kind = LayerView if area is Area.LAYER else UpperView
        return kind(self._session.layers, path, self._session.identities)

    def _leftover(self, finding: Finding) -> Row:
        if not finding.is_error or not self._session.repairing:
            return Row(finding)
        try:
            gone = leftovers.remove_leftover(self._session, finding, self._places)
        except (Refused, OSError) as error:
            return Row(finding, note=str(error))
        return Row(finding, corrected=gone, note=_DONE[Area.HOME] if gone else STILL_SO)

    def _records(self, marked: list[bytes]) -> list[Row]:
        found = books.disagreements(self._session, marked)
        if not self._session.repairing:
            return [Row(finding) for finding in found]
        wrong = [finding for finding in found if finding.kind is Kind.RECORD]
        note = _DONE[Area.LEDGER]
        try:
            if wrong:
                books.correct(self._session, [finding.path for finding in wrong])
        except LedgerError as error:
            note, wrong = str(error), []
        return [
            Row(finding, corrected=finding in wrong, note=note if finding.kind is Kind.RECORD else "")
            for finding in found
        ]


def _judged(row: Row, left: Found, kept: str) -> Row:
    """What became of a finding, given what is left after the repair, and why if that is known."""
    if not row.finding.is_error:
        return row
    if row.finding.area is Area.UPPER and row.finding.kind in KEPT_IN_UPPER:
        return row
    wrong = {(finding.kind, finding.name) for finding in left.findings if finding.is_error}
    still = (row.finding.kind, row.finding.name) in wrong or left.more > 0
    if kept or still:
        return replace(row, note=kept or STILL_SO)
    return replace(row, corrected=True, note=_DONE[row.finding.area])
