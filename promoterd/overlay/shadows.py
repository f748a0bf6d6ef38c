"""Telling our shadows in upper from what a user made or changed, and what stands alone under a mark."""

import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass

from promoterd.overlay import beneath, rolls, xattrs
from promoterd.overlay.listing import Layers, LowerListing, UpperEntry
from promoterd.overlay.rolls import Roll
from promoterd.paths import join
from promoterd.provenance import decode

_NEVER = 1 << 63


@dataclass(frozen=True, slots=True)
class Completion:
    """What is known of a directory's completion, to tell our shadows in it: all there is to ``is_unmodified_shadow``.

    Of a directory that was not completed: no roll, and any time of change.
    """

    path: bytes
    completed_ns: int = _NEVER
    roll: Roll | None = None


def completion_of(layers: Layers, path: bytes) -> Completion:
    """The completion of the upper directory at ``path``, if it has one."""
    provenance = decode(layers.upper_xattr(path, xattrs.PROVENANCE))
    if provenance is None or not provenance.is_at(path):
        return Completion(path)
    return Completion(path, provenance.completed_ns, rolls.read(layers.overlay, provenance))


def is_unmodified_shadow(above: int, name: str, entry: UpperEntry, completion: Completion) -> bool:
    """Whether an upper entry holds nothing of a user's: copied up from lower's entry of this name, and unchanged since.

    A file tells where its data comes from; of anything else the roll tells that it was lower's at the completion.
    Directories and whiteouts say no.
    """
    if entry.whiteout or stat.S_ISDIR(entry.mode) or entry.ctime_ns > completion.completed_ns:
        return False
    if not stat.S_ISREG(entry.mode):
        return completion.roll is not None and completion.roll.is_shadow(name)
    itself = xattrs.entry(above, name)
    from_here = b"/" + join(completion.path, os.fsencode(name))
    return xattrs.get(itself, xattrs.REDIRECT) == from_here and xattrs.get(itself, xattrs.METACOPY) is not None


def others_own(layers: Layers, path: bytes, listing: LowerListing, upper: dict[str, UpperEntry]) -> set[str]:
    """Names of lower under which upper holds something else than a copy; of files their redirects tell, at any time."""
    unsure = [
        name
        for name, mode in listing.entries.items()
        if not stat.S_ISDIR(mode) and not (stat.S_ISREG(mode) and (name not in upper or stat.S_ISREG(upper[name].mode)))
    ]
    if not unsure:
        return set()
    with _opened(layers, path) as (above, lowers):
        return {name for name in unsure if _differs(lowers, above, name)}


def leaning_files(directory: int, upper: Mapping[str, UpperEntry]) -> dict[str, int]:
    """The files of an upper directory that would look for their data beside themselves, with their modes."""
    return {
        name: entry.mode
        for name, entry in upper.items()
        if stat.S_ISREG(entry.mode) and not file_stands_alone(directory, name)
    }


def file_stands_alone(above: int, name: str) -> bool:
    """Whether an upper regular file has its data, or a redirect to it that does not start beside itself.

    A metacopy without a redirect, or with a relative one, finds no data below an opaque directory (EIO).
    """
    itself = xattrs.entry(above, name)
    redirect = xattrs.get(itself, xattrs.REDIRECT)
    if redirect is not None and redirect.startswith(b"/"):
        return True
    return xattrs.get(itself, xattrs.METACOPY) is None


def directory_stands_alone(above: int, name: str) -> bool:
    """Whether an upper directory needs no lower one beside it: opaque, led elsewhere, or made by a user.

    Below an opaque directory any other shows up without what is in lower.
    """
    itself = xattrs.entry(above, name)
    if xattrs.get(itself, xattrs.OPAQUE) is not None:
        return True
    redirect = xattrs.get(itself, xattrs.REDIRECT)
    if redirect is not None:
        return redirect.startswith(b"/")
    return xattrs.get(itself, xattrs.ORIGIN) is None


def stale_shadows(
    layers: Layers, listing: LowerListing, upper: dict[str, UpperEntry], completion: Completion
) -> Iterator[tuple[str, int]]:
    """Our shadows, with their change times, that lower has removed or replaced since, and that no user changed."""
    with _opened(layers, completion.path) as (above, lowers):
        for name, entry in upper.items():
            if is_unmodified_shadow(above, name, entry, completion) and (
                name not in listing.entries or _was_replaced(lowers, above, name)
            ):
                yield name, entry.ctime_ns


@contextmanager
def _opened(layers: Layers, path: bytes) -> Iterator[tuple[int, list[int]]]:
    """The upper directory at ``path``, and the lower ones that are merged with it."""
    with ExitStack() as stack:
        above = stack.enter_context(beneath.opened(layers.upper, path))
        lowers = [
            stack.enter_context(beneath.opened(layers.lowers[index], path)) for index in layers.contributing(path)
        ]
        yield above, lowers


def _was_replaced(lowers: list[int], above: int, name: str) -> bool:
    """Whether lower's entry differs in what only the server changes; a changed owner or mode may be the user's."""
    shadow = os.stat(name, dir_fd=above, follow_symlinks=False)
    lower, now = _in_lower(lowers, name)
    if now is None or stat.S_IFMT(now.st_mode) != stat.S_IFMT(shadow.st_mode):
        return True
    same = _content(now) == _content(shadow)
    if stat.S_ISLNK(now.st_mode):
        return not same or os.readlink(name, dir_fd=lower) != os.readlink(name, dir_fd=above)
    return not same and _permissions(now) == _permissions(shadow)


def _differs(lowers: list[int], above: int, name: str) -> bool:
    """Whether there is an upper entry that differs from lower's; links are not read, which their access times show."""
    try:
        shadow = os.stat(name, dir_fd=above, follow_symlinks=False)
    except FileNotFoundError:
        return False
    _, now = _in_lower(lowers, name)
    return now is None or (_permissions(now), _content(now)) != (_permissions(shadow), _content(shadow))


def _in_lower(lowers: list[int], name: str) -> tuple[int, os.stat_result | None]:
    for lower in lowers:
        with suppress(FileNotFoundError):
            return lower, os.stat(name, dir_fd=lower, follow_symlinks=False)
    return -1, None


def _permissions(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_mode, status.st_uid, status.st_gid


def _content(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_size, status.st_mtime_ns, status.st_rdev
