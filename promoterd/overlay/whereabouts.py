"""Whether the layers' paths still lead to what the overlay was mounted on.

An overlay keeps its layers mounted for itself: when something is mounted over a layer's path, or an NFS mount is
detached from it, the overlay goes on, and whoever reads the path sees something else. The kernel does not tell, so
the layers' listings are compared with the overlay's.
"""

import contextlib
import errno
import os
import stat
import time
from collections import deque
from dataclasses import dataclass, field

from promoterd.overlay import xattrs
from promoterd.overlay.facts import Misplaced
from promoterd.overlay.mounts import Overlay
from promoterd.paths import display, join

_DIRECTORIES = 8
"""How many directories are compared at most, from the root down through those that upper holds as well."""
_SAMPLE = 16
_TRIES = 3
_PAUSE = 0.05
_BROKEN = (errno.EIO, errno.ESTALE)


@dataclass
class _Names:
    """What one layer holds in a directory: names that it shows, and names that it hides (whiteouts)."""

    visible: set[bytes] = field(default_factory=set)
    hidden: set[bytes] = field(default_factory=set)
    directories: set[bytes] = field(default_factory=set)


@dataclass(frozen=True)
class _Merged:
    """A directory and the layers that it is merged from, upper first."""

    path: bytes
    roots: tuple[bytes, ...]


def check_readable(layer: bytes) -> str | None:
    """Why a layer's root cannot be listed; None if it can."""
    try:
        os.listdir(layer)
    except OSError as error:
        return f"its path cannot be read ({error.strerror})"
    return None


def find_misplaced(overlay: Overlay) -> list[Misplaced]:
    """Layers whose path shows something else than the overlay does. Raises OSError where a layer cannot be read."""
    if overlay.upper is not None and not _is_upper_root(overlay.mountpoint, overlay.upper):
        return [Misplaced(overlay.upper, "its root has other times or another mode than the overlay's root")]
    upper = () if overlay.upper is None else (overlay.upper,)
    pending = deque([_Merged(b"", (*upper, *overlay.metadata, *overlay.lowers))])
    for _ in range(_DIRECTORIES):
        if not pending:
            break
        directory = pending.popleft()
        try:
            names = [_list(_at(root, directory.path)) for root in directory.roots]
            found = _misfits(overlay, directory, names)
        except OSError as error:
            if not directory.path or error.errno not in _BROKEN:
                raise
            continue  # one broken entry makes a whole directory unreadable, and says nothing of the layers' places
        if found:
            return found
        if upper:
            pending.extend(
                _Merged(join(directory.path, name), roots)
                for name in sorted(names[0].directories)
                if (roots := _merged_from(directory, name))
            )
    return []


def _is_upper_root(mountpoint: bytes, upper: bytes) -> bool:
    """The root of an overlay shows the attributes of upper's root (ovl_getattr, fs/overlayfs/inode.c)."""
    for _ in range(_TRIES):
        seen, there = os.stat(mountpoint), os.stat(upper)
        if (seen.st_ctime_ns, seen.st_mtime_ns, seen.st_mode) == (there.st_ctime_ns, there.st_mtime_ns, there.st_mode):
            return True
        time.sleep(_PAUSE)
    return False


def _misfits(overlay: Overlay, directory: _Merged, names: list[_Names]) -> list[Misplaced]:
    merged = set(os.listdir(_at(overlay.mountpoint, directory.path)))
    seen: set[bytes] = set()
    misplaced = []
    for root, layer in zip(directory.roots, names, strict=True):
        own = sorted(layer.visible - seen)[:_SAMPLE]
        seen |= layer.visible | layer.hidden
        ours = root == overlay.upper or root in overlay.metadata  # where a crash may have left what has no effect yet
        if not ours and own and (reason := _difference(overlay, root, directory.path, own, merged)):
            misplaced.append(Misplaced(root, reason))
    if not misplaced and overlay.lowers:
        extra = [join(directory.path, name) for name in sorted(merged - seen)[:_SAMPLE]]
        # also in a layer that a mark hides, which has no effect while a process holds the directory
        layers = (*directory.roots, *overlay.metadata, *overlay.lowers)
        extra = [path for path in extra if not any(os.path.lexists(_at(root, path)) for root in layers)]
        extra = [path for path in extra if os.path.lexists(_at(overlay.mountpoint, path))]
        if extra:
            count = dict(zip(directory.roots, (len(layer.visible) for layer in names), strict=True))
            emptiest = min(overlay.lowers, key=lambda root: count.get(root, -1))
            misplaced.append(Misplaced(emptiest, f"the overlay shows /{display(extra[0])}, which no layer has now"))
    return misplaced


def _list(path: bytes) -> _Names:
    found = _Names()
    xwhiteouts = xattrs.get(path, xattrs.OPAQUE) == xattrs.OPAQUE_XWHITEOUTS
    with os.scandir(path) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                found.directories.add(entry.name)
                whiteout = False
            elif entry.is_symlink():
                whiteout = False
            elif entry.is_file(follow_symlinks=False):
                whiteout = xwhiteouts and xattrs.get(entry.path, xattrs.WHITEOUT) is not None
            else:
                status = entry.stat(follow_symlinks=False)
                whiteout = xattrs.stat_is_whiteout(status.st_mode, status.st_rdev)
            (found.hidden if whiteout else found.visible).add(entry.name)
    return found


def _merged_from(parent: _Merged, name: bytes) -> tuple[bytes, ...]:
    """The layers that a child directory is merged from; none where a redirect leads elsewhere."""
    roots = []
    for root in parent.roots:
        path = _at(root, join(parent.path, name))
        with contextlib.suppress(FileNotFoundError):
            if not stat.S_ISDIR(os.lstat(path).st_mode):
                break
            if xattrs.get(path, xattrs.REDIRECT) is not None:
                return ()
            roots.append(root)
            if xattrs.get(path, xattrs.OPAQUE) not in (None, xattrs.OPAQUE_XWHITEOUTS):
                break
    return tuple(roots)


def _difference(overlay: Overlay, root: bytes, directory: bytes, names: list[bytes], merged: set[bytes]) -> str | None:
    """Why none of a layer's own names of a directory can be what the overlay shows there; None if one can."""
    paths = [join(directory, name) for name in names]
    shown = [
        path
        for name, path in zip(names, paths, strict=True)
        if name in merged or os.path.lexists(_at(overlay.mountpoint, path))
    ]
    if not shown:
        return f"the overlay shows none of its names there, such as /{display(paths[0])}"
    for path in shown:
        with contextlib.suppress(FileNotFoundError):
            if _looks(os.lstat(_at(root, path))) == _looks(os.lstat(_at(overlay.mountpoint, path))):
                return None
    return f"/{display(shown[0])} has another type, size or time in the overlay"


def _looks(status: os.stat_result) -> tuple[int, int, int]:
    return stat.S_IFMT(status.st_mode), status.st_size, status.st_mtime_ns


def _at(root: bytes, path: bytes) -> bytes:
    return root + b"/" + path
