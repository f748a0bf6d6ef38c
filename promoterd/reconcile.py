"""At the start of work on a mount: disk wins over the ledger (R9), and what was begun is settled."""

from functools import partial

from promoterd.backends.base import Busy, MarkState
from promoterd.errors import Refused
from promoterd.mounted import Mounted
from promoterd.paths import ancestors, show
from promoterd.states import MARKED, State
from promoterd.terms import NANOSECONDS

_REBUILD = "rebuild"
HALF = "the server is asked as well until it is in line with it"
"""Why a directory that was begun to be completed, or opened, is stale."""


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
            await mount.with_layers(partial(mount.backend.finish_promotion, path=entry.path))
            candidates.update((await mount.with_layers(partial(mount.backend.traces, path=entry.path))).marked)
    if rebuild:
        await mount.with_layers(partial(mount.backend.finish_promotion, path=b""))
        traces = await mount.with_layers(partial(mount.backend.traces, path=b""))
        candidates.update(traces.marked)
        mount.follow(traces.followed)
        mount.log.info("rebuilt", marked=len(traces.marked), reason="the ledger knows nothing of this upper layer")
    for path in sorted(candidates):
        await settle(mount, path)
        if not mount.book.is_marked(path):  # what removed its mark may have been interrupted
            await mount.with_layers(partial(mount.backend.finish_promotion, path=path))
    mount.unsettled = mount.backend.resyncs  # as may what brings such work into effect
    await mount.with_layers(mount.backend.sweep)
    mount.upper_ledger.finish(b"", *(entry.path for entry in interrupted))
    return again


async def _finish_reopening(mount: Mounted, path: bytes) -> None:
    try:
        undone = await mount.with_layers(partial(mount.backend.finish_reopening, path=path))
    except (Busy, Refused) as error:
        reason = str(error.fields["reason"])
        mount.upper_ledger.defer(path, reason, mount.clock())
        mount.log.warning("reopening_deferred", path=show(path), reason=reason)
    else:
        mount.log.info("reopening_finished", path=show(path), directories=undone)


async def settle(mount: Mounted, path: bytes) -> None:
    """Write down what disk says of a directory."""
    found = await mount.with_layers(partial(mount.backend.on_disk, path=path))
    if found.mark is MarkState.OPEN and found.provenance is not None:
        if not mount.book.is_marked(path):
            mount.book.forget([path], reason="found half complete on disk")
            mount.book.move(path, State.COMPLETE, now=mount.clock(), backend=mount.backend.name)
        mount.book.move(path, State.STALE, now=mount.clock(), reason=HALF)
        return
    if found.mark is not MarkState.OURS or found.provenance is None:
        mount.book.forget([path], reason=f"the mark on disk is {found.mark.value}")
        return
    record = mount.book.get(path)
    unproven = found.in_effect is None and mount.backend.effect_shows_in_inode
    state = State.COMPLETE if found.in_effect is False or unproven else State.ACTIVE
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
