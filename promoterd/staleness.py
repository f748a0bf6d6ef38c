"""Staying true to the server: what a recheck finds (R8), and what follows from it (R1, R2, R7)."""

import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import partial

from promoterd.backends.base import MarkState
from promoterd.errors import MountGone, PromoterdError, Refused
from promoterd.mounted import Mounted
from promoterd.overlay import beneath, mounts, syscalls
from promoterd.overlay.listing import Layers
from promoterd.pacing import owe
from promoterd.paths import ancestors, display, is_below, show
from promoterd.queueing import overlaps
from promoterd.reopen import reopen_wanted
from promoterd.resyncing import STALE_A_DAY, resync_or_leave
from promoterd.states import MARKED, State
from promoterd.terms import RESTLESS, why_forbidden
from promoterd.verifying import rewritten

VANISHED_SHARE, VANISHED_LEAST = 0.05, 3
"""More than this share, and at least this many, vanished at once: the server is not believed (R1)."""


class Verdict(StrEnum):
    """What the server says of a marked directory."""

    FRESH = "fresh"
    CHANGED = "changed"
    OPEN = "open"
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


def examine(mount: Mounted, path: bytes, layers: Layers, asked: Collection[bytes] = ()) -> Finding:
    """Compare a marked directory with the server, asked anew, ancestors first. Raises OSError.

    ``asked``: directories of which the server was asked a moment ago.
    """
    found = mount.backend.on_disk(layers, path)
    if found.mark not in {MarkState.OURS, MarkState.OPEN} or found.provenance is None:
        return Finding(path, Verdict.UNMARKED)
    present = [mounts.lower_identity(layer) for layer in mount.overlay.lowers]
    if not found.provenance.is_from(present):
        return Finding(path, Verdict.OTHER_LOWER)
    contributing = tuple(range(len(layers.lowers)))
    for directory in [b"", *ancestors(path), path]:
        if directory:
            contributing = layers.contributing_below(contributing, directory)
        if not contributing:
            return Finding(path, Verdict.VANISHED, directory)
        if directory in asked:
            continue
        for index in contributing:  # asked for its attributes, the client looks names in it up anew (nfs(5), actimeo)
            owe(1)
            with beneath.opened(layers.lowers[index], directory) as lower:
                syscalls.statx(lower, force_sync=True)
    if found.mark is MarkState.OPEN:
        return Finding(path, Verdict.OPEN)
    if not found.provenance.is_over([present[index] for index in contributing]) or not (
        found.provenance.matches_stamps(layers.stamps(path, contributing))
    ):
        return Finding(path, Verdict.CHANGED)
    return Finding(path, Verdict.FRESH)


async def recheck(mount: Mounted, paths: Sequence[bytes], verify: Collection[bytes] = ()) -> list[bytes]:
    """Check marked directories against the server and do what the rules say; returns those that were reopened.

    Those to ``verify`` are looked at file by file as well, if they have not changed otherwise.
    When one has vanished, all are checked before anything is removed: many at once pause the mount. Raises MountGone.
    """
    findings = await _examine_all(mount, paths)
    other = [finding.path for finding in findings if finding.verdict is Verdict.OTHER_LOWER]
    if other:
        mount.trip(f"the lower layers are not those that {show(other[0])} was completed from; retire the mount first")
        return []
    if any(finding.verdict is Verdict.VANISHED for finding in findings):
        everything = [record.path for record in mount.book.in_states(MARKED)]
        findings = await _examine_all(mount, everything)
        await _remove_ghosts(mount, findings, len(everything))
    else:
        mount.believed = frozenset()
    to_reopen = await _take_note(mount, findings, verify)
    if mount.backend.resyncs:
        to_reopen = await resync_or_leave(mount, to_reopen)
    reopened = [path for group in _by_tree(mount, to_reopen) for path in await _reopen_or_say(mount, group)]
    await _count_restless(mount, reopened)
    await follow(mount, sorted({above for path in paths for above in ancestors(path)}))
    for path in filter(mount.book.is_marked, paths):
        await _follow_children(mount, path)
    return reopened


