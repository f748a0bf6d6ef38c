"""Taking a mount into work, and giving it back: lock, scratch directory, backend, ledger."""

import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress

import structlog

from promoterd.backends.base import Backend
from promoterd.backends.choice import AUTO, backend_for, best, verdicts
from promoterd.book import Book
from promoterd.errors import MountGone, NotPermitted, PromoterdError
from promoterd.ledger import DirectoryRecord, Ledger
from promoterd.metrics import Metrics, MountMetrics
from promoterd.mounted import RETIRED, Mounted
from promoterd.overlay import beneath, probe, xattrs
from promoterd.overlay.listing import Layers
from promoterd.overlay.lock import WriterLock
from promoterd.overlay.mounts import Overlay
from promoterd.overlay.scratch import Scratch
from promoterd.paths import display
from promoterd.policy import MountPolicy
from promoterd.pool import Pool, Throttle

_SPARE_WORKERS = 2
"""Threads beside those that promote: for rechecks and activation while every promotion waits for the server."""


@contextmanager
def opened_mount(  # noqa: PLR0913 - what a mount is made of
    overlay: Overlay,
    policy: MountPolicy,
    *,
    ledger: Ledger,
    metrics: Metrics,
    log: structlog.typing.FilteringBoundLogger,
    clock: Callable[[], float],
    writing: bool = True,
) -> Iterator[Mounted]:
    """Everything that work on one mount needs, undone at the end: the lock given back, the scratch directory removed.

    Without ``writing`` there is neither, and nothing on the mount may be changed. Blocks, and may wait for the server.
    Raises UnfitMount, AlreadyLocked, Refused, NotPermitted, OSError.
    """
    chosen, reason = choose_backend(overlay, policy)
    log = log.bind(mount=display(overlay.mountpoint))
    with ExitStack() as stack:
        upper_id = f"observed:{display(overlay.mountpoint)}"
        if chosen.marks:
            assert overlay.upper is not None  # noqa: S101 - a marking backend was found fit
            if writing:
                stack.enter_context(WriterLock(overlay.upper))
                upper_id = identify_upper(overlay.upper)
                stack.enter_context(_scratch(overlay, policy.scratch_bytes))
            else:
                upper_id = known_upper(overlay.upper) or upper_id
        if writing:
            ledger.see_upper(upper_id, overlay.mountpoint, overlay.layers, clock())
        upper = ledger.upper(upper_id)
        mount_metrics = metrics.of(display(overlay.mountpoint), chosen.name)
        pool = Pool(display(overlay.mountpoint), policy.limits.concurrency + _SPARE_WORKERS, policy.limits.stuck_after)
        stack.callback(pool.close)
        mount = Mounted(
            overlay=overlay,
            policy=policy,
            backend=chosen(overlay, scratch=policy.scratch_bytes),
            backend_reason=reason,
            ledger=ledger,
            book=Book(ledger.of(upper_id), log, _counted(mount_metrics)),
            pool=pool,
            throttle=Throttle(policy.limits.entries_per_second),
            metrics=mount_metrics,
            log=log,
            clock=clock,
            paused=None if upper is None else upper.paused or (RETIRED if upper.retired else None),
            followed={record.path for record in ledger.of(upper_id).ancestors()},
        )
        mount.show_paused()
        yield mount


def choose_backend(overlay: Overlay, policy: MountPolicy) -> tuple[type[Backend], str]:
    """The backend that policy names, or what ``auto`` takes, and why. Raises UnfitMount, UsageError."""
    facts = probe.gather(overlay)
    if policy.backend == AUTO:
        name, why = best(verdicts(overlay, facts))
        return backend_for(name, overlay, facts), why
    return backend_for(policy.backend, overlay, facts), "policy names it"


def identify_upper(upper: bytes) -> str:
    """The id that the ledger knows an upper layer by, written on its root at the first meeting (R9).

    Raises NotPermitted, OSError.
    """
    known = known_upper(upper)
    if known is not None:
        return known
    fresh = str(uuid.uuid4())
    root = beneath.open_root(upper)
    try:
        xattrs.put(xattrs.descriptor(root), xattrs.UPPER_ID, fresh.encode())
    except PermissionError as error:
        raise NotPermitted(needed="CAP_SYS_ADMIN, to write trusted extended attributes") from error
    finally:
        os.close(root)
    return fresh


def known_upper(upper: bytes) -> str | None:
    """The id on an upper layer's root; None where there is none, or none that this process may see. Raises OSError."""
    root = beneath.open_root(upper)
    try:
        found = xattrs.get(xattrs.descriptor(root), xattrs.UPPER_ID)
    finally:
        os.close(root)
    return None if found is None else found.decode("ascii", "replace")


@contextmanager
def _scratch(overlay: Overlay, name: bytes) -> Iterator[None]:
    scratch = Scratch(name)
    with Layers(overlay) as layers:
        scratch.ensure(layers.root, layers.upper, layers.lowers)
    try:
        yield
    finally:
        with suppress(MountGone, PromoterdError, OSError), Layers(overlay) as layers:
            scratch.remove(layers.root, layers.upper)


def _counted(metrics: MountMetrics) -> Callable[[DirectoryRecord | None, DirectoryRecord | None], None]:
    def changed(before: DirectoryRecord | None, after: DirectoryRecord | None) -> None:
        metrics.state_changed(before.state if before else None, after.state if after else None)

    return changed
