"""A test mount: what this kernel's overlayfs does, found by doing it and not from a version number (R16).

It runs as ``python -m promoterd.overlay.trial`` in a process of its own, whose mount namespace is private, on two tmpfs
that nobody else sees, and prints what it saw as JSON.
"""

import errno
import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass

from promoterd.overlay import syscalls, xattrs
from promoterd.overlay.facts import Trial
from promoterd.overlay.mounts import FILES, REST

_PLACES = (b"/tmp", b"/run", b"/mnt", b"/var")
_OPTIONS = b"metacopy=on,redirect_dir=on,xino=off"
_ON_SERVER, _IN_DATA = b"s" * 4096, b"d" * 4096
_STUB_MODE = 0o640
"""One that no other copy of the file has: who sees it has asked the layer."""
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
    for name in ("lower", "data", "upper", "work", "layer-upper", "layer-work", "view"):
        os.mkdir(name)
    os.mkdir("lower/d")
    with open("lower/d/f", "wb") as file:
        file.write(_ON_SERVER)
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
    layered = _try_layer()
    return Trial(
        metacopy=metacopy,
        absolute_redirect=redirect == b"/d/f",
        reconfigure=reconfigure,
        opaque_takes_effect=takes_effect,
        finalizes=finalizes,
        data_only_layers=layered is not None,
        lazy_data=layered is not None and layered.lazy_data,
        layer_answers_misses=layered is not None and layered.answers_misses,
    )


@dataclass(frozen=True, slots=True)
class _Layered:
    lazy_data: bool
    answers_misses: bool


def _try_layer() -> _Layered | None:
    """One complete directory in a metadata layer, as the layer backend lays it out; None where that cannot be mounted.

    The server's tree and the data layer differ here, so that whoever answers can be told.
    """
    syscalls.mount(b"promoterd-probe", b"data", b"tmpfs", 0, b"size=1m,mode=700")
    os.mkdir("data/d")
    with open("data/d/f", "wb") as file:
        file.write(_IN_DATA)
    with open("lower/d/missing", "wb"):
        pass
    for half in (FILES, REST):
        os.makedirs(half + b"/d")
    stub = FILES + b"/d/f"
    with open(stub, "wb") as file:
        file.truncate(len(_IN_DATA))
    os.chmod(stub, _STUB_MODE)
    os.setxattr(stub, xattrs.METACOPY, b"")
    os.setxattr(stub, xattrs.REDIRECT, b"/d/f")
    os.setxattr(REST + b"/d", xattrs.REDIRECT, b"/d")
    os.setxattr(REST + b"/d", xattrs.OPAQUE, xattrs.OPAQUE_YES)
    try:
        _mount(b"%s:%s:lower::data" % (FILES, REST), b"layer-")
    except OSError:
        return None
    try:
        return _Layered(
            lazy_data=_is_lazy(), answers_misses=os.listdir("view/d") == ["f"] and not _finds("view/d/missing")
        )
    finally:
        syscalls.umount(b"view")


def _is_lazy() -> bool:
    """Whether a file's attributes come from the layer, and its data from the data layer."""
    try:
        with open("view/d/f", "rb") as file:
            data = file.read()
        return os.stat("view/d/f").st_mode & 0o777 == _STUB_MODE and data == _IN_DATA
    except OSError:
        return False


def _finds(path: str) -> bool:
    try:
        os.stat(path)
    except OSError:
        return False
    return True


def _mount(lowerdir: bytes, prefix: bytes = b"") -> None:
    data = b"lowerdir=%s,upperdir=%supper,workdir=%swork,%s" % (lowerdir, prefix, prefix, _OPTIONS)
    syscalls.mount(b"promoterd-probe", b"view", b"overlay", 0, data)


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
        return file.read() == _ON_SERVER


if __name__ == "__main__":
    main()
