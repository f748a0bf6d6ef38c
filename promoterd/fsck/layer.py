"""Directories of a metadata layer: whether they are built as they must be, and show what the server has."""

import os
import stat
from collections.abc import Collection, Iterator
from contextlib import ExitStack
from dataclasses import dataclass

from promoterd.fsck.findings import Area, Finding, Kind
from promoterd.fsck.judging import (
    Facts,
    HardLinks,
    Problem,
    Shadow,
    attribute_problems,
    content_problems,
    decode_copy,
    stub_problems,
    target_problem,
)
from promoterd.fsck.reading import LowerDirectory, Pace, digest_of, lstat, opened_if_there, opened_lower, shadow_of
from promoterd.fsck.view import View
from promoterd.overlay import xattrs
from promoterd.overlay.listing import Layers
from promoterd.paths import display, join
from promoterd.provenance import decode

FILES, REST = 0, 1


@dataclass(slots=True)
class LayerView(View):
    """A directory of the layer, in both halves; a half is -1 where the directory is not in it."""

    area = Area.LAYER
    halves: tuple[int, int] = (-1, -1)

    def _open(self, stack: ExitStack) -> None:
        files, rest = (stack.enter_context(opened_if_there(half, self.path)) for half in self.layers.metadata)
        self.halves = files, rest
        self.lower = stack.enter_context(opened_lower(self.layers, self.path))
        if rest >= 0:
            self.mark = xattrs.get(xattrs.descriptor(rest), xattrs.OPAQUE)
            self.record = xattrs.get(xattrs.descriptor(rest), xattrs.PROVENANCE)

    @property
    def holds_shadows(self) -> bool:
        """Whether it is complete, or open: something other than a directory on the way to one that is."""
        return self.mark is not None or self.record is not None

    def state(self) -> tuple[object, ...]:
        """Differs if anybody changed the directory, here or on the server."""
        times = []
        for half in self.halves:
            status = os.fstat(half) if half >= 0 else None
            times.append(None if status is None else (status.st_mtime_ns, status.st_ctime_ns))
        return self.mark, self.record, *times, self.lower.stamps() if self.lower is not None else ()


def layer_problems(view: LayerView, pace: Pace, force: Collection[str] = ()) -> Iterator[Finding]:
    """All that is wrong with one directory; attributes of the names in ``force`` are asked of the server anew."""
    files, rest = view.halves
    if not view.path:  # the root looks as upper's does
        yield from _strays(view)
        return
    if rest < 0:
        if files >= 0:
            yield view.finding((Kind.TWIN, "in the files half only"))
        return
    yield from map(view.finding, _own_problems(view))
    if view.lower is None:
        yield view.finding((Kind.GHOST, "the server has no such directory"))
        return
    provenance = view.provenance
    if provenance is not None and provenance.is_at(view.path) and not provenance.is_from(view.identities):
        yield view.finding((Kind.OTHER_LOWER, "it was completed from other lower layers"))
        return
    for half, descriptor in (("files", files), ("rest", rest)):
        if descriptor >= 0:
            for kind, detail in attribute_problems(view.lower.facts, Facts.of(os.fstat(descriptor))):
                yield view.finding((kind, f"the {half} half: {detail}"))
    if view.holds_shadows:
        yield from entry_problems(view, pace, force)
    else:
        yield from _strays(view)


def _own_problems(view: LayerView) -> Iterator[Problem]:
    """The directory's own attributes, in both halves."""
    files, rest = view.halves
    redirect = xattrs.get(xattrs.descriptor(rest), xattrs.REDIRECT)
    if redirect != b"/" + view.path:
        said = "no redirect" if redirect is None else f"the redirect {display(redirect)}"
        yield Kind.REDIRECT, f"{said} instead of its own path"
    if files >= 0:
        for attribute in (xattrs.OPAQUE, xattrs.REDIRECT):
            if xattrs.get(xattrs.descriptor(files), attribute) is not None:
                yield Kind.XATTR, f"the files half has {attribute}"
    provenance = view.provenance
    if provenance is None and view.record is not None:
        yield Kind.BAD_PROVENANCE, "its provenance is damaged, or of another version"
    elif provenance is None and view.mark is not None:
        yield Kind.NO_PROVENANCE, "a mark without provenance: nobody compares it with the server"
    elif provenance is not None and not provenance.is_at(view.path):
        yield Kind.BAD_PROVENANCE, "its provenance is that of another directory"
    elif provenance is not None and view.mark is None:
        yield Kind.OPEN, "not complete: the server is asked as well until the daemon has brought it in line"


