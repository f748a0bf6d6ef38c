"""At the start of work on a mount: disk wins over the ledger (R9), and what was begun is settled."""

import os
import stat
from dataclasses import dataclass
from functools import partial

from promoterd.backends.base import Busy, MarkState
from promoterd.backends.reopening import finish_interrupted
from promoterd.errors import Refused
from promoterd.mounted import Mounted
from promoterd.overlay import rolls, xattrs
from promoterd.overlay.listing import Layers
from promoterd.paths import ancestors, join, show
from promoterd.states import MARKED, State
from promoterd.terms import NANOSECONDS

_REBUILD = "rebuild"


async def reconcile(mount: Mounted, *, rebuild: bool) -> list[bytes]:
    """Settle interrupted operations and bring the book in line with the upper layer.

    ``rebuild`` walks the whole upper layer for what is ours, because the ledger does not know it. Returns the
    directories whose promotion was interrupted, to be promoted again. Raises MountGone, OSError.
    """
    interrupted, again = mount.upper_ledger.unfinished(), []
    if rebuild:
        mount.upper_ledger.begin(b"", _REBUILD, "walk", mount.clock())
    candidates = {record.path for record in mount.book.in_states(MARKED | {State.SHADOWING})}
    for entry in interrupted:
        if entry.operation == _REBUILD:
            rebuild = True
            continue
        if entry.operation == "reopen":
            await _finish_reopening(mount, entry.path)
            candidates.update([*ancestors(entry.path), entry.path])
        else:
            again.append(entry.path)
            candidates.update((await mount.with_layers(partial(traces_below, path=entry.path))).marked)
    if rebuild:
        traces = await mount.with_layers(partial(traces_below, path=b""))
        candidates.update(traces.marked)
        mount.follow(traces.followed)
        mount.log.info("rebuilt", marked=len(traces.marked), reason="the ledger knows nothing of this upper layer")
    for path in sorted(candidates):
        await settle(mount, path)
    if mount.backend.marks:
        await mount.with_layers(rolls.sweep)
    mount.upper_ledger.finish(b"", *(entry.path for entry in interrupted))
    return again


async def _finish_reopening(mount: Mounted, path: bytes) -> None:
    try:
        undone = await mount.with_layers(partial(finish_interrupted, path=path))
    except (Busy, Refused) as error:
        reason = str(error.fields["reason"])
        mount.upper_ledger.defer(path, reason, mount.clock())
        mount.log.warning("reopening_deferred", path=show(path), reason=reason)
    else:
        mount.log.info("reopening_finished", path=show(path), directories=undone)


async def settle(mount: Mounted, path: bytes) -> None:
    """Write down what disk says of a directory."""
    found = await mount.with_layers(partial(mount.backend.on_disk, path=path))
    if found.mark is not MarkState.OURS or found.provenance is None:
        mount.book.forget([path], reason=f"the mark on disk is {found.mark.value}")
        return
    record = mount.book.get(path)
    state = State.COMPLETE if found.in_effect is False else State.ACTIVE
    if record is not None and record.state is State.STALE:
        state = State.STALE
    if record is None or record.state is not state:
        if record is not None and record.state not in MARKED:
            mount.book.forget([path], reason="found complete on disk")
        now = mount.clock()
        mount.book.move(path, State.COMPLETE, now=now, entries=found.provenance.entries, backend=mount.backend.name)
        mount.book.move(
            path,
            state,
            now=now,
            reason=record.reason if record is not None and state is State.STALE else None,
            marked_at=found.provenance.completed_ns / NANOSECONDS,
        )


@dataclass(frozen=True, slots=True)
class Traces:
    """Directories of an upper layer that we marked, and those that we copied up to look as lower's do (R2)."""

    marked: list[bytes]
    followed: list[bytes]


def marks_below(layers: Layers, path: bytes) -> list[bytes]:
    """Directories of the upper layer, ``path`` and below, that carry provenance of ours."""
    return traces_below(layers, path).marked


def traces_below(layers: Layers, path: bytes) -> Traces:
    """What is ours in the upper layer, at ``path`` and below. Raises OSError."""
    found = Traces([], [])
    waiting = [path]
    while waiting:
        directory = waiting.pop()
        if directory and layers.upper_xattr(directory, xattrs.PROVENANCE) is not None:
            found.marked.append(directory)
        if directory and layers.upper_xattr(directory, xattrs.ANCESTOR) is not None:
            found.followed.append(directory)
        waiting.extend(
            join(directory, os.fsencode(name))
            for name, entry in layers.list_upper(directory).items()
            if stat.S_ISDIR(entry.mode)
        )
    return found
