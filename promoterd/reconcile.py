"""At the start of work on a mount: what disk says wins over what the ledger says (R9), and what was begun is settled."""

import os
import stat
from functools import partial

from promoterd.backends.base import MarkState
from promoterd.backends.reopening import finish_interrupted
from promoterd.mounted import Mounted
from promoterd.overlay import xattrs
from promoterd.overlay.listing import Layers
from promoterd.paths import join, show
from promoterd.states import MARKED, State


async def reconcile(mount: Mounted, *, rebuild: bool) -> list[bytes]:
    """Settle interrupted operations and bring the book in line with the upper layer.

    ``rebuild`` walks the whole upper layer for marks of ours, because the ledger does not know them. Returns the
    directories whose promotion was interrupted, to be promoted again.
    """
    interrupted, again = mount.upper_ledger.unfinished(), []
    candidates = {record.path for record in mount.book.in_states(MARKED | {State.SHADOWING})}
    for entry in interrupted:
        if entry.operation == "reopen":
            removed = await mount.with_layers(partial(finish_interrupted, path=entry.path))
            mount.log.info("reopening_undone", path=show(entry.path), whiteouts=removed)
        else:
            again.append(entry.path)
        candidates.update(await mount.with_layers(partial(marks_below, path=entry.path)))
        mount.upper_ledger.finish(entry.path)
    if rebuild:
        candidates.update(await mount.with_layers(partial(marks_below, path=b"")))
    for path in sorted(candidates):
        await _settle(mount, path)
    return again


async def _settle(mount: Mounted, path: bytes) -> None:
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
            marked_at=found.provenance.completed_ns / 1e9,
        )


def marks_below(layers: Layers, path: bytes) -> list[bytes]:
    """Directories of the upper layer, ``path`` and below, that carry provenance of ours."""
    found = []
    waiting = [path]
    while waiting:
        directory = waiting.pop()
        if directory and layers.upper_xattr(directory, xattrs.PROVENANCE) is not None:
            found.append(directory)
        waiting.extend(
            join(directory, os.fsencode(name))
            for name, entry in layers.list_upper(directory).items()
            if stat.S_ISDIR(entry.mode)
        )
    return found
