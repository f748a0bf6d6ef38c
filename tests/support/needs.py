"""What a test needs of the machine, and what to do where it is missing."""

import os
import shutil
import tempfile
from collections.abc import Callable
from functools import cache

import pytest

from promoterd.overlay import syscalls

FSTAB_GENERATOR = "/usr/lib/systemd/system-generators/systemd-fstab-generator"


def _root() -> str | None:
    return None if os.geteuid() == 0 else "not root"


def _fuse() -> str | None:
    try:
        import pyfuse3  # noqa: F401, PLC0415 - the question is whether it can be imported
    except ImportError as error:
        return f"pyfuse3 cannot be imported: {error}"
    try:
        os.close(os.open("/dev/fuse", os.O_RDWR))
    except OSError as error:
        return f"/dev/fuse: {error.strerror}"
    return None


def _overlay() -> str | None:
    """Mounts one, where tests do: a container's root may be an overlay itself, which cannot be an upper layer."""
    with tempfile.TemporaryDirectory() as base:
        for name in ("lower", "upper", "work", "mount"):
            os.mkdir(f"{base}/{name}")
        data = f"lowerdir={base}/lower,upperdir={base}/upper,workdir={base}/work,metacopy=on,redirect_dir=on"
        try:
            syscalls.mount(b"overlay", f"{base}/mount".encode(), b"overlay", 0, data.encode())
        except OSError as error:
            return f"an overlay cannot be mounted below {tempfile.gettempdir()}: {error.strerror}"
        syscalls.umount(f"{base}/mount".encode())
    return None


def _loop() -> str | None:
    return None if os.path.exists("/dev/loop-control") else "no loop devices"


def _tracefs() -> str | None:
    with open("/proc/filesystems", encoding="ascii") as file:
        return None if "\ttracefs\n" in file.read() else "this kernel has no tracefs"


def _program(name: str) -> Callable[[], str | None]:
    return lambda: None if shutil.which(name) else f"{name} is not installed"


def _generator() -> str | None:
    return None if os.path.exists(FSTAB_GENERATOR) else "systemd-fstab-generator is not installed"


_CHECKS: dict[str, Callable[[], str | None]] = {
    "root": _root,
    "fuse": _fuse,
    "overlay": _overlay,
    "loop": _loop,
    "tracefs": _tracefs,
    "systemd-fstab-generator": _generator,
    **{
        name: _program(name)
        for name in (
            *("mkfs.ext4", "mkfs.xfs", "mkfs.btrfs", "setfacl", "setcap", "chattr"),
            *("setpriv", "systemd-analyze", "systemd-escape", "systemd-sysusers", "strace", "cc", "cpio"),
        )
    },
}


@cache
def missing(what: str) -> str | None:
    """Why this machine cannot give ``what``; None if it can."""
    return _CHECKS[what]()


def need(*what: str) -> None:
    """Skip the running test unless the machine has all of this; where CI is set, fail it."""
    reasons = [reason for name in what if (reason := missing(name))]
    if not reasons:
        return
    if os.environ.get("CI"):
        pytest.fail("in CI a test must not be skipped: " + "; ".join(reasons), pytrace=False)
    pytest.skip("; ".join(reasons))
