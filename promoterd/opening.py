"""Taking a mount into work, and giving it back: lock, scratch directory, backend, ledger."""

import os
import uuid
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack, suppress
from types import TracebackType

import structlog

from promoterd import host
from promoterd.allowance import Allowance
from promoterd.backends.base import Backend
from promoterd.backends.choice import AUTO, backend_for, best, verdicts
from promoterd.book import Book
from promoterd.budget import Budget
from promoterd.errors import MountGone, NotPermitted, PromoterdError, UnfitMount
from promoterd.ledger import DirectoryRecord, Ledger, UpperLedger
from promoterd.metrics import Metrics, MountMetrics
from promoterd.mounted import RETIRED, Mounted
from promoterd.overlay import beneath, nfs, probe, xattrs
from promoterd.overlay.listing import Layers
from promoterd.overlay.lock import WriterLock
from promoterd.overlay.mounts import Overlay
from promoterd.overlay.scratch import Scratch
from promoterd.pacing import Pace
from promoterd.paths import display
from promoterd.policy import MountPolicy
from promoterd.pool import Pool, Throttle
from promoterd.states import MARKED

LARGEST_BATCH = 512
BURST = 0.2
"""Seconds' worth of entries that are admitted at once: a low rate must not come in large bursts."""
_SPARE_WORKERS = 2
"""Threads beside those that promote: for rechecks and activation while every promotion waits for the server."""


