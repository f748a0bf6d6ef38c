"""The demonstration's share: releases of tools, as a visual-effects studio keeps them on one read-only volume.

``apps/<tool>/<version>/{lib,python,plugins}``: the upper two levels grow, a release never changes. The tree is the same
every time, apart from inode numbers and change times (which nobody can set).
"""

import contextlib
import os
import stat
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product

_TOOLS = ("atlas", "brush", "compose", "deform", "eddy", "flora", "grain", "hair", "ink", "juniper", "kiln", "lumen")
_VERSIONS = ("1.4.0", "2.0.1")
_STAMP = 1_650_000_000
_SPAN = 50_000_000
_LIBRARIES_EACH, _MODULES_EACH, _DATA_EACH = 42, 42, 38

# include/uapi/linux/capability.h: VFS_CAP_REVISION_2 with the effective bit, cap_net_raw permitted
_CAPABILITY = struct.pack("<IIIII", 0x02000001, 1 << 13, 0, 0, 0)
# include/uapi/linux/posix_acl_xattr.h: version 2, then (tag, permissions, id): user, user 1234, group, mask, other
_ACL = struct.pack("<I", 2) + b"".join(
    struct.pack("<HHI", tag, permissions, number)
    for tag, permissions, number in (
        (0x01, 6, 0xFFFFFFFF),
        (0x02, 4, 1234),
        (0x04, 4, 0xFFFFFFFF),
        (0x10, 4, 0xFFFFFFFF),
        (0x20, 0, 0xFFFFFFFF),
    )
)
_ODD_NAMES = (
    b"two words.plugin",
    b"line\nbreak.plugin",
    b"caf\xe9 latin-1.plugin",
    b"-f.plugin",
    b"back\\slash.plugin",
)


@dataclass(frozen=True)
class Share:
    """The tree and what is to be known of it. All paths but ``root`` are relative to it."""

    root: bytes
    library_path: tuple[bytes, ...]
    python_path: tuple[bytes, ...]
    plugin_path: tuple[bytes, ...]
    libraries: tuple[bytes, ...]
    """Names that exist once each; every directory of ``library_path`` has some."""
    modules: tuple[bytes, ...]
    """Module names (without suffix) that exist once each, spread over ``python_path``."""
    configs: tuple[bytes, ...]
    """Names that ``plugin_path`` is asked for; few of its directories have one."""
    absent_libraries: tuple[bytes, ...]
    absent_modules: tuple[bytes, ...]
    refused: bytes
    """A directory with a hard-linked pair; on no search path."""
    growing: tuple[bytes, ...]
    """Globs of the directories in which new releases appear."""
    regular_files: int
    extras: frozenset[str]
    """What the file system below could hold besides: ``capability``, ``acl``, ``user-xattr``."""

    @property
    def search_path(self) -> tuple[bytes, ...]:
        """All search directories."""
        return self.library_path + self.python_path + self.plugin_path


def build(root: str | bytes) -> Share:
    """Make the share in the directory ``root``, which must be empty or absent. Needs root (devices, owners)."""
    top = os.fsencode(root)
    releases = [f"apps/{tool}/{version}".encode() for version, tool in product(_VERSIONS, _TOOLS)]
    for number, release in enumerate(releases):
        _write_all(top, dict(_release(release, number)))
    extras = _decorate(top, releases[0] + b"/plugins")
    refused = releases[-1] + b"/share"
    _write_all(top, {refused + b"/%s.dat" % name: name * 50 for name in (b"north", b"south", b"east")})
    os.link(top + b"/" + refused + b"/north.dat", top + b"/" + refused + b"/north-again.dat")
    regular = _stamp(top)
    count = len(releases)
    return Share(
        root=top,
        library_path=tuple(release + b"/lib" for release in releases),
        python_path=tuple(release + b"/python" for release in releases),
        plugin_path=tuple(release + b"/plugins" for release in releases),
        libraries=tuple(_library(number, which) for which in (7, 23) for number in range(count)),
        modules=tuple(_module(number, 11) for number in range(count)),
        configs=tuple(b"site-%02d.cfg" % number for number in range(20)),
        absent_libraries=tuple(b"liboptional%02d.so.3" % number for number in range(12)),
        absent_modules=tuple(b"site_override_%02d" % number for number in range(8)),
        refused=refused,
        growing=(b"apps", b"apps/*"),
        regular_files=regular,
        extras=extras,
    )


