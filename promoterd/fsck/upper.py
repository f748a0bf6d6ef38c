"""Directories of the upper layer that carry a mark: whether what the mark relies on is there."""

import os
import stat
from collections.abc import Collection, Iterator
from contextlib import ExitStack
from dataclasses import dataclass

from promoterd.fsck.findings import Area, Finding, Kind
from promoterd.fsck.judging import Facts, Problem, content_problems, target_problem
from promoterd.fsck.reading import LowerDirectory, Pace, lstat, opened_if_there, opened_lower
from promoterd.fsck.view import View
from promoterd.overlay import beneath, rolls, xattrs
from promoterd.overlay.listing import Layers
from promoterd.overlay.rolls import Roll
from promoterd.overlay.shadows import directory_stands_alone, file_stands_alone
from promoterd.paths import display, join, parent
from promoterd.provenance import Provenance, decode

_ATTRIBUTES = frozenset({Kind.TIME, Kind.OWNER, Kind.MODE})
"""What a user may have changed before the completion; it is the server's change if that came later (by its clock)."""
_MARKS = (xattrs.OPAQUE_YES, xattrs.OPAQUE_FINALIZED)


@dataclass(slots=True)
class UpperView(View):
    """A directory of the upper layer; ``upper`` is -1 where there is none, and ``lower`` None where it is not ours."""

    area = Area.UPPER
    upper: int = -1

    def _open(self, stack: ExitStack) -> None:
        self.upper = stack.enter_context(opened_if_there(self.layers.upper, self.path))
        if self.upper >= 0:
            self.mark = self.xattr(xattrs.OPAQUE)
            self.record = self.xattr(xattrs.PROVENANCE)
            if self.is_ours:
                self.lower = stack.enter_context(opened_lower(self.layers, self.path))

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


def upper_problems(view: UpperView, pace: Pace, force: Collection[str] = ()) -> Iterator[Finding]:
    """All that is wrong with one directory; attributes of the names in ``force`` are asked of the server anew."""
    if view.upper < 0:
        return
    if view.xattr(xattrs.TIMES) is not None:
        yield view.finding((Kind.TIMES, "its times are those of a change that was cut off"))
    problem = _verdict(view)
    if problem is not None:
        yield view.finding(problem)
    elif view.provenance is not None and view.lower is not None:
        roll = rolls.read(view.layers.overlay, view.provenance)
        yield from _Entries(view, view.lower, view.provenance, roll).problems(pace, force)


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


@dataclass(frozen=True, slots=True)
class _Entries:
    """The entries of a directory that carries a mark of ours, and what they are judged by."""

    view: UpperView
    lower: LowerDirectory
    provenance: Provenance
    roll: Roll | None

    @property
    def is_opaque(self) -> bool:
        """Whether nothing of it is looked up below; or else only names that do not exist are not (``finalize``)."""
        return self.view.mark == xattrs.OPAQUE_YES

    def problems(self, pace: Pace, force: Collection[str]) -> Iterator[Finding]:
        """One pass over the server's names, and one over upper's."""
        if self.roll is None:
            yield self.view.finding((Kind.ROLL, "the roll of the names that it had is lost or damaged"))
        for name, facts, _ in self.lower.entries(pace, force):
            for problem in self._shadowing(name, facts):
                yield self.view.finding(problem, name)
        with os.scandir(self.view.upper) as found:
            for item in found:
                if not item.is_dir(follow_symlinks=False):
                    for problem in self._standing(item.name):
                        yield self.view.finding(problem, item.name)

    def _shadowing(self, name: str, facts: Facts) -> Iterator[Problem]:
        """What is wrong with what stands in upper for an entry of the server's."""
        shadow = lstat(self.view.upper, name)
        if shadow is None:
            if self.roll is not None and not self.roll.knows(name):  # or else a user deleted it, leaving nothing behind
                yield Kind.MISSING, "the server has it, and it is not shadowed"
        elif stat.S_ISDIR(facts.mode) and stat.S_ISDIR(shadow.mode):
            if self.is_opaque and not directory_stands_alone(self.view.upper, name):
                yield Kind.MERGED_CHILD, "a directory of the server's below an opaque one: it shows as empty"
        elif self._is_unmodified(name, shadow):
            for problem in self._differences(name, facts, shadow):
                if problem[0] not in _ATTRIBUTES or facts.ctime_ns > self.provenance.completed_ns:
                    yield problem

    def _standing(self, name: str) -> Iterator[Problem]:
        """What is wrong with an entry of upper whatever lower's listing says."""
        shadow = lstat(self.view.upper, name)
        if shadow is None:
            return
        if not stat.S_ISREG(shadow.mode):
            if self._is_unmodified(name, shadow) and self.lower.find(name) is None:
                yield Kind.EXTRA, "a shadow of what the server has no more"
        elif self.is_opaque and not file_stands_alone(self.view.upper, name):
            yield Kind.LEANING, "a metacopy that looks for its data beside itself: EIO"
        else:
            redirect = _redirect_of_metacopy(self.view.upper, name)
            if redirect is not None and not _resolves(self.view.layers, self.lower, self.view.path, redirect):
                yield Kind.REDIRECT, f"the server has no file {display(redirect)}: EIO"

    def _is_unmodified(self, name: str, shadow: Facts) -> bool:
        """Whether no user changed it since; see :func:`promoterd.overlay.shadows.is_unmodified_shadow`."""
        if shadow.ctime_ns > self.provenance.completed_ns or xattrs.stat_is_whiteout(shadow.mode, shadow.rdev):
            return False
        if stat.S_ISREG(shadow.mode):
            own = b"/" + join(self.view.path, os.fsencode(name))
            return _redirect_of_metacopy(self.view.upper, name) == own
        return not stat.S_ISDIR(shadow.mode) and self.roll is not None and self.roll.is_shadow(name)

    def _differences(self, name: str, facts: Facts, shadow: Facts) -> Iterator[Problem]:
        problem = None
        for problem in content_problems(facts, shadow):
            yield problem
        if problem is None and stat.S_ISLNK(facts.mode):
            here, there = os.readlink(name, dir_fd=self.view.upper), self.lower.target(name)
            if here != there:
                yield target_problem(here, there)


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
