"""What an interrupted run left lying about: in the layer's home, in the overlay's root, and among the rolls."""

import os
import re
import shutil
import stat
from collections.abc import Collection, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress

from promoterd.fsck.findings import Area, Finding, Kind
from promoterd.fsck.reading import lstat, opened_if_there
from promoterd.fsck.session import Session
from promoterd.overlay import beneath, rolls, scratch, xattrs
from promoterd.overlay.mounts import GRAVEYARD, STAGE
from promoterd.overlay.times import times_kept
from promoterd.provenance import decode

_ROLL = re.compile(rb"roll-[0-9a-f]{24}")
_SCRATCH_MODE = 0o700


def leftovers(session: Session, places: Collection[bytes]) -> Iterator[Finding]:
    """What lies in stage, graveyard and scratch directory, and among the rolls in ``places``. Raises OSError."""
    for name in _names(session, STAGE):
        yield Finding(Area.HOME, STAGE, Kind.STAGE, "built, and never put into place", name)
    for name in _names(session, GRAVEYARD):
        if session.mounted:
            yield Finding(Area.HOME, GRAVEYARD, Kind.WAITING, "taken out, and kept while a reader may have it", name)
        else:
            yield Finding(Area.HOME, GRAVEYARD, Kind.GRAVE, "taken out, and nobody can have it any more", name)
    if session.overlay.upper is not None:
        if _has_our_scratch(session):
            yield Finding(Area.HOME, session.scratch, Kind.SCRATCH, "the scratch directory of a run that was cut off")
        for roll in _stray_rolls(session, places):
            name = os.fsdecode(os.path.basename(roll))
            yield Finding(Area.HOME, b"", Kind.STRAY_ROLL, "a roll of no complete directory", name)


def remove_leftover(session: Session, finding: Finding, places: Collection[bytes]) -> bool:
    """Remove one of :func:`leftovers`; False where it has to stay. Raises Refused, OSError."""
    if finding.kind in (Kind.STAGE, Kind.GRAVE) and finding.name is not None:
        with _opened_in_home(session, finding.path) as directory:
            with suppress(FileNotFoundError, IsADirectoryError):
                os.unlink(finding.name, dir_fd=directory)
            shutil.rmtree(finding.name, ignore_errors=True, dir_fd=directory)
            return lstat(directory, finding.name) is None
    if finding.kind is Kind.SCRATCH:
        return _remove_scratch(session)
    if finding.kind is Kind.STRAY_ROLL:
        for roll in list(_stray_rolls(session, places)):
            os.unlink(roll)
        return True
    return False


def _names(session: Session, place: bytes) -> list[str]:
    if session.overlay.layer_home is None:
        return []
    try:
        with _opened_in_home(session, place) as directory:
            return sorted(os.listdir(directory))
    except FileNotFoundError:
        return []


@contextmanager
def _opened_in_home(session: Session, place: bytes) -> Iterator[int]:
    with ExitStack() as stack:
        home = beneath.open_root(session.overlay.layer_home or b"/")
        stack.callback(os.close, home)
        yield stack.enter_context(beneath.opened(home, place, beneath.READ_DIRECTORY))


def _has_our_scratch(session: Session) -> bool:
    """Whether there is a scratch directory of ours, with nothing of another's in it."""
    with opened_if_there(session.layers.upper, session.scratch) as directory:
        if directory < 0:
            return False
        status = os.fstat(directory)
        itself = xattrs.descriptor(directory)
        return (
            (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (0, 0, _SCRATCH_MODE)
            and xattrs.get(itself, xattrs.ORIGIN) is None
            and xattrs.get(itself, xattrs.REDIRECT) is None
            and all(scratch.OURS.fullmatch(os.fsencode(name)) for name in os.listdir(directory))
        )


def _remove_scratch(session: Session) -> bool:
    if session.mounted:
        return scratch.Scratch(session.scratch).remove(session.layers.root, session.layers.upper)
    name = os.fsdecode(session.scratch)
    with beneath.opened(session.layers.upper, b"") as root, times_kept(root):
        shutil.rmtree(name, ignore_errors=True, dir_fd=root)
        return lstat(root, name) is None


def places_of_rolls(session: Session, marked: Iterable[bytes]) -> set[bytes]:
    """Where rolls are: in the work directory, or where that is unknown, as the provenance of what is marked says."""
    overlay = session.overlay
    if overlay.upper is None:
        return set()
    if overlay.work is not None:
        return {rolls.directory_of(overlay, rolls.place(overlay, b""))}
    records = (decode(session.layers.upper_xattr(path, xattrs.PROVENANCE)) for path in marked)
    return {rolls.directory_of(overlay, record.roll) for record in records if record is not None and record.roll}


def _stray_rolls(session: Session, places: Collection[bytes]) -> Iterator[bytes]:
    for roll in rolls.strays(session.layers, sorted(places)):
        if _ROLL.fullmatch(os.path.basename(roll)):
            yield roll