async def _take_note(mount: Mounted, findings: Sequence[Finding], verify: Collection[bytes]) -> list[bytes]:
    """Bring the book in line with what was found; returns what must not stay complete as it is."""
    to_reopen = []
    for finding in findings:
        forbidden = why_forbidden(mount.policy.rule_for(finding.path))
        if finding.verdict is Verdict.UNMARKED:
            mount.book.forget([finding.path], reason="its mark is gone")
        elif finding.verdict is Verdict.CHANGED:
            await _went_stale(mount, finding.path, "the server changed it")
            to_reopen.append(finding.path)
        elif finding.verdict is Verdict.OPEN:
            to_reopen.append(finding.path)
        elif finding.verdict is Verdict.FRESH and forbidden is not None:
            _no_longer_allowed(mount, finding.path, forbidden)
            to_reopen.append(finding.path)
        elif finding.verdict is Verdict.FRESH and await _was_rewritten(mount, finding.path, verify):
            to_reopen.append(finding.path)
        elif finding.verdict is Verdict.FRESH:
            _is_fresh(mount, finding.path)
    return to_reopen


async def _follow_children(mount: Mounted, path: bytes) -> None:
    """What stands in a complete directory without being complete is to look as on the server (R2)."""
    try:
        children = await mount.with_layers(partial(mount.backend.followers, path=path))
    except (FileNotFoundError, NotADirectoryError):
        return
    if children:
        await mount.rechecks.take(len(children))
        await mount.pace.settle()
        await follow(mount, children)


def _by_tree(mount: Mounted, paths: Sequence[bytes]) -> list[list[bytes]]:
    """Together what has complete ancestors in common: these are reopened with each, and wait for quiet once."""
    trees: dict[bytes, list[bytes]] = {}
    for path in paths:
        top = next(directory for directory in (*ancestors(path), path) if mount.book.is_marked(directory))
        trees.setdefault(top, []).append(path)
    return list(trees.values())


async def _examine_all(mount: Mounted, paths: Sequence[bytes]) -> list[Finding]:
    findings = []
    asked: set[bytes] = set()
    for path in paths:
        if not mount.book.is_marked(path):
            continue
        way = {b"", *ancestors(path)}
        await mount.rechecks.take(1 + len(way - asked))
        await mount.pace.settle()
        try:
            findings.append(await mount.with_layers(partial(examine, mount, path, asked=frozenset(asked))))
            asked |= way
        except MountGone:
            raise
        except (Refused, OSError) as error:
            mount.log.warning("recheck_failed", path=show(path), reason=str(error))
    mount.metrics.rechecked(len(findings))
    return findings


def _is_fresh(mount: Mounted, path: bytes) -> None:
    record = mount.book.get(path)
    if record is None:
        return
    now = mount.clock()
    if record.state is State.STALE:
        mount.upper_ledger.undefer(path)
        mount.book.move(path, State.ACTIVE, now=now, last_checked=now)
    else:
        mount.book.move(path, record.state, now=now, reason=record.reason, last_checked=now)


async def _was_rewritten(mount: Mounted, path: bytes, verify: Collection[bytes]) -> bool:
    """Whether the directory is stale for a file that was rewritten in place, found now or before."""
    is_stale = mount.book.state(path) is State.STALE
    if is_stale and path in mount.rewritten:
        return True
    mount.rewritten.discard(path)
    if path not in verify and not is_stale:  # one that is, for what was found before a restart, is looked at again
        return False
    try:
        name = await rewritten(mount, path)
    except (Refused, OSError) as error:
        mount.log.warning("recheck_failed", path=show(path), reason=str(error))
        return False
    if name is not None:
        mount.rewritten.add(path)
        await _went_stale(mount, path, f"the server rewrote {display(os.fsencode(name))} in place")
    return name is not None


async def _went_stale(mount: Mounted, path: bytes, what: str) -> None:
    """Counted, logged and shown."""
    if mount.book.state(path) is State.STALE:
        return
    now = mount.clock()
    times = await mount.run(mount.upper_ledger.count_stale, path, now)
    mount.metrics.went_stale()
    mount.log.warning("stale", path=show(path), reason=what, times_today=times)
    mount.book.move(path, State.STALE, now=now, reason=what, last_checked=now)


