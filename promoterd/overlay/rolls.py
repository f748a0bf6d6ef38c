"""The roll of a complete directory: the names that it had when it was completed, and which of them we shadowed.

While a directory is opaque, deleting a name leaves nothing behind. A reopening has to tell such a name, which must stay
deleted, from one that the server has added since (I6); modification times of the server cannot tell it.

Rolls lie in the overlay's work directory: on the upper file system, so that one sync makes them durable with the marks,
and never seen through the mount. The kernel looks there at ``work`` and ``index`` only (ovl_make_workdir,
fs/overlayfs/super.c). Provenance says where, from the upper directory on.
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass

from promoterd.overlay import xattrs
from promoterd.overlay.listing import Layers
from promoterd.overlay.mounts import Overlay
from promoterd.provenance import Provenance, decode, digest

_DIRECTORY = b"promoterd"
_PREFIX = b"roll-"
_SHADOW, _OTHER = b"s", b"o"
_HEAD = 64 * 1024
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class Roll:
    """What a directory had at its completion."""

    shadows: frozenset[str] = frozenset()
    others: frozenset[str] = frozenset()

    def knows(self, name: str) -> bool:
        """Whether the lower directories had the name."""
        return name in self.shadows or name in self.others

    def is_shadow(self, name: str) -> bool:
        """Whether what stood in upper under this name was no more than a copy of lower's."""
        return name in self.shadows


def place(overlay: Overlay, path: bytes) -> str:
    """Where the roll of a directory belongs, as its provenance says it: relative to the upper layer's root."""
    assert overlay.upper is not None  # noqa: S101 - a marking backend was found fit
    assert overlay.work is not None  # noqa: S101 - so has every upper layer a work directory
    directory = os.path.join(os.path.realpath(overlay.work), _DIRECTORY)
    roll = os.path.join(directory, _PREFIX + digest(path).encode())
    return os.fsdecode(os.path.relpath(roll, os.path.realpath(overlay.upper)))


def write(overlay: Overlay, path: bytes, completed_ns: int, shadows: Iterable[str], others: Iterable[str]) -> None:
    """Write the roll of a directory, in place of any that is there. Raises OSError."""
    parts = [str(completed_ns).encode(), path]
    parts.extend(_SHADOW + os.fsencode(name) for name in shadows)
    parts.extend(_OTHER + os.fsencode(name) for name in others)
    absolute = _absolute(overlay, place(overlay, path))
    with suppress(FileExistsError):
        os.mkdir(os.path.dirname(absolute), 0o700)
    with open(os.open(absolute, _CREATE, 0o600), "wb") as file:
        file.write(b"\0".join(parts) + b"\0")


def read(overlay: Overlay, provenance: Provenance) -> Roll | None:
    """The roll that belongs to this completion; None where there is none, or not the whole of it. Raises OSError."""
    if not provenance.entries:
        return Roll()
    if not provenance.roll:
        return None
    try:
        with open(_absolute(overlay, provenance.roll), "rb") as file:
            completed, _, *names = file.read().split(b"\0")[:-1]
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    if completed != str(provenance.completed_ns).encode() or len(names) != provenance.entries:
        return None
    kinds = {
        kind: frozenset(os.fsdecode(name[1:]) for name in names if name.startswith(kind)) for kind in (_SHADOW, _OTHER)
    }
    return Roll(kinds[_SHADOW], kinds[_OTHER])


def remove(overlay: Overlay, provenance: Provenance) -> None:
    """Remove the roll of a completion that is undone; one that belongs to a later completion stays. Raises OSError."""
    if not provenance.roll:
        return
    absolute = _absolute(overlay, provenance.roll)
    with suppress(FileNotFoundError, NotADirectoryError):
        if _head(absolute)[0] == _stamp(provenance):
            os.unlink(absolute)


def discard(overlay: Overlay, path: bytes) -> None:
    """Remove whatever roll there is of a directory that is not complete. Raises OSError."""
    with suppress(FileNotFoundError, NotADirectoryError):
        os.unlink(_absolute(overlay, place(overlay, path)))


def sweep(layers: Layers) -> int:
    """Remove the rolls of directories that are not complete any more, or elsewhere; says how many. Raises OSError."""
    if layers.overlay.upper is None or layers.overlay.work is None:
        return 0
    found = list(strays(layers, [directory_of(layers.overlay, place(layers.overlay, b""))]))
    for roll in found:
        os.unlink(roll)
    return len(found)


def strays(layers: Layers, directories: Iterable[bytes]) -> Iterator[bytes]:
    """Rolls in ``directories`` of what is not complete any more, or elsewhere. Raises OSError."""
    for directory in directories:
        with suppress(FileNotFoundError):
            for name in os.listdir(directory):
                absolute = os.path.join(directory, name)
                completed, path = _head(absolute)
                provenance = decode(layers.upper_xattr(path, xattrs.PROVENANCE))
                if provenance is None or _stamp(provenance) != completed or not provenance.is_at(path):
                    yield absolute


def directory_of(overlay: Overlay, roll: str) -> bytes:
    """The directory that a roll lies in, given as provenance says it."""
    return os.path.dirname(_absolute(overlay, roll))


def _absolute(overlay: Overlay, roll: str) -> bytes:
    assert overlay.upper is not None  # noqa: S101 - a marking backend was found fit
    return os.path.normpath(os.path.join(os.path.realpath(overlay.upper), os.fsencode(roll)))


def _stamp(provenance: Provenance) -> bytes:
    return str(provenance.completed_ns).encode()


def _head(absolute: bytes) -> tuple[bytes, bytes]:
    """When the roll was made, and of which directory; both empty where it was cut short."""
    with open(absolute, "rb") as file:
        parts = file.read(_HEAD).split(b"\0", 2)
    return (parts[0], parts[1]) if len(parts) > 2 else (b"", b"")  # noqa: PLR2004 - and what follows
