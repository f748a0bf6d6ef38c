"""NFS mounts and overlays on them, in the guest."""

import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from lab.guest import server
from support.overlays import OPTIONS, MountedOverlay, unmount

UPPERS = {"ext4": "/dev/vdc", "xfs": "/dev/vdd", "tmpfs": None}
"""File systems for upper layers, and the disks that they are on."""
NFS = b"/mnt/nfs"


@dataclass(frozen=True)
class Nfs:
    """How a client mounts the server."""

    version: str = "4.2"
    options: str = ""

    def source(self, directory: bytes) -> str:
        """What a client calls a directory of the server: v4 begins at the export with fsid=0."""
        path = os.fsdecode(directory)
        if not self.version.startswith("3"):
            path = path.removeprefix(os.fsdecode(server.EXPORT)) or "/"
        return f"127.0.0.1:{path}"

    @property
    def mount_options(self) -> str:
        """Those of the mount command."""
        chosen = [f"vers={self.version}", "proto=tcp", "nolock" if self.version.startswith("3") else "", self.options]
        return ",".join(option for option in chosen if option)


def _unmount(at: bytes) -> None:
    """What is detached because somebody holds it goes on asking the server, and is not counted any more."""
    assert unmount(at, patience=20.0), f"{os.fsdecode(at)} was held by somebody"


@contextmanager
def mounted_nfs(nfs: Nfs, directory: bytes = server.EXPORT + b"/share", at: bytes = NFS) -> Iterator[bytes]:
    """A directory of the server, mounted; yields where."""
    os.makedirs(at, exist_ok=True)
    command = ["mount", "-t", "nfs", "-o", nfs.mount_options, nfs.source(directory), os.fsdecode(at)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed: {done.stderr.strip()}")
    try:
        yield at
    finally:
        _unmount(at)


@contextmanager
def upper_home(kind: str, at: bytes = b"/mnt/local") -> Iterator[bytes]:
    """A local file system for upper layers, as it was left; yields where it is mounted."""
    os.makedirs(at, exist_ok=True)
    disk = UPPERS[kind]
    subprocess.run(["mount", "-t", kind, disk or "tmpfs", os.fsdecode(at)], check=True)
    try:
        yield at
    finally:
        _unmount(at)


@contextmanager
def overlay_on(
    layers: Sequence[bytes],
    home: bytes,
    *,
    on_server: Sequence[bytes] = (server.EXPORT + b"/share",),
    at: bytes = b"/mnt/overlay",
    fresh: bool = True,
) -> Iterator[MountedOverlay]:
    """An overlay on these layers with its upper layer in ``home``: a new one, or what was left there."""
    base = at
    for name in (b"upper", b"work"):
        if fresh:
            shutil.rmtree(home + b"/" + name, ignore_errors=True)
        os.makedirs(home + b"/" + name, exist_ok=True)
    if fresh:
        shutil.copystat(layers[0], home + b"/upper")
    os.makedirs(base + b"/mnt", exist_ok=True)
    made = MountedOverlay(
        base, list(on_server), list(layers), home + b"/upper", home + b"/work", OPTIONS, [], ExitStack()
    )
    made.mount()
    try:
        yield made
    finally:
        _unmount(made.mountpoint)


def cool(*overlays: MountedOverlay) -> None:
    """Forget everything: the overlays' dentries, which pin those of NFS, and then all that the kernel caches.

    Twice, since what is dropped the first time lets go of more. Dropping every cache of a machine is what the daemon
    never does; this machine has nobody else on it.
    """
    for _ in range(2):
        for overlay in overlays:
            overlay.cool()
        os.sync()
        with open("/proc/sys/vm/drop_caches", "w", encoding="ascii") as file:
            file.write("3")