def _strays(view: LayerView) -> Iterator[Finding]:
    for half in view.halves:
        if half >= 0:
            with os.scandir(half) as found:
                for item in found:
                    if not item.is_dir(follow_symlinks=False):
                        yield view.finding((Kind.STRAY, "a shadow in a directory that is not complete"), item.name)


def entry_problems(view: LayerView, pace: Pace, force: Collection[str] = ()) -> Iterator[Finding]:
    """Entries of a complete or open directory that are not what the server has.

    One pass over the server's names, and one over the layer's only where their numbers differ.
    """
    lower = view.lower
    assert lower is not None  # noqa: S101 - the caller looked
    matched = [0, 0]
    links = HardLinks(view.path)
    for name, facts, index in lower.entries(pace, force):
        half = FILES if stat.S_ISREG(facts.mode) else REST
        shadow = shadow_of(view.halves[half], name)
        if shadow is None:
            if view.mark is not None and lstat(view.halves[1 - half], name) is None:
                yield view.finding((Kind.MISSING, "the server has it, the layer has not"), name)
            continue
        matched[half] += 1
        if stat.S_ISDIR(facts.mode) and stat.S_ISDIR(shadow.facts.mode):
            twin = lstat(view.halves[FILES], name)
            matched[FILES] += twin is not None and stat.S_ISDIR(twin.mode)
            continue
        for problem in _problems_of(view, name, facts, index, shadow, links):
            yield view.finding(problem, name)
    for name, problem in links.redirect_problems():
        yield view.finding(problem, name)
    for half in (FILES, REST):
        if view.halves[half] >= 0 and _count(view.halves[half]) != matched[half]:
            yield from _extras(view, lower, half)


def _problems_of(
    view: LayerView, name: str, facts: Facts, index: int, shadow: Shadow, links: HardLinks
) -> Iterator[Problem]:
    differs = False
    for problem in content_problems(facts, shadow.facts):
        differs = True
        yield problem
    if stat.S_IFMT(facts.mode) != stat.S_IFMT(shadow.facts.mode):
        return
    if stat.S_ISREG(facts.mode):
        path = join(view.path, os.fsencode(name))
        for problem in (*stub_problems(facts, shadow, path), *links.add(name, index, facts, shadow)):
            differs = True
            yield problem
        record = decode_copy(shadow.copy) if shadow.copy is not None else None
        if record is not None and not differs and digest_of(view.halves[FILES], name) != record.sha256:
            yield Kind.COPY, "a copy with other data than was copied"
    elif stat.S_ISLNK(facts.mode) and not differs and view.lower is not None:
        here, there = os.readlink(name, dir_fd=view.halves[REST]), view.lower.target(name)
        if here != there:
            yield target_problem(here, there)


def _count(directory: int) -> int:
    with os.scandir(directory) as found:
        return sum(1 for _ in found)


def _extras(view: LayerView, lower: LowerDirectory, half: int) -> Iterator[Finding]:
    """What the server does not have, or has as something that belongs into the other half.

    Directories are judged for themselves, where they are met.
    """
    with os.scandir(view.halves[half]) as found:
        for item in found:
            if item.is_dir(follow_symlinks=False):
                continue
            facts = lower.find(item.name)
            if facts is None:
                yield view.finding((Kind.EXTRA, "the layer has it, the server has not"), item.name)
            elif stat.S_ISREG(facts.mode) != (half == FILES):
                here = lstat(view.halves[half], item.name)
                if here is not None:
                    where = "files" if half == FILES else "rest"
                    yield view.finding(
                        (Kind.TYPE, f"{here.type_name} in the {where} half, the server has {facts.type_name}"),
                        item.name,
                    )


def directories_of(layers: Layers) -> Iterator[tuple[bytes, int]]:
    """Every directory in either half, parents first, with the entries that it is said to have. Raises OSError."""
    waiting = [b""]
    while waiting:
        path = waiting.pop()
        names: set[str] = set()
        entries = 0
        for number, half in enumerate(layers.metadata):
            with ExitStack() as stack:
                opened = stack.enter_context(opened_if_there(half, path))
                if opened < 0:
                    continue
                if number == REST:
                    record = decode(xattrs.get(xattrs.descriptor(opened), xattrs.PROVENANCE))
                    entries = 0 if record is None else record.entries
                with os.scandir(opened) as found:
                    names.update(item.name for item in found if item.is_dir(follow_symlinks=False))
        yield path, entries
        waiting.extend(join(path, os.fsencode(name)) for name in sorted(names, reverse=True))
