"""Looks at the host and at a mount's layers, and changes nothing: the facts that fitness is decided on (R16)."""

import contextlib
import errno
import fcntl
import os
import struct
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from typing import TypeVar

from promoterd import threads
from promoterd.overlay import ext4, watchers
from promoterd.overlay.beneath import READ_DIRECTORY
from promoterd.overlay.facts import Facts, Host, Misplaced, Project, Space
from promoterd.overlay.lock import second_users, writer_of
from promoterd.overlay.mountinfo import MountTree, read
from promoterd.overlay.mounts import Overlay, redirect_max
from promoterd.overlay.nfs import NfsLayer, nfs_layers
from promoterd.overlay.probe_of_layers import exports_of, layer_facts, trusted_xattrs_at, unlike_data
from promoterd.overlay.syscalls import openat2
from promoterd.overlay.trial import try_overlay
from promoterd.overlay.whereabouts import check_readable, find_misplaced

PATIENCE = 5.0
"""Seconds that a layer has to answer in."""

_FS_IOC_FSGETXATTR, _PROJINHERIT = 0x801C581F, 0x200  # include/uapi/linux/fs.h
_FSXATTR = struct.Struct("=IIIII8x")
_INITIAL_USER_NAMESPACE = "user:[4026531837]"  # PROC_USER_INIT_INO, include/linux/proc_ns.h
_CAPABILITIES = {
    "CAP_CHOWN": 0,
    "CAP_DAC_OVERRIDE": 1,
    "CAP_FOWNER": 3,
    "CAP_FSETID": 4,
    "CAP_SYS_PTRACE": 19,
    "CAP_SYS_ADMIN": 21,
    "CAP_SETFCAP": 31,
}
_AT_FDCWD = -100
_Found = TypeVar("_Found")


@cache
def host() -> Host:
    """The facts of this machine and process, gathered once."""
    return Host(
        kernel=os.uname().release,
        capabilities=_capabilities(),
        initial_user_namespace=_readlink("/proc/self/ns/user") in ("", _INITIAL_USER_NAMESPACE),
        openat2=_has_openat2(),
        redirect_max=redirect_max(),
        inotify_watches=_number("/proc/sys/fs/inotify/max_user_watches"),
        inotify_instances=_number("/proc/sys/fs/inotify/max_user_instances"),
        trial=try_overlay(),
        hidden_processes=_hidden_processes(),
    )


def gather(overlay: Overlay, *, patience: float = PATIENCE) -> Facts:
    """The facts of one mount. Never raises: what cannot be found out is None, or in ``misplaced`` or ``unanswered``.

    ``patience``: seconds for each layer, because a dead server holds a call for ever; the thread that waits for it is
    left behind.
    """
    misplaced, unanswered = _whereabouts(overlay, patience)
    if not unanswered and (facts := _within(patience * 2, lambda: _answering(overlay, misplaced))):
        return facts
    return Facts(host=host(), misplaced=misplaced, unanswered=unanswered or (overlay.mountpoint,))


def _whereabouts(overlay: Overlay, patience: float) -> tuple[tuple[Misplaced, ...], tuple[bytes, ...]]:
    """Layers whose path cannot be read or leads elsewhere, and layers that do not answer."""
    misplaced: list[Misplaced] = []
    unanswered: list[bytes] = []
    for layer in overlay.layers:
        if layer.startswith(b"/"):
            seen = _within(patience, partial(_readable, layer))
            if seen is None:
                unanswered.append(layer)
            elif seen:
                misplaced.append(Misplaced(layer, seen))
    if not misplaced and not unanswered and not overlay.relative_layers:
        compared = _within(patience * 2, partial(_compared, overlay))
        if compared is None:
            unanswered.append(overlay.mountpoint)
        else:
            misplaced.extend(compared)
    return tuple(misplaced), tuple(unanswered)


def _readable(layer: bytes) -> str:
    return check_readable(layer) or ""


def _compared(overlay: Overlay) -> list[Misplaced]:
    try:
        return find_misplaced(overlay)
    except OSError as error:
        return [Misplaced(os.fsencode(error.filename or overlay.mountpoint), f"it cannot be read ({error.strerror})")]


