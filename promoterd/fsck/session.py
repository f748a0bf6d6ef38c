"""What a check works on: an overlay's layers, mounted or not, and the right to change them where that is wanted."""

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from promoterd.errors import AlreadyLocked, Refused, UsageError
from promoterd.ledger.peek import Peek, peek
from promoterd.opening import known_upper
from promoterd.overlay import activation, lock, mounts, syscalls
from promoterd.overlay.beneath import READ_DIRECTORY, opened
from promoterd.overlay.listing import Layers
from promoterd.overlay.mounts import Overlay, split_metadata
from promoterd.overlay.scratch import DEFAULT_NAME
from promoterd.paths import display


@dataclass(frozen=True, slots=True)
class Session:
    """One overlay under check. ``writer`` names who else holds a writer lock; empty where nobody does."""

    layers: Layers
    identities: tuple[str, ...]
    state_directory: str
    scratch: bytes = DEFAULT_NAME
    writer: str = ""
    repairing: bool = False

    @property
    def overlay(self) -> Overlay:
        """What is checked."""
        return self.layers.overlay

    @property
    def mounted(self) -> bool:
        """Whether it is in use, so that nothing may go from under a reader."""
        return self.layers.mounted

    @property
    def at_rest(self) -> bool:
        """Whether nobody works on it, so that what is lying about was left behind."""
        return not self.writer

    @property
    def upper_id(self) -> str | None:
        """How the ledger knows the upper layer; None where it was never seen."""
        return None if self.overlay.upper is None else known_upper(self.overlay.upper)

    def peek(self) -> Peek | None:
        """What the ledger says of it now. Raises LedgerError."""
        upper_id = self.upper_id
        return None if upper_id is None else peek(self.state_directory, upper_id)

    def sync(self) -> None:
        """Make everything written so far durable. Raises OSError."""
        for root in (self.layers.upper, *self.layers.metadata[:1]):
            if root >= 0:
                with opened(root, b"", READ_DIRECTORY) as directory:
                    syscalls.syncfs(directory)

    def activate(self) -> None:
        """Let what was changed take effect, where the overlay is mounted. Raises MountGone, OSError."""
        if self.mounted:
            activation.reconfigure(self.overlay)


@contextmanager
def opened_session(
    overlay: Overlay, *, mounted: bool, repairing: bool, state_directory: str, scratch: bytes = DEFAULT_NAME
) -> Iterator[Session]:
    """Open an overlay's layers, with its writer locks where it is to be repaired.

    Raises AlreadyLocked, Refused where layers that must not be mounted are, MountGone, OSError.
    """
    places = [place for place in (overlay.upper, overlay.layer_home) if place is not None]
    with ExitStack() as stack:
        if repairing:
            for place in places:
                _lock(stack, place)
        if not mounted:
            _refuse_mounted([place for place in (overlay.upper, *overlay.metadata[:1]) if place is not None])
        layers = stack.enter_context(Layers(overlay, mounted=mounted))
        yield Session(
            layers,
            tuple(mounts.lower_identity(lower) for lower in overlay.lowers),
            state_directory,
            scratch,
            "" if repairing else next(filter(None, map(lock.writer_of, places)), ""),
            repairing,
        )


def unmounted(upper: bytes, lowers: Sequence[bytes], state_directory: str) -> Overlay:
    """The layers of an overlay that is not mounted; without ``lowers`` those that the ledger saw it with last.

    The halves of a metadata layer come first among the lower ones. Raises UsageError, LedgerError.
    """
    if not os.path.isdir(upper):
        raise UsageError(f"--upper {display(upper)} is not a directory")
    chosen = tuple(lowers) or _remembered(upper, state_directory)
    if not chosen:
        raise UsageError(
            f"the ledger does not know the lower layers of {display(upper)}",
            hint="name them with --lower, the topmost first: those of a metadata layer, then the server's",
        )
    for lower in chosen:
        if not os.path.isdir(lower):
            raise UsageError(
                f"the lower layer {display(lower)} is not a directory",
                hint="mount what it is on first; checking needs the server's names",
            )
    return mounts.unmounted_overlay(upper, chosen)


def _remembered(upper: bytes, state_directory: str) -> tuple[bytes, ...]:
    """The lower layers of the last mounting; those for data, one for each of the server's, left out."""
    upper_id = known_upper(upper)
    known = None if upper_id is None else peek(state_directory, upper_id)
    if known is None:
        return ()
    metadata, others = split_metadata(known.layers[1:])
    return (*metadata, *(others[: len(others) // 2] if metadata else others))


def _lock(stack: ExitStack, place: bytes) -> None:
    try:
        stack.enter_context(lock.WriterLock(place))
    except AlreadyLocked as error:
        raise AlreadyLocked(
            error.message, hint="stop it first (`systemctl stop promoterd`), or check without --repair"
        ) from error


def _refuse_mounted(places: Sequence[bytes]) -> None:
    for place in places:
        users = lock.users_of(place)
        if users:
            raise Refused(
                path=display(place),
                reason=f"it is in use by {users[0]}",
                hint="unmount that first, or leave --offline out",
            )
