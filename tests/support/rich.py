"""A tree that holds one of everything that a share can hold, for promotions to keep."""

import os
import socket
import stat
import struct

from support.trees import OLD, Device, Directory, Fifo, File, Symlink, Tree, files, odd_files

CAPABILITY = struct.pack("<5I", 0x02000001, 1 << 13, 0, 0, 0)
"""security.capability: cap_net_raw=ep (struct vfs_cap_data, include/uapi/linux/capability.h)."""


def acl(user: int, permissions: int, *, owner: int = 7, group: int = 5, other: int = 5) -> bytes:
    """system.posix_acl_*: one named user (include/uapi/linux/posix_acl_xattr.h)."""
    none = 0xFFFFFFFF
    entries = [(1, owner, none), (2, permissions, user), (4, group, none), (0x10, 7, none), (0x20, other, none)]
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


def rich_tree() -> Tree:
    """``opt/lib`` with everything but sockets, which :func:`add_socket` makes."""
    later = OLD + 123_456_789
    odd = {name: node for name, node in odd_files().items() if len(name) < 200}
    library: Tree = {
        **files(12),
        **odd,
        "n" * 255: Symlink("a name as long as can be; a file's would not fit into redirect_max here"),
        "m" * 240: b"medium",
        "empty file": b"",
        "sparse": File(b"\0" * 300_000),
        "set-id": File(b"#!", mode=0o6755),
        "setgid dir": Directory({"x": b"x"}, mode=0o2775, gid=1234),
        "sticky": Directory({}, mode=0o1777),
        "capable": File(b"\x7fELF", mode=0o755, xattrs={"security.capability": CAPABILITY}),
        "acl": File(b"acl", xattrs={"system.posix_acl_access": acl(1001, 6)}, mtime_ns=later),
        "foreign": File(b"foreign", uid=1000, gid=1001, mode=0o640),
        "locked": File(b"locked", mode=0),
        "labelled": File(b"l", xattrs={"user.colour": b"green", "trusted.note": b"\0\xff"}),
        "acl dir": Directory(
            {"in": b"in"},
            xattrs={"system.posix_acl_default": acl(1002, 7), "user.kind": b"directory"},
            mtime_ns=later,
        ),
        "link": Symlink("f0001", mtime_ns=later),
        "dangling": Symlink(b"/nowhere/\xff", uid=1000),
        "link to dir": Symlink("sub"),
        "loop": Symlink("loop"),
        "fifo": Fifo(mode=0o620, gid=5),
        "null": Device(1, 3, mode=0o666),
        "empty": {},
        "sub": {"deeper": {"deepest": {**files(2), "up": Symlink("../../../f0001")}}, **odd},
    }
    return {"opt": Directory({"lib": Directory(library, mtime_ns=later), "other": files(3)}, mtime_ns=later)}


def add_socket(directory: bytes, name: bytes = b"socket") -> None:
    """A socket, as old as the rest; the directory's times stay."""
    before = os.stat(directory)
    here = os.open(directory, os.O_PATH)
    try:
        with socket.socket(socket.AF_UNIX) as unix:
            unix.bind(b"/proc/self/fd/%d/" % here + name)
    finally:
        os.close(here)
    assert stat.S_ISSOCK(os.lstat(directory + b"/" + name).st_mode)
    os.utime(directory + b"/" + name, ns=(OLD, OLD))
    os.utime(directory, ns=(before.st_atime_ns, before.st_mtime_ns))