def shared_out(concurrency: int, outstanding: int) -> tuple[int, int]:
    """Threads of a mount, and lanes of each of its promotions: together at most ``outstanding`` calls at once (pure).

    A thread, and a lane, waits for one answer before it asks anything else.
    """
    workers = min(concurrency + _SPARE_WORKERS, outstanding)
    at_work = min(concurrency, workers)
    return workers, max(1, min(concurrency, 1 + (outstanding - workers) // at_work))


class OpenedMount:
    """Everything that work on one mount needs, undone at the end: the lock given back, the scratch directory removed.

    Without ``writing`` there is neither, and nothing on the mount may be changed. Entering and leaving block, and may
    wait for the server. Entering raises UnfitMount, AlreadyLocked, Refused, NotPermitted, OSError.

    Not made of generators: the interpreter closes those at its end, and would then wait for a server that hangs.
    """

    def __init__(  # noqa: PLR0913 - what a mount is made of
        self,
        overlay: Overlay,
        policy: MountPolicy,
        *,
        ledger: Ledger,
        metrics: Metrics,
        log: structlog.typing.FilteringBoundLogger,
        clock: Callable[[], float],
        writing: bool = True,
    ) -> None:
        self._overlay = overlay
        self._policy = policy
        self._ledger = ledger
        self._metrics = metrics
        self._log = log.bind(mount=display(overlay.mountpoint))
        self._clock = clock
        self._writing = writing
        self._stack = ExitStack()

    def __enter__(self) -> Mounted:
        with ExitStack() as stack:
            mount = self._open(stack)
            self._stack = stack.pop_all()
        return mount

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def _open(self, stack: ExitStack) -> Mounted:
        overlay, policy, ledger = self._overlay, self._policy, self._ledger
        chosen, reason = choose_backend(overlay, policy)
        upper_id = self._take(stack, chosen) if chosen.marks else _observed(overlay)
        if self._writing:
            ledger.see_upper(upper_id, overlay.mountpoint, overlay.layers, self._clock())
        upper = ledger.upper(upper_id)
        known = known_upper(overlay.upper) if overlay.upper is not None else None
        _check_marks(overlay, chosen, ledger.of(known or upper_id))
        metrics = self._metrics.of(display(overlay.mountpoint), chosen.name)
        limits = policy.limits
        workers, lanes = shared_out(limits.concurrency, limits.max_outstanding)
        pool = Pool(display(overlay.mountpoint), workers, limits.stuck_after)
        stack.callback(pool.close)
        budget = limits.request_budget
        mount = Mounted(
            overlay=overlay,
            policy=policy,
            backend=_backend(chosen, overlay, policy, lanes),
            backend_reason=reason,
            ledger=ledger,
            book=Book(ledger.of(upper_id), self._log, _counted(metrics)),
            pool=pool,
            throttle=Throttle(limits.entries_per_second),
            rechecks=Throttle(limits.recheck_requests_per_second),
            metrics=metrics,
            log=self._log,
            clock=self._clock,
            pace=Pace(waited_for=pool.goes_on),
            on_nfs=nfs.mountpoints(overlay.lowers),
            host=host.identity(),
            opened_at=self._clock(),
            allowance=None if budget is None else Allowance(budget.requests, budget.window),
            budget=Budget(0 if policy.copy_data is None else policy.copy_data.budget),
            paused=None if upper is None else upper.paused or (RETIRED if upper.retired else None),
            followed={record.path for record in ledger.of(upper_id).ancestors()},
        )
        mount.show_paused()
        return mount

    def _take(self, stack: ExitStack, chosen: type[Backend]) -> str:
        """The upper layer's id, and the right to change the layer if that is wanted."""
        overlay = self._overlay
        assert overlay.upper is not None  # noqa: S101 - a marking backend was found fit
        if not self._writing:
            return known_upper(overlay.upper) or _observed(overlay)
        for directory in {overlay.upper, overlay.layer_home or overlay.upper}:
            stack.enter_context(WriterLock(directory))
        upper_id = identify_upper(overlay.upper)
        if not chosen.uses_scratch:
            return upper_id
        scratch = Scratch(self._policy.scratch_bytes)
        with Layers(overlay) as layers:
            scratch.ensure(layers.root, layers.upper, layers.lowers)
        stack.callback(_remove_scratch, overlay, scratch)
        return upper_id


def _check_marks(overlay: Overlay, chosen: type[Backend], ledger: UpperLedger) -> None:
    """Raise UnfitMount where directories are complete by another backend, which this one would not look after."""
    others = Counter(
        record.backend
        for record in ledger.directories()
        if record.state in MARKED and record.backend not in (None, chosen.name)
    )
    for name, number in others.most_common(1):
        raise UnfitMount(
            mountpoint=display(overlay.mountpoint),
            backend=chosen.name,
            reason=f"{number} directories of it are complete by the backend {name}, and nobody would keep them true",
            hint=f"say `backend: {name}` for this mount, and `promoterd retire` it before you change that",
        )


def _observed(overlay: Overlay) -> str:
    """What the ledger calls an upper layer that nothing was ever written to."""
    return f"observed:{display(overlay.mountpoint)}"


def _remove_scratch(overlay: Overlay, scratch: Scratch) -> None:
    """Remove it, once the server was seen to answer for its name.

    A rmdir that is killed while it waits for a dead server leaves a whiteout and a changed root directory, because what
    the kernel cannot look up counts as there (ovl_lower_positive, fs/overlayfs/namei.c); a killed look leaves nothing.
    """
    with suppress(MountGone, PromoterdError, OSError), Layers(overlay) as layers:
        for lower in layers.lowers:
            with suppress(FileNotFoundError):
                os.stat(scratch.name, dir_fd=lower, follow_symlinks=False)
        scratch.remove(layers.root, layers.upper)


def _backend(chosen: type[Backend], overlay: Overlay, policy: MountPolicy, lanes: int) -> Backend:
    """The backend, with batches that are worth a fifth of a second at the rate that policy allows."""
    rate = policy.limits.entries_per_second
    batch = LARGEST_BATCH if rate is None else min(LARGEST_BATCH, max(1, round(rate * BURST / lanes)))
    return chosen(overlay, scratch=policy.scratch_bytes, batch=batch, lanes=lanes)


def choose_backend(overlay: Overlay, policy: MountPolicy) -> tuple[type[Backend], str]:
    """The backend that policy names, or what ``auto`` takes, and why. Raises UnfitMount, UsageError."""
    facts = probe.gather(overlay)
    if policy.backend == AUTO:
        name, why = best(verdicts(overlay, facts), on_nfs=bool(facts.nfs), expected=policy.expect)
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


def _counted(metrics: MountMetrics) -> Callable[[DirectoryRecord | None, DirectoryRecord | None], None]:
    def changed(before: DirectoryRecord | None, after: DirectoryRecord | None) -> None:
        metrics.state_changed(before.state if before else None, after.state if after else None)

    return changed
