"""Directories of the upper layer that carry a mark: whether what the mark relies on is there."""

import os
import stat
from collections.abc import Collection, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from promoterd.fsck.findings import Area, Finding, Kind
from promoterd.fsck.judging import Facts, Problem, content_problems
from promoterd.fsck.reading import LowerDirectory, Pace, lstat, opened_if_there, opened_lower
from promoterd.overlay import beneath, rolls, xattrs
from promoterd.overlay.listing import Layers
from promoterd.overlay.rolls import Roll
from promoterd.overlay.shadows import directory_stands_alone, file_stands_alone
from promoterd.paths import display, join, parent
from promoterd.provenance import Provenance, decode

_MARKS = (xattrs.OPAQUE_YES, xattrs.OPAQUE_FINALIZED)


@dataclass(slots=True)
class UpperView:
    """A directory of the upper layer, open there and on the server, for the length of a ``with`` block.

    ``lower`` is None where the server has none. Entering raises Refused where the server's cannot be looked at as a
    whole, and OSError.
    """

    layers: Layers
    path: bytes
    identities: tuple[str, ...]
    upper: int = -1
    lower: LowerDirectory | None = None
    mark: bytes | None = None
    record: bytes | None = None
    _stack: ExitStack | None = None

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self.upper = stack.enter_context(opened_if_there(self.layers.upper, self.path))
            if self.upper >= 0:
                self.mark = self.xattr(xattrs.OPAQUE)
                self.record = self.xattr(xattrs.PROVENANCE)
                if self.is_ours:
                    self.lower = stack.enter_context(opened_lower(self.layers, self.path))
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._stack is not None  # noqa: S101 - entered
        self._stack.close()

    @property
    def provenance(self) -> Provenance | None:
        """What stands beside the mark, if it can be read."""
        return decode(self.record)

    @property
    def is_ours(self) -> bool:
        """Whether it carries a mark of ours, at this very path."""
        provenance = self.provenance
        return self.mark in _MARKS and provenance is not None and provenance.is_at(self.path)

    def xattr(self, attribute: str) -> bytes | None:
        """An attribute of the upper directory."""
        return xattrs.get(xattrs.descriptor(self.upper), attribute)

    def state(self) -> tuple[object, ...]:
        """Differs if anybody changed the directory, here or on the server."""
        if self.upper < 0:
            return ()
        status = os.fstat(self.upper)
        stamps = self.lower.stamps() if self.lower is not None else ()
        return self.mark, self.record, status.st_mtime_ns, status.st_ctime_ns, stamps

    def finding(self, problem: Problem, name: str | None = None) -> Finding:
        """A problem, with where it was found."""
        return Finding(Area.UPPER, self.path, problem[0], problem[1], name)


def upper_problems(view: UpperView, pace: Pace, force: Collection[str] = ()) -> Iterator[Finding]:
    """All that is wrong with one directory; attributes of the names in ``force`` are asked of the server anew."""
    if view.upper < 0:
        return
    if view.xattr(xattrs.TIMES) is not None:
        yield view.finding((Kind.TIMES, "its times are those of a change that was cut off"))
    problem = _verdict(view)
    if problem is not None:
        yield view.finding(problem)
    elif view.provenance is not None:
        yield from _entry_problems(view, view.provenance, pace, force)


def _verdict(view: UpperView) -> Problem | None:
    """What there is to say of the mark and its provenance; None where its entries are to be judged, if any are ours."""
    provenance = view.provenance
    if provenance is None and view.record is not None:
        return Kind.BAD_PROVENANCE, "its provenance is damaged, or of another version"
    if provenance is None:
        foreign = Kind.FOREIGN, "a mark that is not ours: the kernel's, for what a user made anew"
        return foreign if view.mark == xattrs.OPAQUE_YES else None
    if not provenance.is_at(view.path):
        return Kind.MOVED, "provenance of ours that was moved here"
    if view.mark not in _MARKS:
        return Kind.UNFINISHED, "provenance without a mark: a promotion or a reopening was cut off"
    if not provenance.is_from(view.identities):
        return Kind.OTHER_LOWER, "it was completed from other lower layers"
    return (Kind.GHOST, "the server has no such directory") if view.lower is None else None


def _entry_problems(view: UpperView, provenance: Provenance, pace: Pace, force: Collection[str]) -> Iterator[Finding]:
    lower = view.lower
    assert lower is not None  # noqa: S101 - the caller looked
    roll = rolls.read(view.layers.overlay, provenance)
    if roll is None:
        yield view.finding((Kind.ROLL, "the roll of the names that it had is lost or damaged"))
    is_opaque = view.mark == xattrs.OPAQUE_YES
    for name, facts, _ in lower.entries(pace, force):
        shadow = lstat(view.upper, name)
        if shadow is None:
            if roll is not None and not roll.knows(name):  # or else a user deleted it, which leaves nothing behind
                yield view.finding((Kind.MISSING, "the server has it, and it is not shadowed"), name)
        elif stat.S_ISDIR(facts.mode) and stat.S_ISDIR(shadow.mode):
            if is_opaque and not directory_stands_alone(view.upper, name):
                problem = Kind.MERGED_CHILD, "a directory of the server's below an opaque one: it shows as empty"
                yield view.finding(problem, name)
        elif _is_unmodified(view, name, shadow, provenance, roll):
            for problem in _shadow_problems(view, name, facts, shadow):
                yield view.finding(problem, name)
    with os.scandir(view.upper) as found:
        names = (item.name for item in found if not item.is_dir(follow_symlinks=False))
        for name in names:
            yield from _problems_of_upper(view, lower, name, provenance, roll, is_opaque=is_opaque)


