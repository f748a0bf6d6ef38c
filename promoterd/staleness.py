"""Staying true to the server: what a recheck finds (R8), and what follows from it (R1, R2, R7)."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import partial

from promoterd.backends.base import MarkState
from promoterd.errors import PromoterdError
from promoterd.mounted import Mounted
from promoterd.overlay import beneath, ghosts, mounts, syscalls
from promoterd.overlay.ancestors import follow_lower
from promoterd.overlay.listing import Layers
from promoterd.paths import ancestors, display, is_below, show
from promoterd.reopen import reopen
from promoterd.states import MARKED, State

STALE_A_DAY = 3
"""Changes in one day from which on a directory counts as growing (R7)."""
VANISHED_SHARE, VANISHED_LEAST = 0.05, 3
"""More than this share, and at least this many, vanished at once: the server is not believed (R1)."""


class Verdict(StrEnum):
    """What the server says of a marked directory."""

    FRESH = "fresh"
    CHANGED = "changed"
    OTHER_LOWER = "other_lower"
    VANISHED = "vanished"
    UNMARKED = "unmarked"


@dataclass(frozen=True, slots=True)
class Finding:
    """The verdict on one directory; ``ghost`` is the topmost directory that is gone."""

    path: bytes
    verdict: Verdict
    ghost: bytes | None = None


def too_many_vanished(vanished: int, checked: int) -> bool:
    """Whether so much is gone at once that a broken server is likelier than a deleted release (pure)."""
    return vanished >= VANISHED_LEAST and vanished > VANISHED_SHARE * checked


def examine(mount: Mounted, path: bytes, layers: Layers) -> Finding:
    """Compare a marked directory with the server, asked anew, ancestors first. Raises OSError."""
    found = mount.backend.on_disk(layers, path)
    if found.mark is not MarkState.OURS or found.provenance is None:
        return Finding(path, Verdict.UNMARKED)
    present = [mounts.lower_identity(layer) for layer in mount.overlay.lowers]
    if not found.provenance.is_from(present):
        return Finding(path, Verdict.OTHER_LOWER)
    ghost = ghosts.ghost_root(layers, path)
    if ghost is not None:
        return Finding(path, Verdict.VANISHED, ghost)
    for directory in [*ancestors(path), path]:
        for index in layers.contributing(directory):
            with beneath.opened(layers.lowers[index], directory) as lower:
                syscalls.statx(lower, force_sync=True)
    contributing = layers.contributing(path)
    if not found.provenance.is_over([present[index] for index in contributing]) or not (
        found.provenance.matches_stamps(layers.stamps(path, contributing))
    ):
        return Finding(path, Verdict.CHANGED)
    return Finding(path, Verdict.FRESH)


async def recheck(mount: Mounted, paths: Sequence[bytes]) -> list[Finding]:
    """Check marked directories against the server and do what the rules say; returns what was found.

    When one has vanished, all are checked before anything is removed: many at once pause the mount. Raises MountGone.
    """
    findings = await _examine_all(mount, paths)
    other = [finding.path for finding in findings if finding.verdict is Verdict.OTHER_LOWER]
    if other:
        mount.trip(f"the lower layers are not those that {show(other[0])} was completed from")
        return findings
    if any(finding.verdict is Verdict.VANISHED for finding in findings):
        everything = [record.path for record in mount.book.in_states(MARKED)]
        findings = await _examine_all(mount, everything)
        await _remove_ghosts(mount, findings, len(everything))
    for finding in findings:
        if finding.verdict is Verdict.UNMARKED:
            mount.book.forget([finding.path], reason="its mark is gone")
        elif finding.verdict is Verdict.CHANGED:
            await _went_stale(mount, finding.path)
        elif finding.verdict is Verdict.FRESH:
            _is_fresh(mount, finding.path)
    await follow_ancestors(mount, paths)
    return findings


async def _examine_all(mount: Mounted, paths: Sequence[bytes]) -> list[Finding]:
    findings = []
    for path in paths:
        if not mount.book.is_marked(path):
            continue
        try:
            findings.append(await mount.with_layers(partial(examine, mount, path)))
        except PromoterdError:
            raise
        except OSError as error:
            mount.log.warning("recheck_failed", path=show(path), reason=str(error))
    mount.metrics.rechecked(len(findings))
    return findings


def _is_fresh(mount: Mounted, path: bytes) -> None:
    record = mount.book.get(path)
    if record is None:
        return
    now = mount.clock()
    state = State.COMPLETE if record.state is State.STALE else record.state
    mount.book.move(path, state, now=now, reason=record.reason if state is record.state else None, last_checked=now)


async def _went_stale(mount: Mounted, path: bytes) -> None:
    """Counted, logged, shown, and reopened if that is safe now; otherwise the reopening is deferred."""
    now = mount.clock()
    if mount.book.state(path) is not State.STALE:
        times = await mount.run(mount.upper_ledger.count_stale, path, now)
        mount.metrics.went_stale()
        what = "the server changed it"
        mount.log.warning("stale", path=show(path), reason=what, times_today=times)
        mount.book.move(path, State.STALE, now=now, reason=what, last_checked=now)
    try:
        reopened = await reopen(mount, path)
    except PromoterdError as error:
        reason = error.fields.get("reason", error.message)
        await mount.run(mount.upper_ledger.defer, path, str(reason), now)
        mount.book.move(path, State.STALE, now=now, reason=f"reopening is deferred: {reason}", last_checked=now)
        return
    if path in reopened and await mount.run(mount.upper_ledger.stale_count, path, now) >= STALE_A_DAY:
        mount.book.move(
            path,
            State.REFUSED,
            now=now,
            reason=f"it changed {STALE_A_DAY} times in a day, so it counts as growing until it is promoted by hand",
            retry_at=None,
        )


async def _remove_ghosts(mount: Mounted, findings: Sequence[Finding], checked: int) -> None:
    roots = sorted({finding.ghost for finding in findings if finding.ghost is not None})
    if too_many_vanished(len(roots), checked):
        mount.trip(f"{len(roots)} directories vanished from the server at once, {show(roots[0])} among them")
        return
    for root in roots:
        removed = await mount.with_layers(
            partial(ghosts.remove_ghost, path=root, scratch_name=mount.policy.scratch_bytes)
        )
        mount.metrics.ghosts_removed(removed.shadows)
        mount.log.warning(
            "ghost_removed",
            path=show(root),
            shadows=removed.shadows,
            kept=[display(path) for path in removed.kept[:10]],
            reason="the server has deleted it",
        )
        gone = [record.path for record in mount.book.in_states(set(State)) if is_below(record.path, root)]
        mount.book.forget(gone, reason="the server has deleted it")


async def follow_ancestors(mount: Mounted, paths: Sequence[bytes]) -> list[bytes]:
    """Make every ancestor of these directories follow lower again; returns those that changed."""
    followed = []
    for ancestor in sorted({above for path in paths for above in ancestors(path)}):
        if mount.book.is_marked(ancestor):
            continue
        try:
            if await mount.with_layers(partial(follow_lower, path=ancestor)):
                followed.append(ancestor)
                mount.log.info("ancestor_follows", path=show(ancestor), reason="lower changed its attributes")
        except FileNotFoundError:
            continue
        except OSError as error:
            mount.log.warning("ancestor_failed", path=show(ancestor), reason=str(error))
    return followed
