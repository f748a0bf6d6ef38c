"""One directory of the server, and entries of local ones, read as a stream: nothing is held for each name."""

import hashlib
import os
import stat
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress

from promoterd.fsck.judging import Facts, Shadow
from promoterd.overlay import beneath, syscalls, xattrs
from promoterd.overlay.listing import Layers, Stamp, opened_to_read, stamp

Pace = Callable[[], None]
"""Called before each entry that the server is asked for."""


class Pacer:
    """Counts entries, and holds whoever reads them back to so many a second; 0 is no limit."""

    def __init__(self, rate: float = 0.0, advance: Callable[[int], None] | None = None) -> None:
        self.entries = 0
        self._rate = rate
        self._advance = advance
        self._began = time.monotonic()

    def __call__(self) -> None:
        """One more entry."""
        self.entries += 1
        if self._advance is not None and not self.entries % 256:
            self._advance(self.entries)
        if self._rate:
            ahead = self.entries / self._rate - (time.monotonic() - self._began)
            if ahead > 0:
                time.sleep(ahead)


class LowerDirectory:
    """The server's directories that are merged at one path, open; topmost first."""

    def __init__(self, directories: Sequence[tuple[int, int]]) -> None:
        self._directories = [(index, directory, _has_xwhiteouts(directory)) for index, directory in directories]

    @property
    def facts(self) -> Facts:
        """The directory itself, as the topmost layer has it; asked of the server, not of the client's cache."""
        directory = self._directories[0][1]
        syscalls.statx(directory, force_sync=True)
        return Facts.of(os.fstat(directory))

    def stamps(self) -> tuple[Stamp, ...]:
        """The stamps of all of them now (R8)."""
        return tuple(stamp(directory) for _, directory, _ in self._directories)

    def entries(self, pace: Pace, force: Collection[str] = ()) -> Iterator[tuple[str, Facts, int]]:
        """Names with their attributes and the number of their layer, in readdir order (one READDIRPLUS pass).

        Attributes of the names in ``force`` are asked of the server anew. Several layers hold their names in memory.
        """
        seen: set[str] | None = set() if len(self._directories) > 1 else None
        for index, directory, xwhiteouts in self._directories:
            with os.scandir(directory) as found:
                for item in found:
                    name = item.name
                    if seen is not None:
                        if name in seen:
                            continue
                        seen.add(name)
                    pace()
                    with suppress(FileNotFoundError):
                        facts = _facts(directory, name, item, force=name in force)
                        if not _is_whiteout(directory, name, facts, xwhiteouts=xwhiteouts):
                            yield name, facts, index

    def find(self, name: str) -> Facts | None:
        """One entry by its name; None where the server has none."""
        for _, directory, xwhiteouts in self._directories:
            with suppress(FileNotFoundError):
                facts = Facts.of(os.stat(name, dir_fd=directory, follow_symlinks=False))
                return None if _is_whiteout(directory, name, facts, xwhiteouts=xwhiteouts) else facts
        return None

    def target(self, name: str) -> str | None:
        """Where a symlink leads; None where there is none any more."""
        for _, directory, _ in self._directories:
            with suppress(OSError):
                return os.readlink(name, dir_fd=directory)
        return None


def _facts(directory: int, name: str, item: "os.DirEntry[str]", *, force: bool) -> Facts:
    if force:
        syscalls.statx(directory, name, force_sync=True)
        return Facts.of(os.stat(name, dir_fd=directory, follow_symlinks=False))
    return Facts.of(item.stat(follow_symlinks=False))


def _has_xwhiteouts(directory: int) -> bool:
    """Whether whiteouts of a local lower layer may be empty files with an attribute (overlayfs.rst)."""
    return xattrs.get(xattrs.descriptor(directory), xattrs.OPAQUE) == xattrs.OPAQUE_XWHITEOUTS


def _is_whiteout(directory: int, name: str, facts: Facts, *, xwhiteouts: bool) -> bool:
    if xattrs.stat_is_whiteout(facts.mode, facts.rdev):
        return True
    return xwhiteouts and xattrs.get(xattrs.entry(directory, name), xattrs.WHITEOUT) is not None


@contextmanager
def opened_lower(layers: Layers, path: bytes) -> Iterator[LowerDirectory | None]:
    """The server's directory at ``path``; None where it has none. Raises Refused as ``contributing``, and OSError."""
    with ExitStack() as stack:
        directories = [
            (index, stack.enter_context(opened_to_read(layers.lowers[index], path)))
            for index in layers.contributing(path)
        ]
        yield LowerDirectory(directories) if directories else None


@contextmanager
def opened_if_there(root: int, path: bytes) -> Iterator[int]:
    """As :func:`promoterd.overlay.listing.opened_to_read`; -1 where there is no such directory."""
    with ExitStack() as stack:
        try:
            descriptor = stack.enter_context(opened_to_read(root, path))
        except (FileNotFoundError, NotADirectoryError):
            descriptor = -1
        yield descriptor


def lstat(directory: int, name: str) -> Facts | None:
    """An entry of an open local directory; None where there is none, or no directory."""
    if directory < 0:
        return None
    status = beneath.status_of(directory, name)
    return None if status is None else Facts.of(status)


def shadow_of(directory: int, name: str) -> Shadow | None:
    """An entry of a half of the layer, with what stands beside it; None where there is none."""
    facts = lstat(directory, name)
    if facts is None or not stat.S_ISREG(facts.mode):
        return None if facts is None else Shadow(facts)
    itself = xattrs.entry(directory, name)
    metacopy = xattrs.get(itself, xattrs.METACOPY) is not None
    copy = xattrs.get(itself, xattrs.DATA)
    return Shadow(facts, metacopy, xattrs.get(itself, xattrs.REDIRECT), copy)


def digest_of(directory: int, name: str) -> str:
    """The sha256 of a local file, read without a trace in its access time. Raises OSError."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NOATIME | os.O_CLOEXEC
    with open(os.open(name, flags, dir_fd=directory), "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
