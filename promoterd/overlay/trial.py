"""A test mount: what this kernel's overlayfs does, found by doing it and not from a version number (R16).

It runs as ``python -m promoterd.overlay.trial`` in a process of its own, whose mount namespace is private, on a tmpfs
that nobody else sees, and prints what it saw as JSON.
"""

import errno
import json
import os
import subprocess
import sys
from dataclasses import asdict

from promoterd.overlay import syscalls, xattrs
from promoterd.overlay.facts import Trial

_PLACES = (b"/tmp", b"/run", b"/mnt", b"/var")
_OPTIONS = b"metacopy=on,redirect_dir=on,xino=off"
_PATIENCE = 30.0


def try_overlay() -> Trial:
    """Mount, look, and forget, in a child process. Never raises: what went wrong is in ``error``."""
    command = [sys.executable, "-P", "-m", "promoterd.overlay.trial"]
    try:
        done = subprocess.run(command, capture_output=True, timeout=_PATIENCE, check=False, stdin=subprocess.DEVNULL)
        if done.returncode:
            said = done.stderr.decode(errors="replace").strip().splitlines() or [f"exit status {done.returncode}"]
            return Trial(error=f"the test process failed: {said[-1]}")
        return Trial(**json.loads(done.stdout))
    except subprocess.TimeoutExpired:
        return Trial(error=f"the test took longer than {_PATIENCE:.0f} s")
    except (OSError, ValueError) as error:
        return Trial(error=f"the test process failed: {error}")


def main() -> None:
    """The child process."""
    try:
        trial = _try_here()
    except OSError as error:
        trial = Trial(error=f"{error.strerror} ({errno.errorcode.get(error.errno or 0, '?')})")
    json.dump(asdict(trial), sys.stdout)


def _try_here() -> Trial:
    syscalls.unshare_mounts()
    base = next(place for place in (*_PLACES, b"/") if os.path.isdir(place))
    syscalls.mount(b"promoterd-probe", base, b"tmpfs", 0, b"size=4m,mode=700")
    os.chdir(base)
    for name in ("lower", "data", "upper", "work", "view"):
        os.mkdir(name)
    os.mkdir("lower/d")
    with open("lower/d/f", "wb") as file:
        file.write(b"x" * 4096)
    _mount(b"lower")
    os.mkdir("view/scratch", 0o700)
    os.link("view/d/f", "view/scratch/f")
    os.unlink("view/scratch/f")
    metacopy = xattrs.get(b"upper/d/f", xattrs.METACOPY) is not None
    redirect = xattrs.get(b"upper/d/f", xattrs.REDIRECT) or b""
    os.listdir("view/d")
    finalizes = xattrs.get(b"upper/d", xattrs.OPAQUE) == xattrs.OPAQUE_FINALIZED
    os.setxattr("upper/d", xattrs.OPAQUE, xattrs.OPAQUE_YES)
    reconfigure = _reconfigure()
    takes_effect = os.stat("view/d").st_nlink > 1 and _content_is_there()
    syscalls.umount(b"view")
    return Trial(
        metacopy=metacopy,
        absolute_redirect=redirect == b"/d/f",
        reconfigure=reconfigure,
        opaque_takes_effect=takes_effect,
        finalizes=finalizes,
        data_only_layers=_can_mount(b"lower::data"),
    )


def _mount(lowerdir: bytes) -> None:
    data = b"lowerdir=%s,upperdir=upper,workdir=work,%s" % (lowerdir, _OPTIONS)
    syscalls.mount(b"promoterd-probe", b"view", b"overlay", 0, data)


def _can_mount(lowerdir: bytes) -> bool:
    try:
        _mount(lowerdir)
    except OSError:
        return False
    syscalls.umount(b"view")
    return True


def _reconfigure() -> str:
    root = os.open("view", os.O_PATH | os.O_DIRECTORY)
    try:
        syscalls.reconfigure_superblock(root)
    except OSError as error:
        if error.errno != errno.ENOSYS:
            return ""
    else:
        return "fspick"
    finally:
        os.close(root)
    try:
        syscalls.mount(b"none", b"view", b"", syscalls.MS_REMOUNT)
    except OSError:
        return ""
    return "remount"


def _content_is_there() -> bool:
    """Whether the data of the marked directory's file is found through its redirect."""
    with open("view/d/f", "rb") as file:
        return file.read() == b"x" * 4096


if __name__ == "__main__":
    main()
