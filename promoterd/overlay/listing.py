"""The layers' names of one directory, read from the layers themselves and never from the merged view.

Names are ``str`` with surrogate escapes inside this module and its users' loops, because that is what
``os.scandir(descriptor)`` yields; ``os.fsencode`` gives back the bytes.
"""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from promoterd import pacing
from promoterd.errors import Refused
from promoterd.overlay import beneath, syscalls, xattrs
from promoterd.overlay.attributes import AttributeTable
from promoterd.overlay.mounts import Overlay
from promoterd.overlay.xattrs import stat_is_whiteout
from promoterd.paths import ancestors, show

UNCHANGEABLE = syscalls.STATX_ATTR_IMMUTABLE | syscalls.STATX_ATTR_APPEND
"""What keeps an entry from being copied up, where the file system tells it (NFS and FUSE do not)."""


@dataclass(frozen=True, slots=True)
class Stamp:
    """What tells that a lower directory's names have not changed (R8). ``device`` holds within one mount only."""

    mtime_ns: int
    ctime_ns: int
    inode: int
    device: tuple[int, int]

    def same_content(self, other: "Stamp") -> bool:
        """Equal but for the device number, which NFS and FUSE choose anew at every mount."""
        return (self.mtime_ns, self.ctime_ns, self.inode) == (other.mtime_ns, other.ctime_ns, other.inode)


def stamp(directory: int) -> Stamp:
    """The stamp of an open lower directory, asked of the server and not of the client's cache."""
    found = syscalls.statx(directory, force_sync=True)
    return Stamp(found.mtime_ns, found.ctime_ns, found.ino, found.dev)


@dataclass(slots=True)
class LowerListing:
    """The union of the lower directories that a merged directory is made of; lower whiteouts applied and left out.

    ``attributes``, where it was asked for, holds those of the entries in their order. The newest is the newest of what
    is no directory: directories are judged for themselves.
    """

    stamps: tuple[Stamp, ...]
    attributes: AttributeTable | None = None
    entries: dict[str, int] = field(default_factory=dict)
    newest_ns: int = 0
    newest: str = ""
    hard_linked: list[str] = field(default_factory=list)
    redirected: list[str] = field(default_factory=list)
    unchangeable: list[str] = field(default_factory=list)

    def add(self, name: str, status: os.stat_result, layer: int) -> None:
        """One more entry, of the lower layer with this number."""
        self.entries[name] = status.st_mode
        if self.attributes is not None:
            self.attributes.append(status, layer)
        newest = max(status.st_mtime_ns, status.st_ctime_ns)
        if newest > self.newest_ns and not stat.S_ISDIR(status.st_mode):
            self.newest_ns, self.newest = newest, name

    def directories(self) -> list[str]:
        """Names of the child directories."""
        return [name for name, mode in self.entries.items() if stat.S_ISDIR(mode)]


@dataclass(frozen=True, slots=True)
class UpperEntry:
    """One name of an upper directory."""

    mode: int
    ctime_ns: int
    whiteout: bool