def _answering(overlay: Overlay, misplaced: tuple[Misplaced, ...]) -> Facts:
    upper = overlay.upper if overlay.upper is not None and overlay.upper.startswith(b"/") else None
    common = Facts(
        host=host(),
        one_file_system=_one_file_system(overlay),
        misplaced=misplaced,
        layer=layer_facts(overlay),
        other_data=unlike_data(overlay),
        exports=exports_of(overlay),
        nfs=_on_nfs(overlay),
    )
    if upper is None:
        return common
    mount = MountTree(read()).at(os.path.realpath(upper))
    return replace(
        common,
        upper_fstype="" if mount is None else mount.fstype,
        upper_trusted_xattrs=trusted_xattrs_at(upper),
        upper_project=project_at(upper),
        # what is copied up is created in the "work" directory in the work directory (ovl_make_workdir)
        work_project=project_at((overlay.work or b"") + b"/work"),
        upper_space=_space(upper),
        upper_inode_bytes=None if mount is None else ext4.inode_size(mount),
        second_users=tuple(second_users(overlay)),
        writer=_writer(upper),
    )


def project_of(directory: int) -> Project:
    """The project of an open directory (not one opened with O_PATH); none where the file system has no projects."""
    buffer = bytearray(28)
    try:
        fcntl.ioctl(directory, _FS_IOC_FSGETXATTR, buffer)
    except OSError as error:
        if error.errno in (errno.ENOTTY, errno.EOPNOTSUPP, errno.EINVAL):
            return Project()
        raise
    flags, _, _, number, _ = _FSXATTR.unpack(buffer)
    return Project(number, inherited=bool(flags & _PROJINHERIT))


def project_at(path: bytes) -> Project:
    """:func:`project_of` the directory at a path; none where it cannot be opened."""
    try:
        directory = os.open(path, READ_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return Project()
    try:
        return project_of(directory)
    except OSError:
        return Project()
    finally:
        os.close(directory)


def _within(seconds: float, ask: Callable[[], _Found]) -> _Found | None:
    """The answer, or None where there is none in time; the thread is a daemon, so that nothing ever joins it."""
    answers: list[_Found] = []
    thread = threads.start(lambda: answers.append(ask()), name="probe")
    thread.join(seconds)
    return answers[0] if answers else None


def _one_file_system(overlay: Overlay) -> bool | None:
    """Whether all layers lie on one superblock, where xino costs nothing; None with layers that cannot be told."""
    if overlay.relative_layers:
        return None
    tree = MountTree(read())
    devices = {
        None if (entry := tree.at(os.path.realpath(layer))) is None else entry.device for layer in overlay.layers
    }
    return None if None in devices else len(devices) == 1


def _on_nfs(overlay: Overlay) -> tuple[NfsLayer, ...]:
    try:
        return nfs_layers(overlay.lowers)
    except OSError:
        return ()


def _space(path: bytes) -> Space | None:
    try:
        found = os.statvfs(path)
    except OSError:
        return None
    inodes = (found.f_favail, found.f_files) if found.f_files else (None, None)
    return Space(found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize, *inodes)


def _writer(upper: bytes) -> str:
    try:
        return writer_of(upper)
    except OSError:
        return ""


def _capabilities() -> frozenset[str]:
    with contextlib.suppress(OSError, ValueError), open("/proc/self/status") as file:
        for line in file:
            if line.startswith("CapEff:"):
                bits = int(line.split()[1], 16)
                return frozenset(name for name, bit in _CAPABILITIES.items() if bits >> bit & 1)
    return frozenset()


def _hidden_processes() -> int:
    try:
        return watchers.scan(os.getpid()).hidden
    except OSError:
        return 0


def _has_openat2() -> bool:
    try:
        os.close(openat2(_AT_FDCWD, b"/", os.O_PATH, 0))
    except OSError as error:
        return error.errno != errno.ENOSYS
    return True


def _readlink(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""


def _number(path: str) -> int:
    try:
        with open(path) as file:
            return int(file.read())
    except (OSError, ValueError):
        return 0
