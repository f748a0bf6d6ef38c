"""Who else watches a directory (R11).

A watch hangs on an inode. An overlay directory's inode is found by its lower directory as long as it has one, and by
its upper directory once a mark is in effect (ovl_hash_bylower, fs/overlayfs/inode.c): a watch on the former one stays
silent from then on, and its owner is not told. The kernel shows the watched inodes of every process in
``/proc/PID/fdinfo``; for which one belongs to a path it is asked by a short-lived watch of our own.
"""

import errno
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from promoterd.inotify import IN_DELETE_SELF, IN_ONLYDIR, Inotify, WatchedInode, parse_watch
from promoterd.overlay import beneath

_INSTANCES = (b"anon_inode:inotify", b"anon_inode:[fanotify]")
_KERNEL_THREAD = 0x00200000  # PF_KTHREAD, include/linux/sched.h, in field 9 of proc_pid_stat(5)
_GONE = (errno.ENOENT, errno.ESRCH)
_NOT_TOLD = (errno.ENOENT, errno.ENAMETOOLONG)
"""Of a descriptor that is closed again, or of a file whose path is longer than a page, which is no watch."""
_UNREACHABLE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EXDEV, errno.ESTALE)


@dataclass(frozen=True, slots=True)
class Watchers:
    """Every watched inode with the ids of the processes that watch it.

    ``hidden`` is the number of processes that could not be looked into and may watch anything, which ``doctor`` says;
    kernel threads, which watch nothing, are not among them.
    """

    by_inode: dict[WatchedInode, frozenset[int]]
    hidden: int


def scan(exclude_pid: int) -> Watchers:
    """All inotify watches and fanotify inode marks of all processes but one, as far as this process may look.

    Other users' processes need CAP_SYS_PTRACE, and a security module may still refuse; those outside this PID namespace
    are not seen at all.
    """
    found: dict[WatchedInode, set[int]] = {}
    hidden = 0
    for entry in os.listdir("/proc"):
        if not entry.isdecimal() or int(entry) == exclude_pid:
            continue
        try:
            for inode in _watched_by(entry.encode()):
                found.setdefault(inode, set()).add(int(entry))
        except PermissionError:
            hidden += not _is_kernel_thread(entry)
        except OSError as error:
            if error.errno not in _GONE:
                raise
    return Watchers({inode: frozenset(pids) for inode, pids in found.items()}, hidden)


def on_mount(root: int, exclude_pid: int) -> dict[int, frozenset[int]]:
    """The inode numbers that other processes watch on the file system of ``root``, with these processes' ids."""
    theirs = scan(exclude_pid).by_inode
    return {inode.ino: theirs[inode] for inode in _of_mount(root, theirs)}


def _of_mount(root: int, inodes: Iterable[WatchedInode]) -> list[WatchedInode]:
    device = os.fstat(root).st_dev
    number = os.major(device) << 20 | os.minor(device)  # as the kernel keeps and shows it (fdinfo, sdev)
    return [inode for inode in inodes if inode.sdev == number]


def identities(root: int, paths: Iterable[bytes], *, directories: bool = True) -> dict[bytes, WatchedInode]:
    """What fdinfo calls what is at ``paths`` beneath ``root`` now, directories or files; without what does not exist.

    Uses one inotify instance and one watch per path, and gives them back. Raises InstanceLimitReached,
    WatchLimitReached, OSError.
    """
    with Inotify() as instance:
        watches = {}
        for path in paths:
            try:
                with beneath.opened(root, path, beneath.PATH_DIRECTORY if directories else os.O_PATH) as opened:
                    watches[path] = instance.add(opened, IN_DELETE_SELF | (IN_ONLYDIR if directories else 0))
            except OSError as error:
                if error.errno not in _UNREACHABLE:
                    raise
        found = instance.identities()
    return {path: found[wd] for path, wd in watches.items() if wd in found}


def watched_by_others(
    root: int, paths: Iterable[bytes], exclude_pid: int | None = None, *, directories: bool = True
) -> dict[bytes, frozenset[int]]:
    """Those of the directories, or files, beneath ``root`` that other processes watch, with these processes' ids.

    Costs one reading of ``/proc``, however many the paths; ``exclude_pid`` is this process unless given. What
    :func:`scan` does not see is not in it. Raises as :func:`identities`.
    """
    theirs = scan(exclude_pid or os.getpid()).by_inode
    if not _of_mount(root, theirs):
        return {}
    return {
        path: theirs[inode]
        for path, inode in identities(root, paths, directories=directories).items()
        if inode in theirs
    }


def _watched_by(pid: bytes) -> Iterator[WatchedInode]:
    for descriptor in os.listdir(b"/proc/%s/fd" % pid):
        try:
            if os.readlink(b"/proc/%s/fd/%s" % (pid, descriptor)) not in _INSTANCES:
                continue
            with open(b"/proc/%s/fdinfo/%s" % (pid, descriptor), "rb") as lines:
                for line in lines:
                    inode = _inode(line)
                    if inode:
                        yield inode
        except OSError as error:
            if error.errno not in _NOT_TOLD:
                raise


def _is_kernel_thread(pid: str) -> bool:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            flags = int(file.read().rpartition(b")")[2].split()[6])
    except OSError:
        return False
    return bool(flags & _KERNEL_THREAD)


def _inode(line: bytes) -> WatchedInode | None:
    """The inode of an inotify watch or of a fanotify inode mark (``fanotify ino:4f969 sdev:800013 ...``)."""
    watch = parse_watch(line)
    if watch:
        return watch[1]
    if not line.startswith(b"fanotify ino:"):
        return None
    ino, sdev = (int(field.split(b":")[1], 16) for field in line.split()[1:3])
    return WatchedInode(sdev, ino)
