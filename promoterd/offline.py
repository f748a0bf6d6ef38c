"""Reopening in the layers of an overlay that is not mounted: the window in which nobody can write (R6)."""

import os
import time
from collections.abc import Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Self

from promoterd.backends.layer.unmounted import take_out_unmounted
from promoterd.backends.layer.walking import marked_in_layer
from promoterd.backends.reopening import reopen_unmounted
from promoterd.backends.traces import marks_below
from promoterd.errors import Refused, UsageError
from promoterd.ledger import Ledger, UpperLedger
from promoterd.opening import identify_upper, known_upper
from promoterd.overlay import lock, mounts, xattrs
from promoterd.overlay.listing import Layers
from promoterd.overlay.mountinfo import is_at_or_below
from promoterd.paths import ancestors, display, is_below, relative_to_mount, show
from promoterd.provenance import Provenance, decode, digest

_NO_LAYER = "mount what it is on first; reopening needs the server's names"


class Offline:
    """An upper layer with its lower layers, locked for the length of a ``with`` block.

    Without ``lowers`` those are taken that the ledger saw it with last. Entering raises UsageError where a directory is
    missing or the lower layers are unknown, AlreadyLocked, and Refused where an overlay is mounted on the upper layer.
    """

    def __init__(self, ledger: Ledger, upper: bytes, lowers: Sequence[bytes] = ()) -> None:
        self._ledger = ledger
        self._upper_path = upper
        self._lower_paths = tuple(lowers)
        self._stack = ExitStack()
        self._mountpoint: bytes | None = None

    def __enter__(self) -> Self:
        if not os.path.isdir(self._upper_path):
            raise UsageError(f"--upper {display(self._upper_path)} is not a directory")
        known = known_upper(self._upper_path)
        record = None if known is None else self._ledger.upper(known)
        if record is not None:
            self._mountpoint = record.mountpoint
            self._lower_paths = self._lower_paths or _lower_layers(record.layers[1:])
        if not self._lower_paths:
            raise UsageError(
                f"the ledger does not know the lower layers of {display(self._upper_path)}",
                hint="name them with --lower, the topmost first",
            )
        for lower in self._lower_paths:
            if not os.path.isdir(lower):
                raise UsageError(f"the lower layer {display(lower)} is not a directory", hint=_NO_LAYER)
        with ExitStack() as stack:
            overlay = mounts.unmounted_overlay(self._upper_path, self._lower_paths)
            for directory in {self._upper_path, overlay.layer_home or self._upper_path}:
                stack.enter_context(lock.WriterLock(directory))
            self._refuse_mounted()
            self._layers = stack.enter_context(Layers(overlay, mounted=False))
            self._identities = [digest(mounts.lower_identity(lower)) for lower in overlay.lowers]
            self._book = self._open_book(is_known=record is not None)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def inside(self, path: bytes) -> bytes:
        """The path inside the mount of what a user typed: below the mount point that it had, or from the mount's root.

        Raises UsageError.
        """
        if self._mountpoint is not None and self._mountpoint != b"/" and is_at_or_below(path, self._mountpoint):
            return relative_to_mount(path, self._mountpoint)
        return relative_to_mount(path, b"/")

    def reopen(self, path: bytes) -> list[bytes]:
        """Reopen a directory with its complete ancestors, top-down; returns what is merged again.

        One in a metadata layer is reopened with what is below it instead.

        Raises Refused, before anything is changed, where a directory carries no mark of ours or was completed from
        other lower layers than these.
        """
        if path in self._in_layer():
            return self._take_out([path])
        chain = [ancestor for ancestor in ancestors(path) if self._is_ours(ancestor)] + [path]
        for directory in chain:
            self._check(directory)
        reopen_unmounted(self._layers, chain, begin=lambda: self._book.begin(path, "reopen", "unmark", time.time()))
        self._book.forget(*chain)
        self._book.undefer(*chain)
        self._book.finish(path)
        return chain

    def reopen_all(self) -> tuple[list[bytes], list[tuple[bytes, Refused]]]:
        """Reopen everything that is complete by our marks; what is merged again, and what is refused."""
        taken_out = self._take_out(self._in_layer())
        reopened, refused = self._reopen_those(sorted(marks_below(self._layers, b"")))
        return taken_out + reopened, refused

    def reopen_deferred(self) -> tuple[list[bytes], list[tuple[bytes, Refused]]]:
        """Reopen what had to wait for this; what is merged again, and what is refused and waits on."""
        waiting = [deferred.path for deferred in self._book.deferred()]
        taken_out = self._take_out([path for path in self._in_layer() if path in waiting])
        reopened, refused = self._reopen_those(waiting)
        self._book.undefer(*set(waiting).difference(path for path, _ in refused))
        return taken_out + reopened, refused

    def _in_layer(self) -> list[bytes]:
        """Directories that are complete, or were begun, in a metadata layer; parents first."""
        return sorted(marked_in_layer(self._layers)) if self._layers.metadata else []

    def _take_out(self, paths: Sequence[bytes]) -> list[bytes]:
        """Take directories out of the metadata layer with what is below them; returns all that is merged again."""
        if not paths:
            return []
        everything = self._in_layer()
        gone = [found for found in everything if any(is_below(found, path) for path in paths)]
        tops = [path for path in paths if not any(path != other and is_below(path, other) for other in paths)]
        self._book.begin(tops[0], "reopen", "take out", time.time())
        take_out_unmounted(self._layers, tops, [found for found in everything if found not in gone])
        self._book.forget(*gone)
        self._book.undefer(*gone)
        self._book.finish(tops[0])
        return gone

    def _reopen_those(self, paths: Sequence[bytes]) -> tuple[list[bytes], list[tuple[bytes, Refused]]]:
        done: list[bytes] = []
        refused: list[tuple[bytes, Refused]] = []
        for path in paths:
            if not self._is_ours(path):
                continue
            try:
                done.extend(self.reopen(path))
            except Refused as refusal:
                refused.append((path, refusal))
        return done, refused

    def _refuse_mounted(self) -> None:
        users = lock.users_of(self._upper_path)
        if users:
            raise Refused(
                path=display(self._upper_path),
                reason=f"it is in use by {users[0]}",
                hint="unmount that first, or leave --offline out",
            )

    def _open_book(self, *, is_known: bool) -> UpperLedger:
        upper_id = identify_upper(self._upper_path)
        if not is_known:
            self._ledger.see_upper(upper_id, b"", (self._upper_path, *self._lower_paths), time.time())
        return self._ledger.of(upper_id)

    def _provenance(self, path: bytes) -> Provenance | None:
        """What stands beside a mark of ours at this very path; None where there is no such mark."""
        if not path or self._layers.upper_xattr(path, xattrs.OPAQUE) is None:
            return None
        provenance = decode(self._layers.upper_xattr(path, xattrs.PROVENANCE))
        return provenance if provenance is not None and provenance.is_at(path) else None

    def _is_ours(self, path: bytes) -> bool:
        return self._provenance(path) is not None

    def _check(self, path: bytes) -> None:
        provenance = self._provenance(path)
        if provenance is None:
            raise Refused(path=show(path), reason="it carries no mark of ours, so it is not complete")
        present = iter(self._identities)
        if not all(identity in present for identity in provenance.lower):  # each once, and in the order of the layers
            named = ", ".join(display(lower) for lower in self._lower_paths)
            raise Refused(
                path=show(path),
                reason=f"it was completed from other lower layers than {named}",
                hint="mount the lower layers as they were, and name them with --lower, the topmost first",
            )


def _lower_layers(layers: Sequence[bytes]) -> tuple[bytes, ...]:
    """Lower layers of an overlay as the ledger knows them; below a metadata layer each comes twice, for its data."""
    metadata, others = mounts.split_metadata(tuple(layers))
    return metadata + (others[: len(others) // 2] if metadata else others)