def _library(release: int, which: int) -> bytes:
    return b"libr%02d_%02d.so.1" % (release, which)


def _module(release: int, which: int) -> bytes:
    return b"mod_r%02d_%02d" % (release, which)


def _release(path: bytes, number: int) -> Iterator[tuple[bytes, bytes]]:
    """The regular files of one release."""
    header = b"\x7fELF\x02\x01\x01" + b"\0" * 9
    for which in range(_LIBRARIES_EACH):
        name = _library(number, which)
        yield path + b"/lib/" + name, header + name * (60 + which)
    for which in range(_MODULES_EACH):
        name = _module(number, which)
        yield path + b"/python/" + name + b".py", b"NAME = '%s'\n" % name * 5
    for which in range(4):
        yield path + b"/python/toolkit_r%02d/part%d.py" % (number, which), b"PART = %d\n" % which
    for which in range(6):
        yield path + b"/plugins/node%d.plugin" % which, b"plugin %d of %s\n" % (which, path)
    for which in range(_DATA_EACH):
        yield path + b"/plugins/shader%02d.dat" % which, b"%s %d\n" % (path, which) * 9
    for which in range(4):
        yield path + b"/plugins/icons/icon%d.png" % which, b"\x89PNG%d" % which
    if number % 8 == 0:
        yield path + b"/plugins/site-%02d.cfg" % (number // 8), b"colour = blue\n"


def _write_all(top: bytes, contents: Mapping[bytes, bytes]) -> None:
    for directory in {os.path.dirname(path) for path in contents}:
        os.makedirs(top + b"/" + directory, exist_ok=True)
    for path, content in contents.items():
        with open(top + b"/" + path, "wb") as file:
            file.write(content)
    for path in contents:
        if b"/lib/" in path and path.endswith((b"_01.so.1", b"_07.so.1")):
            name = os.path.basename(path)
            os.symlink(name, top + b"/" + path.removesuffix(b".1"))


def _decorate(top: bytes, directory: bytes) -> frozenset[str]:
    """Put one of everything that a promotion must not damage into a directory; what the file system could hold."""
    place = top + b"/" + directory + b"/"
    for name in _ODD_NAMES:
        with open(place + name, "wb") as file:
            file.write(b"odd: " + name)
    os.symlink(b"/nonexistent/elsewhere", place + b"dangling")
    os.symlink(b"icons", place + b"images")
    os.mkfifo(place + b"events.fifo", 0o640)
    os.mknod(place + b"null.device", stat.S_IFCHR | 0o600, os.makedev(1, 3))
    os.mkdir(place + b"empty")
    for name, mode, owner in ((b"helper-setuid", 0o4755, 0), (b"helper-setgid", 0o2751, 1001), (b"secret", 0, 1002)):
        with open(place + name, "wb") as file:
            file.write(b"#!/bin/true\n" + name)
        os.chown(place + name, owner, owner)
        os.chmod(place + name, mode)
    extras = {
        "capability": ("security.capability", _CAPABILITY),
        "acl": ("system.posix_acl_access", _ACL),
        "user-xattr": ("user.origin", b"demo \xff\0 tree"),
    }
    held = set()
    for extra, (attribute, value) in extras.items():
        with open(place + b"with-" + extra.encode(), "wb") as file:
            file.write(extra.encode())
        with contextlib.suppress(OSError):  # not every file system has every kind
            os.setxattr(file.name, attribute, value)
            held.add(extra)
    return frozenset(held)


def _stamp(top: bytes) -> int:
    """Give every entry an old time of its own, children first; the number of regular files."""
    regular = 0
    for position, (directory, _, names) in enumerate(os.walk(top, topdown=False)):
        for number, name in enumerate(sorted(names)):
            path = directory + b"/" + name
            _set_time(path, position * 1009 + number)
            regular += stat.S_ISREG(os.lstat(path).st_mode)
        for entry in os.scandir(directory):
            if entry.is_symlink() and entry.is_dir():  # os.walk calls these directories
                _set_time(entry.path, position)
        _set_time(directory, position)
    return regular


def _set_time(path: bytes, number: int) -> None:
    seconds = _STAMP + number * 7919 % _SPAN
    nanoseconds = seconds * 1_000_000_000 + number % 1000
    os.utime(path, ns=(nanoseconds, nanoseconds), follow_symlinks=False)
