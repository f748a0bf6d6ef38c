"""All that an application can see of a tree, and what differs between two such views.

Left out is what a promotion is allowed to change: change time, inode and device numbers, blocks, link counts, and the
size of directories.
"""

import errno
import hashlib
import os
import stat
from collections.abc import Collection, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, fields

from promoterd.paths import display, join, show

_THREADS = 8
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_REGULAR = os.O_RDONLY | os.O_NOFOLLOW | os.O_NOATIME | os.O_NONBLOCK | os.O_CLOEXEC
_ANY = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class Entry:
    """One name as it is seen; ``error`` is the errno if it cannot be looked at."""

    mode: int = 0
    uid: int = 0
    gid: int = 0
    size: int = 0
    mtime_ns: int = 0
    rdev: int = 0
    digest: str = ""
    target: bytes = b""
    xattrs: tuple[tuple[str, bytes], ...] = ()
    error: int = 0


def snapshot(root: bytes, skip: Collection[bytes] = (), threads: int = _THREADS) -> dict[bytes, Entry]:
    """Every entry below ``root`` by its relative path, root itself as ``b""``; not the paths in ``skip``."""
    view: dict[bytes, Entry] = {}
    top = os.open(root, _DIRECTORY)
    try:
        with ThreadPoolExecutor(threads) as pool:
            pending: set[Future[_Found]] = {pool.submit(_look_into, top, b"", skip)}
            while pending:
                done, pending = wait(pending, return_when=FIRST_COMPLETED)
                for future in done:
                    found = future.result()
                    view |= found.entries
                    pending |= {pool.submit(_look_into, top, path, skip) for path in found.directories}
    finally:
        os.close(top)
    return view


@dataclass(slots=True)
class _Found:
    entries: dict[bytes, Entry]
    directories: list[bytes]


def _look_into(top: int, path: bytes, skip: Collection[bytes]) -> _Found:
    """A directory and all of its entries that are not directories."""
    found = _Found({}, [])
    try:
        directory = os.open(path or b".", _DIRECTORY, dir_fd=top)
    except OSError as error:
        return _Found({path: Entry(error=error.errno or errno.EIO)}, [])
    try:
        found.entries[path] = _entry(directory, os.fstat(directory))
        with os.scandir(directory) as scan:
            listed = [(os.fsencode(entry.name), entry.is_dir(follow_symlinks=False)) for entry in scan]
        for name, is_directory in listed:
            place = join(path, name)
            if place in skip:
                continue
            if is_directory:
                found.directories.append(place)
            else:
                found.entries[place] = _look_at(directory, name)
    except OSError as error:
        found.entries[path] = Entry(error=error.errno or errno.EIO)
    finally:
        os.close(directory)
    return found


def _look_at(directory: int, name: bytes) -> Entry:
    try:
        status = os.stat(name, dir_fd=directory, follow_symlinks=False)
        descriptor = os.open(name, _REGULAR if stat.S_ISREG(status.st_mode) else _ANY, dir_fd=directory)
        try:
            return _entry(descriptor, status)
        finally:
            os.close(descriptor)
    except OSError as error:
        return Entry(error=error.errno or errno.EIO)


def _entry(descriptor: int, status: os.stat_result) -> Entry:
    kind = status.st_mode
    digest, target = "", b""
    if stat.S_ISREG(kind):
        with open(descriptor, "rb", closefd=False) as file:
            digest = hashlib.file_digest(file, "blake2b").hexdigest()[:32]
    elif stat.S_ISLNK(kind):
        target = os.readlink(b"", dir_fd=descriptor)
    return Entry(
        kind,
        status.st_uid,
        status.st_gid,
        0 if stat.S_ISDIR(kind) else status.st_size,
        status.st_mtime_ns,
        status.st_rdev,
        digest,
        target,
        tuple(_xattrs(descriptor)),
    )


def _xattrs(descriptor: int) -> Iterator[tuple[str, bytes]]:
    # A descriptor opened with O_PATH has no extended attributes of its own (open(2)); its magic link leads to them.
    path = f"/proc/self/fd/{descriptor}"
    try:
        names = os.listxattr(path)
    except OSError as error:
        if error.errno == errno.EOPNOTSUPP:
            return
        raise
    for name in sorted(names):
        yield name, os.getxattr(path, name)


def differences(before: dict[bytes, Entry], after: dict[bytes, Entry]) -> list[str]:
    """What an application would notice, one line each; empty if the views are the same."""
    lines = [f"{show(path)}: gone" for path in sorted(before.keys() - after.keys())]
    lines += [f"{show(path)}: new" for path in sorted(after.keys() - before.keys())]
    for path in sorted(before.keys() & after.keys()):
        old, new = before[path], after[path]
        if old != new:
            lines += [
                f"{show(path)}: {field.name} {_text(field.name, old)} -> {_text(field.name, new)}"
                for field in fields(Entry)
                if getattr(old, field.name) != getattr(new, field.name)
            ]
    return lines


def _text(name: str, entry: Entry) -> str:
    match name:
        case "mode":
            return f"{entry.mode:#o}"
        case "error":
            return errno.errorcode.get(entry.error, str(entry.error)) if entry.error else "none"
        case "target":
            return display(entry.target)
        case "xattrs":
            return ", ".join(f"{key}={display(value)}" for key, value in entry.xattrs) or "none"
        case _:
            return str(getattr(entry, name)) or "none"