def _problems_of_upper(
    view: UpperView, lower: LowerDirectory, name: str, provenance: Provenance, roll: Roll | None, *, is_opaque: bool
) -> Iterator[Finding]:
    """What is wrong with an entry of upper whatever lower's listing says."""
    shadow = lstat(view.upper, name)
    if shadow is None:
        return
    if stat.S_ISREG(shadow.mode):
        if is_opaque and not file_stands_alone(view.upper, name):
            yield view.finding((Kind.LEANING, "a metacopy that looks for its data beside itself: EIO"), name)
            return
        redirect = _redirect_of_metacopy(view.upper, name)
        if redirect is not None and not _resolves(view.layers, lower, view.path, redirect):
            yield view.finding((Kind.REDIRECT, f"the server has no file {display(redirect)}: EIO"), name)
    elif _is_unmodified(view, name, shadow, provenance, roll) and lower.find(name) is None:
        yield view.finding((Kind.EXTRA, "a shadow of what the server has no more"), name)


def _is_unmodified(view: UpperView, name: str, shadow: Facts, provenance: Provenance, roll: Roll | None) -> bool:
    """Whether it is a shadow that no user changed; see :func:`promoterd.overlay.shadows.is_unmodified_shadow`."""
    if shadow.ctime_ns > provenance.completed_ns or xattrs.stat_is_whiteout(shadow.mode, shadow.rdev):
        return False
    if stat.S_ISREG(shadow.mode):
        own = b"/" + join(view.path, os.fsencode(name))
        return _redirect_of_metacopy(view.upper, name) == own
    return not stat.S_ISDIR(shadow.mode) and roll is not None and roll.is_shadow(name)


def _shadow_problems(view: UpperView, name: str, facts: Facts, shadow: Facts) -> Iterator[Problem]:
    problem = None
    for problem in content_problems(facts, shadow):
        yield problem
    if problem is None and stat.S_ISLNK(facts.mode) and view.lower is not None:
        here, there = os.readlink(name, dir_fd=view.upper), view.lower.target(name)
        if here != there:
            leads = "nowhere any more" if there is None else display(os.fsencode(there))
            yield Kind.TARGET, f"leads to {display(os.fsencode(here))}, on the server to {leads}"


def _redirect_of_metacopy(upper: int, name: str) -> bytes | None:
    """The absolute redirect of a metacopy; None of everything else."""
    itself = xattrs.entry(upper, name)
    redirect = xattrs.get(itself, xattrs.REDIRECT)
    if redirect is None or not redirect.startswith(b"/") or xattrs.get(itself, xattrs.METACOPY) is None:
        return None
    return redirect


def _resolves(layers: Layers, lower: LowerDirectory, directory: bytes, redirect: bytes) -> bool:
    """Whether a redirect leads to a file of the server's; one to another directory costs a look there."""
    path = redirect.lstrip(b"/")
    name = os.fsdecode(path.rpartition(b"/")[2])
    if parent(path) == directory:
        facts = lower.find(name)
    else:
        with opened_lower(layers, parent(path)) as other:
            facts = other.find(name) if other is not None else None
    return facts is not None and stat.S_ISREG(facts.mode)


def marked_directories(layers: Layers, skip: bytes) -> Iterator[tuple[bytes, int]]:
    """Directories of upper that carry a mark or something of ours, parents first, with their numbers of entries.

    Nothing below ``skip``, which is the scratch directory. Raises OSError.
    """
    waiting = [b""]
    while waiting:
        path = waiting.pop()
        with beneath.opened(layers.upper, path, beneath.READ_DIRECTORY | os.O_NOATIME) as directory:
            itself = xattrs.descriptor(directory)
            record = xattrs.get(itself, xattrs.PROVENANCE)
            others = (xattrs.get(itself, attribute) for attribute in (xattrs.OPAQUE, xattrs.TIMES))
            if record is not None or any(value is not None for value in others):
                provenance = decode(record)
                yield path, 0 if provenance is None else provenance.entries
            with os.scandir(directory) as found:
                names = sorted((item.name for item in found if item.is_dir(follow_symlinks=False)), reverse=True)
        waiting.extend(join(path, os.fsencode(name)) for name in names if path or os.fsencode(name) != skip)
