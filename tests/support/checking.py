"""Checks run on an overlay of a test, mounted or not, in this process; and what they found."""

import os

from promoterd.fsck.findings import Kind, Report
from promoterd.fsck.run import check
from promoterd.fsck.session import opened_session, unmounted
from promoterd.overlay.lock import users_of
from promoterd.overlay.mounts import overlay_at
from support.daemons import wait_for
from support.overlays import MountedOverlay
from support.promotions import assert_same_view, view_below, view_of

Told = set[tuple[str, str]]


def checked(
    mounted: MountedOverlay, *, repair: bool = False, offline: bool = False, state: str = "/nonexistent"
) -> Report:
    """Check, with the overlay unmounted for it where ``offline``."""
    if not offline:
        overlay = overlay_at(mounted.mountpoint)
        with opened_session(overlay, mounted=True, repairing=repair, state_directory=state) as session:
            return check(session).report
    mounted.umount()
    try:
        overlay = unmounted(mounted.upper, [*mounted.metadata, *mounted.layers], state)
        # a process that is just looking at its own mounts may have got a copy of ours in its namespace
        wait_for(lambda: not users_of(mounted.upper))
        with opened_session(overlay, mounted=False, repairing=repair, state_directory=state) as session:
            return check(session).report
    finally:
        mounted.mount()


def errors(report: Report) -> Told:
    """Kinds and places of the errors."""
    return {(row.finding.kind.value, row.finding.where) for row in report.rows if row.finding.is_error}


def left(report: Report) -> Told:
    """Those that were not corrected."""
    return {
        (row.finding.kind.value, row.finding.where) for row in report.rows if row.finding.is_error and not row.corrected
    }


def information(report: Report) -> Told:
    return {(row.finding.kind.value, row.finding.where) for row in report.rows if not row.finding.is_error}


def kinds(report: Report) -> set[Kind]:
    return {row.finding.kind for row in report.rows if row.finding.is_error}


def assert_shows_the_server(mounted: MountedOverlay) -> None:
    """What applications see is what the server has."""
    mounted.cool()
    assert_same_view(view_below(mounted.layers[0]), view_of(mounted))


def corrupt_digest(path: bytes) -> None:
    """Other data of the same size, at the same times: as a disk that forgets."""
    status = os.stat(path)
    with open(path, "r+b") as file:
        file.write(b"\0")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
