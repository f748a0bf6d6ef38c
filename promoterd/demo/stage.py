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
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from types import FrameType

from promoterd.demo import tree
from promoterd.demo.lower import CountingLower
from promoterd.errors import DemoFailed
from promoterd.overlay import syscalls
from promoterd.overlay.mounts import FILES, REST

OPTIONS = "metacopy=on,redirect_dir=on,index=off,xino=off"
"""What the opaque backend needs; with xino a readdir of a copied-up directory would look up every entry in lower."""

_BUSY_PATIENCE = 2.0


@dataclass(frozen=True)
class Stage:
    """The parts. Paths are absolute; ``share`` is the server's own side."""

    base: bytes
    share: tree.Share
    lowers: tuple[CountingLower, ...]
    """What the overlay asks: the server, and with a metadata layer once more for data."""
    mountpoint: bytes
    upper: bytes
    work: bytes
    options: str

    def set_latency(self, microseconds: int) -> None:
        """Hold every request for so long."""
        for lower in self.lowers:
            lower.set_latency(microseconds)

    def reset(self) -> None:
        """Count from here."""
        for lower in self.lowers:
            lower.reset()

    def counts(self) -> Counter[str]:
        """Requests by kind since the last :meth:`reset`."""
        return sum((Counter(lower.counts()) for lower in self.lowers), Counter())

    def cool(self) -> None:
        """Make the overlay forget what it has looked up, by a no-op reconfigure; what it is built on keeps its own."""
        descriptor = os.open(self.mountpoint, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            syscalls.reconfigure_superblock(descriptor)
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def stage(
    *, latency_us: int = 1000, options: str = OPTIONS, below: str | None = None, layered: bool = False
) -> Iterator[Stage]:
    """Set up in a new directory (in ``below``, else in TMPDIR), and undo everything, whatever happens.

    ``layered``: with a metadata layer, as ``promoterd layout`` lays it out.

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
        lowerdir = f"{base}/lower"
        names = ["lower"]
        if layered:
            names.append("data")
            halves = [f"{base}/layer/{os.fsdecode(name)}" for name in (FILES, REST)]
            for directory in (f"{base}/data", *halves):
                os.makedirs(directory)
            lowerdir = f"{halves[0]}:{halves[1]}:{base}/lower::{base}/data"
        lowers = [
            stack.enter_context(CountingLower(share.root, f"{base}/{name}", latency_us=latency_us, xattrs=True))
            for name in names
        ]
        mountpoint = f"{base}/mount".encode()
        data = f"lowerdir={lowerdir},upperdir={base}/upper,workdir={base}/work,{options}"
        try:
            syscalls.mount(b"promoterd-demo", mountpoint, b"overlay", 0, data.encode())
        except OSError as error:
            raise DemoFailed(
                f"the overlay cannot be mounted: {error.strerror}",
                hint=f"{tempfile.gettempdir()} must not lie on an overlay itself; set TMPDIR to a local disk",
            ) from None
        stack.callback(_unmount, mountpoint)
        yield Stage(
            base.encode(), share, tuple(lowers), mountpoint, f"{base}/upper".encode(), f"{base}/work".encode(), options
        )


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
    for name in ("lower", "data", "mount"):
        if os.path.ismount(f"{base}/{name}"):
            return
    shutil.rmtree(os.fsencode(base), ignore_errors=True)
