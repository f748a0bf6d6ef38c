"""Why a directory is in the state that it is in, and what keeps it from the next one."""

import os
import stat
from collections.abc import Iterable
from dataclasses import asdict
from functools import partial
from typing import Any

from promoterd.backends.base import Backend, MarkState, OnDisk
from promoterd.errors import MountGone, PromoterdError, Refused
from promoterd.ledger import DirectoryRecord
from promoterd.mounted import Mounted
from promoterd.overlay import beneath, pins
from promoterd.overlay.listing import Layers
from promoterd.paths import display, join, show
from promoterd.states import State
from promoterd.terms import NANOSECONDS, terms_for, why_forbidden
from promoterd.units import format_duration

_HELD = (State.COMPLETE, State.PINNED)
_NO_ENTRIES: dict[str, Any] = {"entries": 0, "not_shadowed": [], "lower_layers": []}
_HELD_BACK = "the mark takes effect when no process holds the directory at the next reconfigure"


async def explain(mount: Mounted, path: bytes, heat: float) -> dict[str, Any]:
    """Everything known of one directory, as plain values. Raises UsageError where there is none, MountGone, OSError."""
    await mount.with_layers(lambda layers: beneath.require_directory(layers.root, path))
    record = mount.book.get(path)
    rule = mount.policy.rule_for(path)
    on_disk = await mount.with_layers(partial(mount.backend.on_disk, path=path))
    answer: dict[str, Any] = {
        "path": show(path),
        "mount": mount.name,
        "rule": None if rule is None else {"number": mount.policy.rules.index(rule) + 1, "path": rule.path},
        "heat": round(heat, 2),
        "threshold": None if rule is None else mount.policy.threshold_for(rule),
        "state": mount.book.state(path).value,
        "since": None if record is None else record.since,
        "reason": None if record is None else record.reason,
        "retry_at": None if record is None else record.retry_at,
        "backend": mount.backend.name,
        "mark": on_disk.mark.value,
        "in_effect": on_disk.in_effect,
    }
    refused = None
    try:
        answer |= await mount.with_layers(partial(_entries, path, mount.backend))
    except Refused as error:
        answer |= _NO_ENTRIES
        refused = str(error)
    answer["blocked_by"] = await _blocked_by(mount, path, heat, on_disk) or refused
    answer["holders"] = []
    if mount.book.state(path) in _HELD and on_disk.in_effect is False:
        absolute = join(mount.overlay.mountpoint.rstrip(b"/"), path)
        answer["holders"] = [asdict(holder) for holder in await mount.run(pins.holders, absolute)]
    return answer


def _entries(path: bytes, backend: Backend, layers: Layers) -> dict[str, Any]:
    """How many names the lower layers list, and which of them have no local entry that stands alone.

    Raises Refused, OSError.
    """
    contributing = layers.contributing(path)
    if not contributing:
        return dict(_NO_ENTRIES)
    listing = layers.list_lower(path, contributing)
    upper = layers.list_upper(path)
    merged = [name for name in listing.directories() if name not in upper or stat.S_ISDIR(upper[name].mode)]
    return {
        "entries": len(listing.entries),
        "not_shadowed": _shown(backend.unshadowed(layers, path, listing)),
        "not_complete_children": _shown(
            name
            for name in merged
            if backend.on_disk(layers, join(path, os.fsencode(name))).mark in {MarkState.NONE, MarkState.OPEN}
        ),
        "lower_layers": [display(layers.overlay.lowers[index]) for index in contributing],
    }


def _shown(names: Iterable[str]) -> list[str]:
    return sorted(display(os.fsencode(name)) for name in names)


async def _blocked_by(mount: Mounted, path: bytes, heat: float, on_disk: OnDisk) -> str | None:
    """What keeps the directory from its next state; None where nothing does."""
    record = mount.book.get(path)
    if record is not None and record.state is State.STALE:
        return record.reason
    if record is not None and record.state is State.PRIMED:
        return None if mount.paused is None else f"the mount is paused: {mount.paused}"
    if on_disk.mark is MarkState.OURS:
        return _HELD_BACK if on_disk.in_effect is False else None
    if on_disk.mark is MarkState.FOREIGN:
        return "it is opaque already, by a user's doing: the server is not asked there"
    return (
        why_forbidden(mount.policy.rule_for(path))
        or (f"the mount is paused: {mount.paused}" if mount.paused is not None else None)
        or await _why_unplannable(mount, path)
        or _why_all_wait(mount, path)
        or _why_not_yet(mount, path, heat)
        or (None if mount.backend.marks else f"the backend {mount.backend.name} marks nothing")
    )


async def _why_unplannable(mount: Mounted, path: bytes) -> str | None:
    terms = terms_for(mount.policy, path, round(mount.clock() * NANOSECONDS), mount.book.is_restless)
    try:
        await mount.with_layers(partial(mount.backend.plan, path=path, terms=terms))
    except MountGone:
        raise
    except (PromoterdError, OSError) as error:
        return str(error)
    return None


def _is_postponed(mount: Mounted, record: DirectoryRecord) -> bool:
    return record.state is State.HOT and record.reason is not None and mount.backend.marks


def _why_all_wait(mount: Mounted, path: bytes) -> str | None:
    """What keeps the whole mount, or what begins with it, from being promoted for now."""
    if mount.hold is not None:
        return mount.hold.text
    rule, begins, now = mount.policy.rule_for(path), mount.begins_at(b"always"), mount.clock()
    if rule is not None and rule.promote == "always" and begins > now:
        return (
            f"limits.start_spread: this machine begins with `promote: always` in {format_duration(round(begins - now))}"
        )
    return None


def _why_not_yet(mount: Mounted, path: bytes, heat: float) -> str | None:
    record, rule = mount.book.get(path), mount.policy.rule_for(path)
    now = mount.clock()
    if record is not None and record.retry_at is not None and record.retry_at > now and _is_postponed(mount, record):
        return record.reason
    if record is not None and record.state is not State.HOT and record.retry_at is not None and record.retry_at > now:
        return f"it is tried again in {format_duration(record.retry_at - now)}"
    if rule is not None and rule.promote == "hot" and heat < mount.policy.threshold_for(rule):
        return f"its heat {heat:.1f} is below the threshold {mount.policy.threshold_for(rule):g}"
    return None