class Layers:
    """Descriptors of an overlay's roots for one piece of work; use as a context manager and do not keep it open (R16).

    Raises MountGone where the overlay is not the one that ``overlay`` describes. With ``mounted=False`` only the layers
    are opened, for work on an overlay that is not mounted.
    """

    def __init__(self, overlay: Overlay, *, mounted: bool = True) -> None:
        self.overlay = overlay
        self.mounted = mounted
        self._stack = ExitStack()
        self.root = -1
        self.upper = -1
        self.metadata: tuple[int, ...] = ()
        self.lowers: tuple[int, ...] = ()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            if self.mounted:
                self.root = beneath.open_mount_root(self.overlay.mountpoint, self.overlay.device)
                stack.callback(os.close, self.root)
            if self.overlay.upper is not None:
                self.upper = beneath.open_root(self.overlay.upper)
                stack.callback(os.close, self.upper)
            below = []
            for layer in (*self.overlay.metadata, *self.overlay.lowers):
                below.append(beneath.open_root(layer))
                stack.callback(os.close, below[-1])
            self.metadata = tuple(below[: len(self.overlay.metadata)])
            self.lowers = tuple(below[len(self.overlay.metadata) :])
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def breathe(self) -> None:
        """Wait for the pace of what is asked of the server, and keep nothing open meanwhile (R16).

        Call it where no descriptor is open that was made from these. Raises MountGone, OSError.
        """
        if pacing.debt():
            self._stack.close()
            try:
                pacing.pay()
            finally:
                self.__enter__()

    def contributing(self, path: bytes) -> tuple[int, ...]:
        """Indexes of the lower layers whose directories are merged at ``path``, top first, whatever upper says.

        Raises Refused where a lower directory on the way carries a redirect or another mount lies on the way.
        """
        found = tuple(range(len(self.lowers)))
        for directory in [*ancestors(path), path] if path else []:
            found = self.contributing_below(found, directory)
        return found

    def contributing_below(self, parent: tuple[int, ...], path: bytes) -> tuple[int, ...]:
        """As :func:`contributing`, where the parent's layers are known already."""
        found = []
        for index in parent:
            pacing.owe(1)
            try:
                descriptor = beneath.open_beneath(self.lowers[index], path, os.O_PATH)
            except OSError as error:
                if error.errno == errno.ENOENT:
                    continue
                if error.errno in (errno.ENOTDIR, errno.ELOOP):
                    break
                if error.errno == errno.EXDEV:
                    raise Refused(
                        path=show(path),
                        reason="another file system is mounted there in the lower layer",
                        hint="unmount it, or exclude the directory with `promote: never`",
                    ) from error
                raise
            try:
                if not stat.S_ISDIR(os.fstat(descriptor).st_mode):
                    break
                found.append(index)
                itself = xattrs.descriptor(descriptor)
                if xattrs.get(itself, xattrs.REDIRECT) is not None:
                    raise Refused(
                        path=show(path),
                        reason="a lower layer carries a redirect there (it was an upper layer once)",
                        hint="use a lower layer without redirects, or exclude the directory with `promote: never`",
                    )
                if xattrs.get(itself, xattrs.OPAQUE) == xattrs.OPAQUE_YES:
                    break
            finally:
                os.close(descriptor)
        return tuple(found)

    def list_lower(self, path: bytes, layers: tuple[int, ...], *, with_attributes: bool = False) -> LowerListing:
        """Read the lower directories at ``path``, in readdir order with each entry's attributes. Raises OSError."""
        stamps = []
        listing = LowerListing((), AttributeTable() if with_attributes else None)
        hidden: set[str] = set()
        for index in layers:
            pacing.owe(2)
            with opened_to_read(self.lowers[index], path) as directory:
                stamps.append(stamp(directory))
                forget_pages(directory)
                _read_lower(directory, listing, hidden, index)
        listing.stamps = tuple(stamps)
        return listing

    def stamps(self, path: bytes, layers: tuple[int, ...]) -> tuple[Stamp, ...]:
        """The stamps of the lower directories at ``path`` now; fewer than ``layers`` where one is gone."""
        found = []
        for index in layers:
            pacing.owe(1)
            try:
                with beneath.opened(self.lowers[index], path) as directory:
                    found.append(stamp(directory))
            except FileNotFoundError:
                continue
        return tuple(found)

    def list_upper(self, path: bytes) -> dict[str, UpperEntry]:
        """The upper directory's names; empty where there is no upper directory."""
        if self.overlay.upper is None:
            return {}
        try:
            with opened_to_read(self.upper, path) as directory:
                return dict(_read_upper(directory))
        except (FileNotFoundError, NotADirectoryError):
            return {}

    def list_merged(self, path: bytes) -> list[str]:
        """The names that an application sees: a readdir through the overlay."""
        with opened_to_read(self.root, path) as directory:
            return os.listdir(directory)

    def sync_upper(self) -> None:
        """Make everything written to the upper file system so far durable. Raises OSError."""
        with beneath.opened(self.upper, b"", beneath.READ_DIRECTORY) as directory:
            syscalls.syncfs(directory)

    def upper_xattr(self, path: bytes, attribute: str) -> bytes | None:
        """An attribute of the upper directory at ``path``; None where either is absent."""
        if self.overlay.upper is None:
            return None
        try:
            with beneath.opened(self.upper, path) as directory:
                return xattrs.get(xattrs.descriptor(directory), attribute)
        except (FileNotFoundError, NotADirectoryError):
            return None


