"""Who is at the other end of a Unix socket, and whether that one may give orders."""

import grp
import os
import socket
import struct
from contextlib import suppress
from dataclasses import dataclass

from promoterd.errors import PolicyError

_SO_PEERGROUPS = 59  # include/uapi/asm-generic/socket.h, Linux 4.13
_UCRED = struct.Struct("=iII")  # struct ucred, unix(7): pid, uid, gid
_BUFFER = 1024  # the most that socket.getsockopt gives: 256 groups


@dataclass(frozen=True, slots=True)
class Peer:
    """The process that connected, as it was when it did."""

    pid: int
    uid: int
    gid: int
    groups: frozenset[int]

    def may_control(self, group: int | None) -> bool:
        """Whether it is root, or of the group."""
        return self.uid == 0 or (group is not None and (self.gid == group or group in self.groups))


def peer_of(connection: socket.socket) -> Peer:
    """The peer's credentials, which the kernel took down at connect(2) (SO_PEERCRED, SO_PEERGROUPS; unix(7)).

    Raises OSError.
    """
    pid, uid, gid = _UCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    return Peer(pid, uid, gid, _groups(connection, pid))


def _groups(connection: socket.socket, pid: int) -> frozenset[int]:
    try:
        raw = connection.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, _BUFFER)
    except OSError:  # more groups than fit: the process itself tells, as it is now (proc_pid_status(5))
        return groups_of(pid)
    return frozenset(number for (number,) in struct.iter_unpack("=I", raw))


def groups_of(pid: int) -> frozenset[int]:
    """The supplementary groups of a process; none if it is gone."""
    with suppress(OSError), open(f"/proc/{pid}/status", "rb") as status:
        for line in status:
            if line.startswith(b"Groups:"):
                return frozenset(int(number) for number in line.split()[1:])
    return frozenset()


def group_id(name: str) -> int:
    """The number of a group. Raises PolicyError where there is no such group."""
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError as error:
        hint = f"`groupadd --system {name}` creates it"
        raise PolicyError(f"the group {name!r}, which may control the daemon, does not exist", hint=hint) from error


def group_name(number: int) -> str:
    """The name of a group, or its number where it has none."""
    try:
        return grp.getgrgid(number).gr_name
    except KeyError:
        return str(number)


def owner_process(path: str) -> int | None:
    """The process that listens on a socket, or None where nobody does. Raises OSError for any other failure."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(os.fspath(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return None
        except (TimeoutError, BlockingIOError):  # its backlog is full: it lives, and is busy
            return 0
        return peer_of(probe).pid
