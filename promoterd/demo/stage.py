"""Where the demonstration happens: a share, a counting file system on it, an overlay on that; all undone."""

import contextlib
import errno
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from types import FrameType

from promoterd.demo import tree
from promoterd.demo.lower import CountingLower
from promoterd.errors import DemoFailed
from promoterd.overlay import syscalls

OPTIONS = "metacopy=on,redirect_dir=on,index=off,xino=off"
"""What the opaque backend needs; with xino a readdir of a copied-up directory would look up every entry in lower."""

_BUSY_PATIENCE = 2.0


@dataclass(frozen=True)
class Stage:
    """The parts. Paths are absolute; ``share`` is the server's own side."""

    base: bytes
    share: tree.Share
    lower: CountingLower
    mountpoint: bytes
    upper: bytes
    work: bytes
    options: str

    def cool(self) -> None:
        """Make the overlay forget what it has looked up, by a no-op reconfigure; what it is built on keeps its own."""
        descriptor = os.open(self.mountpoint, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            syscalls.reconfigure_superblock(descriptor)
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def stage(*, latency_us: int = 1000, options: str = OPTIONS, below: str | None = None) -> Iterator[Stage]:
    """Set up in a new directory (in ``below``, else in TMPDIR), and undo everything, whatever happens.

    SIGTERM ends the block as SIGINT does: by an exception. Raises DemoFailed, also when it cannot be set up.
    """
    if os.geteuid() != 0:
        raise DemoFailed("the demonstration mounts file systems, which needs root")
    with contextlib.ExitStack() as stack:
        stack.enter_context(_terminable())
        base = tempfile.mkdtemp(prefix="promoterd-demo-", dir=below)
        stack.callback(_remove, base)
        share = tree.build(f"{base}/share")
        for name in ("lower", "mount", "upper", "work"):
            os.mkdir(f"{base}/{name}")
        shutil.copystat(share.root, f"{base}/upper".encode())  # the root of an overlay looks as that of its upper layer
        lower = stack.enter_context(CountingLower(share.root, f"{base}/lower", latency_us=latency_us, xattrs=True))
        mountpoint = f"{base}/mount".encode()
        data = f"lowerdir={base}/lower,upperdir={base}/upper,workdir={base}/work,{options}"
        try:
            syscalls.mount(b"promoterd-demo", mountpoint, b"overlay", 0, data.encode())
        except OSError as error:
            raise DemoFailed(
                f"the overlay cannot be mounted: {error.strerror}",
                hint=f"{tempfile.gettempdir()} must not lie on an overlay itself; set TMPDIR to a local disk",
            ) from None
        stack.callback(_unmount, mountpoint)
        yield Stage(base.encode(), share, lower, mountpoint, f"{base}/upper".encode(), f"{base}/work".encode(), options)


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """While this lasts SIGTERM raises SystemExit in the main thread, so that what has been set up is undone."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, _: FrameType | None) -> None:
        sys.exit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _unmount(mountpoint: bytes) -> None:
    """Unmount; what is still busy after a while is detached."""
    deadline = time.monotonic() + _BUSY_PATIENCE
    while True:
        try:
            syscalls.umount(mountpoint)
        except OSError as error:
            if error.errno == errno.EINVAL:  # somebody else has unmounted it
                return
            if time.monotonic() > deadline:
                syscalls.umount(mountpoint, syscalls.MNT_DETACH)
                return
            time.sleep(0.05)
        else:
            return


def _remove(base: str) -> None:
    """Remove the directory, but never through a mount that could not be undone."""
    for name in ("lower", "mount"):
        if os.path.ismount(f"{base}/{name}"):
            return
    shutil.rmtree(os.fsencode(base), ignore_errors=True)