def open_to_read(root: int, path: bytes) -> int:
    """Open a directory to list it; what lists it for itself leaves its access time alone (I2). Raises OSError."""
    try:
        return beneath.open_beneath(root, path, beneath.READ_DIRECTORY | os.O_NOATIME)
    except PermissionError:  # not ours, and without CAP_FOWNER (open(2), O_NOATIME)
        return beneath.open_beneath(root, path, beneath.READ_DIRECTORY)


@contextmanager
def opened_to_read(root: int, path: bytes) -> Iterator[int]:
    """:func:`open_to_read` for the length of a ``with`` block."""
    descriptor = open_to_read(root, path)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def forget_pages(directory: int) -> None:
    """Have the client read an open directory from its server again, with its entries' attributes.

    From its pages it would list what it knows, and then ask for the attributes of each entry that have expired. Without
    them it uses READDIRPLUS, as long as entries are looked at while they are listed (nfs_use_readdirplus(),
    fs/nfs/dir.c).
    """
    os.posix_fadvise(directory, 0, 0, os.POSIX_FADV_DONTNEED)


@contextmanager
def scanned_anew(root: int, path: bytes) -> Iterator[Iterator[os.DirEntry[str]]]:
    """The entries of a lower directory as its server lists them now; each is to be looked at as it comes."""
    with opened_to_read(root, path) as directory:
        forget_pages(directory)
        with os.scandir(directory) as found:
            yield pacing.listed(found)


def _read_lower(directory: int, listing: LowerListing, hidden: set[str], layer: int) -> None:
    """Add one layer's names to a listing that holds those of the layers above."""
    local = xattrs.has_trusted(directory)
    xwhiteouts = local and xattrs.get(xattrs.descriptor(directory), xattrs.OPAQUE) == xattrs.OPAQUE_XWHITEOUTS
    can_be_unchangeable = bool(syscalls.statx(directory).attributes_mask & UNCHANGEABLE)
    attributes = syscalls.attributes_of(directory)
    prefix = f"/proc/self/fd/{directory}/"
    with os.scandir(directory) as found:
        for item in pacing.listed(found):
            name = item.name
            if name in listing.entries or name in hidden:
                continue
            try:
                status = item.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue
            mode = status.st_mode
            if stat_is_whiteout(mode, status.st_rdev) or (
                xwhiteouts and xattrs.get(xattrs.entry(directory, name), xattrs.WHITEOUT) is not None
            ):
                hidden.add(name)
                continue
            listing.add(name, status, layer)
            if stat.S_ISREG(mode):
                if status.st_nlink > 1:
                    listing.hard_linked.append(name)
                if local and _has_redirect(prefix + name):
                    listing.redirected.append(name)
            if can_be_unchangeable and attributes(name) & UNCHANGEABLE:
                listing.unchangeable.append(name)


def _has_redirect(path: str) -> bool:
    try:
        os.getxattr(path, xattrs.REDIRECT, follow_symlinks=False)
    except OSError as error:
        if error.errno in (errno.ENODATA, errno.EOPNOTSUPP):
            return False
        raise
    return True


def _read_upper(directory: int) -> Iterator[tuple[str, UpperEntry]]:
    with os.scandir(directory) as found:
        for item in found:
            try:
                status = item.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue
            whiteout = stat_is_whiteout(status.st_mode, status.st_rdev)
            yield item.name, UpperEntry(status.st_mode, status.st_ctime_ns, whiteout)
