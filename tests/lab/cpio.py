"""A cpio archive of the kind that the kernel unpacks as its first root file system (initramfs, format "newc").

Written here because a plain user may not own the files as root, nor make the console's device node, on disk.
"""

import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO

_MAGIC = b"070701"
_MERGED = {"bin": "usr/bin", "sbin": "usr/sbin", "lib": "usr/lib", "lib64": "usr/lib64"}


@dataclass(frozen=True)
class _Entry:
    mode: int
    data: bytes = b""
    source: str | None = None
    mtime: int = 0
    device: tuple[int, int] = (0, 0)


class Archive:
    """Entries by their absolute path in the guest, all owned by root; parents come by themselves.

    ``/bin``, ``/sbin``, ``/lib`` and ``/lib64`` are links into ``/usr``, whatever the host has. Files are read when the
    archive is written, and keep their modification times: a compiled Python module is stale if its source's differs.
    """

    def __init__(self) -> None:
        self._entries: dict[str, _Entry] = {}
        for name, target in _MERGED.items():
            self.directory(f"/{target}")
            self._entries[name] = _Entry(stat.S_IFLNK | 0o777, target.encode())

    def __contains__(self, path: str) -> bool:
        return _placed(path) in self._entries

    def directory(self, path: str, mode: int = 0o755) -> None:
        """A directory, with those above it."""
        placed = _placed(path)
        if placed and placed not in self._entries:
            self.directory(os.path.dirname(placed))
            self._entries[placed] = _Entry(stat.S_IFDIR | mode)

    def text(self, path: str, content: str, mode: int = 0o644) -> None:
        """A file with this content."""
        self._put(path, _Entry(stat.S_IFREG | mode, content.encode()))

    def symlink(self, path: str, target: str) -> None:
        """A symbolic link."""
        self._put(path, _Entry(stat.S_IFLNK | 0o777, target.encode()))

    def device(self, path: str, major: int, minor: int) -> None:
        """A character device."""
        self._put(path, _Entry(stat.S_IFCHR | 0o600, device=(major, minor)))

    def file(self, source: str, path: str | None = None) -> None:
        """A file of the host, at its own path or another one; a link comes with what it leads to."""
        placed = path or source
        status = os.lstat(source)
        if stat.S_ISLNK(status.st_mode):
            self.symlink(placed, os.readlink(source))
            led_to = os.path.normpath(os.path.join(os.path.dirname(source), os.readlink(source)))
            if os.path.isfile(led_to) and led_to not in self:
                self.file(led_to)
        else:
            mode = stat.S_IFREG | stat.S_IMODE(status.st_mode)
            self._put(placed, _Entry(mode, source=source, mtime=int(status.st_mtime)))

    def tree(self, source: str, path: str, keep: Callable[[str], bool] = lambda _: True) -> None:
        """A directory of the host with all that is in it; ``keep`` is asked for each path below it."""
        self.directory(path)
        for above, directories, files in os.walk(source):
            below = os.path.relpath(above, source)
            directories[:] = sorted(name for name in directories if keep(os.path.normpath(f"{below}/{name}")))
            for name in sorted(files):
                inside = os.path.normpath(f"{below}/{name}")
                if keep(inside):
                    self.file(f"{source}/{inside}", f"{path}/{inside}")

    def write(self, path: str) -> None:
        """Write it to a file of the host, which appears when it is whole."""
        with open(f"{path}.part", "wb") as out:
            for number, name in enumerate(sorted(self._entries), start=1):
                _write_entry(out, number, name, self._entries[name])
            _write_entry(out, 0, "TRAILER!!!", _Entry(0))
        os.replace(f"{path}.part", path)

    def _put(self, path: str, entry: _Entry) -> None:
        placed = _placed(path)
        self.directory(os.path.dirname(placed))
        self._entries[placed] = entry


def _placed(path: str) -> str:
    plain = os.path.normpath(path).lstrip("/")
    if plain == ".":
        return ""
    top, slash, below = plain.partition("/")
    return f"{_MERGED[top]}{slash}{below}" if top in _MERGED else plain


def _write_entry(out: IO[bytes], number: int, name: str, entry: _Entry) -> None:
    data = entry.data
    if entry.source is not None:
        with open(entry.source, "rb") as file:
            data = file.read()
    raw = name.encode() + b"\0"
    # c_ino, c_mode, c_uid, c_gid, c_nlink, c_mtime, c_filesize, c_dev*, c_rdev*, c_namesize, c_check:
    # Documentation/driver-api/early-userspace/buffer-format.rst
    fields = (number, entry.mode, 0, 0, 1, entry.mtime, len(data), 0, 0, *entry.device, len(raw), 0)
    header = _MAGIC + b"".join(b"%08X" % field for field in fields)
    out.write(header + raw + bytes(-(len(header) + len(raw)) % 4))
    out.write(data + bytes(-len(data) % 4))
