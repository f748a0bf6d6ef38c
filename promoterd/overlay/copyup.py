"""Triggers: system calls through the overlay that copy an entry's metadata up and change nothing that a reader sees.

``chown`` is no trigger: it strips set-id bits and file capabilities (measured, see ``docs/how-it-works.md``).
"""

import errno
import os
import stat

from promoterd.errors import Refused
from promoterd.overlay import syscalls
from promoterd.overlay.scratch import temporary_name
from promoterd.paths import display, show


def copy_up_by_link(directory: int, name: str, scratch: int) -> None:
    """Copy a regular file up by linking it into the scratch directory and unlinking that again.

    ovl_link() makes the kernel write an absolute redirect, on disk and in the cached inode (ovl_set_link_redirect,
    fs/overlayfs/dir.c), which a hand-written one is not. Set-id bits, capabilities and times stay. Raises OSError.
    """
    temporary = temporary_name("link")
    os.link(os.fsencode(name), temporary, src_dir_fd=directory, dst_dir_fd=scratch, follow_symlinks=False)
    os.unlink(temporary, dir_fd=scratch)


def copy_up_by_times(directory: int, name: str) -> None:
    """Copy a directory, symlink, device, fifo or socket up by setting the access time that it has. Raises OSError."""
    status = os.stat(name, dir_fd=directory, follow_symlinks=False)
    syscalls.utimensat_keep_mtime(directory, name, status.st_atime_ns)


def copy_up(directory: int, name: str, mode: int, scratch: int) -> bool:
    """Copy one entry up; False where it is no longer there. ``mode`` tells which trigger. Raises OSError."""
    try:
        if stat.S_ISREG(mode):
            copy_up_by_link(directory, name, scratch)
        else:
            copy_up_by_times(directory, name)
    except FileNotFoundError:
        return False
    except PermissionError:
        if stat.S_ISREG(mode) and _is_directory(directory, name):  # link(2) of a directory
            return False
        raise
    return True


def _is_directory(directory: int, name: str) -> bool:
    try:
        return stat.S_ISDIR(os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode)
    except FileNotFoundError:
        return True


def explain_failure(error: OSError, directory: bytes, name: str) -> Refused | None:
    """What a trigger's errno says about the entry; None for one that says nothing (EIO, ENOSPC and the like)."""
    entry = display(os.fsencode(name))
    reasons = {
        errno.EPERM: (
            f"{entry} cannot be copied up: it is immutable or append-only",
            "chattr -ia it on the server, or exclude the directory",
        ),
        errno.EACCES: (
            f"{entry} cannot be copied up: the server denies this machine's root permission to read it",
            "export it with no_root_squash, or exclude the directory with `promote: never`",
        ),
        errno.EXDEV: (
            f"{entry} cannot be linked: its path is longer than redirect_max, or project quotas stand in the way",
            "raise /sys/module/overlay/parameters/redirect_max, or give the upper layer one project id",
        ),
        errno.EOVERFLOW: (
            f"{entry} has an owner that this user namespace does not map",
            "mount the overlay in the initial user namespace",
        ),
        errno.EMLINK: (f"{entry} has as many links as the upper file system allows", "remove links to it"),
    }
    if error.errno not in reasons:
        return None
    reason, hint = reasons[error.errno]
    return Refused(path=show(directory), reason=reason, hint=hint)
