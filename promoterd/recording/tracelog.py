"""What strace writes, line by line, as the paths that were looked up (pure).

The lines are those of ``strace -f -y -xx -e trace=%file,…``: every string and path is hexadecimal, so that no name can
look like syntax, and relative paths come with their directory. Only system calls without a directory argument, such as
access(2), need the caller's working directory, which is followed through chdir, fchdir, fork and clone.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

FILTER: Final = "trace=%file,?fchdir,?clone,?clone3,?fork,?vfork"
"""The system calls that have to be traced, as ``strace -e`` names them."""

_LINE: Final = re.compile(rb"(\d+) +(?:<\.\.\. (\w+) resumed>)?(.*)")
_CALL: Final = re.compile(rb"(\w+)\((.*)\)\s+= (-?\d+|\?)(?:<[^>]*>(?:\(deleted\))?)?(?: (E[A-Z0-9]+))?", re.DOTALL)
_UNFINISHED: Final = b" <unfinished ...>"
_AT: Final = re.compile(rb'(AT_FDCWD|-?\d+)(?:<([^>]*)>(\(deleted\))?)?, "((?:[^"\\]|\\.)*)"(\.\.\.)?')
_PLAIN: Final = re.compile(rb'()()()"((?:[^"\\]|\\.)*)"(\.\.\.)?')
_DESCRIPTOR: Final = re.compile(rb"-?\d+<([^>]*)>(\(deleted\))?")

_TAKES_ONE: Final = frozenset(
    b"open creat stat stat64 lstat lstat64 oldstat oldlstat access readlink execve chdir mkdir rmdir unlink mknod "
    b"chmod chown chown32 lchown lchown32 utime utimes truncate truncate64 statfs statfs64 getxattr lgetxattr "
    b"listxattr llistxattr setxattr lsetxattr removexattr lremovexattr "
    b"openat openat2 newfstatat fstatat64 statx faccessat faccessat2 readlinkat execveat unlinkat mkdirat mknodat "
    b"fchmodat fchmodat2 fchownat utimensat utimensat_time64 futimesat name_to_handle_at".split()
)
_TAKES_TWO: Final = frozenset(b"rename renameat renameat2 link linkat".split())
_OPENS: Final = frozenset(b"open creat openat openat2 execve execveat".split())
_EXECUTES: Final = frozenset((b"execve", b"execveat"))
_MAKES: Final = frozenset(b"mkdir mkdirat mknod mknodat symlink symlinkat".split())
_NEVER_FOLLOWS: Final = frozenset(
    b"lstat lstat64 oldlstat readlink readlinkat mkdir mkdirat rmdir unlink unlinkat mknod mknodat symlink symlinkat "
    b"lchown lchown32 lgetxattr llistxattr lsetxattr lremovexattr rename renameat renameat2".split()
)
_FOLLOWS_IF_TOLD: Final = frozenset(b"link linkat name_to_handle_at".split())
_NO_FOLLOW: Final = (b"AT_SYMLINK_NOFOLLOW", b"O_NOFOLLOW", b"IN_DONT_FOLLOW")
_WITH_DIRECTORY: Final = (b"at", b"at2")
_MOST_WAITING: Final = 1000
"""Calls of a process that are kept until it is known where it began."""
_CLONES: Final = frozenset(b"clone clone3 fork vfork".split())


class Lookup(NamedTuple):
    """One way in which a path was looked up; ``path`` is absolute, with whatever symlinks and ``..`` it has."""

    path: bytes
    follows: bool
    """Whether a symlink at its end was followed."""
    opens: bool
    """Whether it was opened or executed."""
    misses: bool
    """Whether the kernel found no such name."""


@dataclass(slots=True)
class _Place:
    """A working directory, shared by threads."""

    path: bytes | None


class TraceLog:
    """Counts what the lines say. ``place_of`` gives the working directory of a process that was there before."""

    def __init__(self, place_of: Callable[[int], bytes | None]) -> None:
        self.lookups: Counter[Lookup] = Counter()
        self.first: int | None = None
        """The process that was seen first."""
        self.runs = False
        """Whether a program was executed."""
        self.not_understood = 0
        """Lines that say nothing that is known here."""
        self._place_of = place_of
        self._places: dict[int, _Place] = {}
        self._begun: dict[int, bytes] = {}
        self._orphans: dict[int, list[bytes]] = {}

    @property
    def processes(self) -> list[int]:
        """The processes and threads that were seen and have not ended."""
        return [*self._places, *self._orphans]

    def begin(self, pid: int, threads: Iterable[int] = ()) -> None:
        """A process that is no child of one that was seen, with its threads."""
        place = _Place(self._place_of(pid))
        self._places |= dict.fromkeys([pid, *threads], place)

    def feed(self, line: bytes) -> None:
        """Take in one line, without its end."""
        match = _LINE.fullmatch(line)
        if match is None:
            self.not_understood += 1
            return
        pid, resumed, rest = int(match[1]), match[2], match[3]
        if rest.startswith((b"+++", b"---")):
            if rest.startswith((b"+++ exited", b"+++ killed")):
                self._end(pid)
            return
        if self.first is None:
            self.first = pid
            if pid not in self._places:
                self.begin(pid)
        if resumed:
            rest = self._begun.pop(pid, b"") + rest
        if rest.endswith(_UNFINISHED):
            self._begun[pid] = rest.removesuffix(_UNFINISHED)
            return
        if pid in self._places:
            self._take(pid, rest)
        else:  # its parent's call has not returned yet
            waiting = self._orphans.setdefault(pid, [])
            waiting.append(rest)
            if len(waiting) >= _MOST_WAITING:
                self._adopt(pid, _Place(self._place_of(pid)))

    def finish(self) -> None:
        """No more lines come."""
        for pid in list(self._orphans):
            self._adopt(pid, _Place(self._place_of(pid)))

    def _end(self, pid: int) -> None:
        if pid in self._orphans:
            self._adopt(pid, _Place(self._place_of(pid)))
        self._places.pop(pid, None)
        self._begun.pop(pid, None)

    def _adopt(self, pid: int, place: _Place) -> None:
        self._places[pid] = place
        for rest in self._orphans.pop(pid, ()):
            self._take(pid, rest)

    def _take(self, pid: int, rest: bytes) -> None:
        call = _CALL.match(rest)
        if call is None:
            self.not_understood += 1
            return
        name, arguments, result, error = call.groups()
        place = self._places[pid]
        if name in _CLONES:
            if result.isdigit() and result != b"0":
                child = place if b"CLONE_FS" in arguments else _Place(place.path)
                self._adopt(int(result), child)
            return
        if name == b"fchdir":
            if error is None and result == b"0":
                place.path = _path_of_descriptor(arguments)
            return
        if result == b"?":
            return
        if name in _EXECUTES and error is None:
            self.runs = True
        for path in _paths(name, arguments, place):
            self._count(name, arguments, error, path)
            if name == b"chdir" and error is None:
                place.path = path

    def _count(self, name: bytes, arguments: bytes, error: bytes | None, path: bytes) -> None:
        if name in _NEVER_FOLLOWS:
            follows = False
        elif name in _FOLLOWS_IF_TOLD:
            follows = b"AT_SYMLINK_FOLLOW" in arguments
        else:
            follows = not any(flag in arguments for flag in _NO_FOLLOW)
        opens = name in _OPENS and error is None and b"O_PATH" not in arguments
        misses = name not in _TAKES_TWO and (error == b"ENOENT" or (name in _MAKES and error is None))
        self.lookups[Lookup(path, follows or path.endswith(b"/"), opens, misses)] += 1


def _paths(name: bytes, arguments: bytes, place: _Place) -> Iterator[bytes]:
    """The paths that a call looks up, absolute; what cannot be known is left out."""
    if name in _TAKES_ONE:
        found = [match for pattern in (_PLAIN, _AT) if (match := pattern.match(arguments))]
    elif name in _TAKES_TWO:
        found = list((_AT if name.endswith(_WITH_DIRECTORY) else _PLAIN).finditer(arguments))[:2]
    elif name == b"symlink":
        found = list(_PLAIN.finditer(arguments))[1:2]  # where it leads is not looked up
    elif name == b"symlinkat":
        found = list(_AT.finditer(arguments))[:1]
    elif name == b"inotify_add_watch":
        comma = arguments.find(b", ")
        found = [match] if comma > 0 and (match := _PLAIN.match(arguments, comma + 2)) else []
    else:
        return
    for match in found:
        path = _absolute(match, place)
        if path is not None:
            yield path


def _absolute(match: re.Match[bytes], place: _Place) -> bytes | None:
    number, directory, deleted, path, cut = match.groups()
    name = _decoded(path)
    if not name or cut:  # the descriptor itself, or too long for any lookup
        return None
    base = place.path
    if directory and number != b"":
        base = None if deleted else _decoded(directory)
        if number == b"AT_FDCWD":
            place.path = base
    elif number not in (b"", b"AT_FDCWD"):
        base = None
    if name.startswith(b"/"):
        return name
    return None if base is None or not base.startswith(b"/") else base.rstrip(b"/") + b"/" + name


def _path_of_descriptor(arguments: bytes) -> bytes | None:
    match = _DESCRIPTOR.match(arguments)
    return None if match is None or match[2] else _decoded(match[1])


def _decoded(text: bytes) -> bytes:
    if text.startswith(b"\\x") and len(text) % 4 == 0:
        try:
            return bytes.fromhex(text.replace(b"\\x", b"").decode("ascii"))
        except ValueError:
            return text
    return text