def _no_longer_allowed(mount: Mounted, path: bytes, forbidden: str) -> None:
    """What policy has come to forbid is undone (I3)."""
    if mount.book.state(path) is not State.STALE:
        mount.book.move(path, State.STALE, now=mount.clock(), reason=forbidden)


async def _reopen_or_say(mount: Mounted, paths: Sequence[bytes]) -> list[bytes]:
    """Reopen stale directories of one tree, or give the reason why that has to wait as that of their states."""
    try:
        return await reopen_wanted(mount, *paths)
    except MountGone:
        raise
    except (PromoterdError, OSError) as error:
        now = mount.clock()
        why = error.fields.get("reason", error.message) if isinstance(error, PromoterdError) else error
        reason = f"reopening is deferred: {why}"
        mount.book.move_all(paths, State.STALE, now=now, reason=reason, last_checked=now)
        return []


async def _count_restless(mount: Mounted, reopened: Sequence[bytes]) -> None:
    """What went stale too often in a day is not promoted again (R7)."""
    now = mount.clock()
    for path in reopened:
        if await mount.run(mount.upper_ledger.stale_count, path, now) >= STALE_A_DAY:
            mount.book.move(path, State.REFUSED, now=now, reason=RESTLESS, retry_at=None)


async def _remove_ghosts(mount: Mounted, findings: Sequence[Finding], checked: int) -> None:
    roots = sorted({finding.ghost for finding in findings if finding.ghost is not None})
    unexpected = mount.believed.intersection(roots) ^ set(roots)
    if too_many_vanished(len(unexpected), checked):
        mount.doubted = frozenset(roots)
        mount.trip(f"{len(roots)} directories vanished from the server at once, {show(roots[0])} among them")
        return
    for root in roots:
        if overlaps(root, mount.busy):
            continue
        try:
            await _remove_ghost(mount, root)
        except (Refused, OSError) as error:
            mount.log.warning("recheck_failed", path=show(root), reason=f"its shadows cannot be removed: {error}")
            _look_again_later(mount, [finding.path for finding in findings if finding.ghost == root])
    if roots and await _is_anything_kept(mount):
        mount.unsettled = True


async def _is_anything_kept(mount: Mounted) -> bool:
    """Whether something that was taken out may be referred to still, or shown, so that an activation is wanted."""
    try:
        async with mount.changing:
            return await mount.with_layers(mount.backend.sweep) > 0
    except OSError:  # the activation sweeps as well, and says what is wrong
        return True


async def _remove_ghost(mount: Mounted, root: bytes) -> None:
    """Remove what the server has deleted, and forget it. Raises Refused, OSError, MountGone."""
    async with mount.changing:
        removed = await mount.with_layers(partial(mount.backend.remove_ghost, path=root))
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
    mount.upper_ledger.undefer(*gone)
    mount.follow_no_more([path for path in mount.followed if is_below(path, root)])


def _look_again_later(mount: Mounted, paths: Sequence[bytes]) -> None:
    """What could not be dealt with now is due again after its interval, and not at each look."""
    now = mount.clock()
    for path in paths:
        record = mount.book.get(path)
        if record is not None:
            mount.book.move(path, record.state, now=now, reason=record.reason, last_checked=now)


async def follow(mount: Mounted, paths: Sequence[bytes]) -> list[bytes]:
    """Make copied-up directories follow lower again, complete ones aside; returns those that changed."""
    followed = []
    for path in paths:
        if not path or mount.book.is_marked(path):
            continue
        try:
            if await mount.with_layers(partial(mount.backend.follow, path=path)):
                followed.append(path)
                mount.log.info("directory_follows", path=show(path), reason="the server changed its attributes")
        except FileNotFoundError:
            mount.follow_no_more([path])
        except (Refused, OSError) as error:
            mount.log.warning("follow_failed", path=show(path), reason=str(error))
    return followed
