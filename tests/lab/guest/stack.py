"""NFS mounts and overlays on them, in the guest."""

import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace

import pytest

from lab.guest import server
from promoterd.overlay import probe
from promoterd.overlay.mounts import FILES, REST
from support.overlays import OPTIONS, MountedOverlay, unmount

UPPERS = {"ext4": "/dev/vdc", "xfs": "/dev/vdd", "tmpfs": None}
"""File systems for upper layers, and the disks that they are on."""
NFS = b"/mnt/nfs"


@dataclass(frozen=True)
class Nfs:
    """How a client mounts the server."""

    version: str = "4.2"
    options: str = ""
    address: str = "127.0.0.1"
    """Of the server; the client has connections of their own for another one, with NFS 3 at least."""
    inside: tuple[str, ...] = ()
    """What the mount command begins with, to be in another network; see :func:`lab.guest.server.second`."""

    def source(self, directory: bytes) -> str:
        """What a client calls a directory of the server: v4 begins at the export with fsid=0."""
        path = os.fsdecode(directory)
        if not self.version.startswith("3"):
            path = path.removeprefix(os.fsdecode(server.EXPORT)) or "/"
        return f"{self.address}:{path}"

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
    command = [*nfs.inside, "mount", "-t", "nfs", "-o", nfs.mount_options, nfs.source(directory), os.fsdecode(at)]
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
    data: Sequence[bytes] = (),
) -> Iterator[MountedOverlay]:
    """An overlay on these layers with its upper layer in ``home``: a new one, or what was left there.

    With ``data``, a second mount of each layer, the two halves of a metadata layer are in ``home`` as well.
    """
    base = at
    halves = [home + b"/layer/" + name for name in (FILES, REST)] if data else []
    for directory in (home + b"/upper", home + b"/work", *halves):
        if fresh:
            shutil.rmtree(directory, ignore_errors=True)
        os.makedirs(directory, exist_ok=True)
    if fresh:
        shutil.copystat(layers[0], home + b"/upper")
    os.makedirs(base + b"/mnt", exist_ok=True)
    made = MountedOverlay(
        base,
        list(on_server),
        list(layers),
        home + b"/upper",
        home + b"/work",
        OPTIONS,
        [],
        ExitStack(),
        list(data),
        halves,
    )
    made.mount()
    try:
        yield made
    finally:
        _unmount(made.mountpoint)


@contextmanager
def layered_on(
    nfs: Nfs,
    home: bytes,
    *,
    directories: Sequence[bytes] = (server.EXPORT + b"/share",),
    at: bytes = b"/mnt/overlay",
    fresh: bool = True,
) -> Iterator[MountedOverlay]:
    """An overlay with a metadata layer in ``home`` on these directories of the server, the topmost first.

    Each of them is mounted twice; the second mount, from which data are read, has a superblock of its own. Needs a
    kernel with data-only layers, :func:`need_data_only_layers`.
    """
    own = replace(nfs, options=",".join(option for option in (nfs.options, "nosharecache") if option))
    with ExitStack() as stack:
        mounts = [
            [
                stack.enter_context(mounted_nfs(how, directory, at + b"/%s%d" % (name, number)))
                for number, directory in enumerate(directories)
            ]
            for name, how in ((b"nfs", nfs), (b"data", own))
        ]
        layers, data = mounts
        yield stack.enter_context(overlay_on(layers, home, on_server=directories, at=at, fresh=fresh, data=data))


def need_data_only_layers() -> None:
    """Skip the running test on a kernel without them: Debian's 6.1 is one."""
    trial = probe.host().trial
    assert not trial.error, trial.error
    if not trial.data_only_layers:
        pytest.skip(f"the kernel {os.uname().release} has no data-only layers")


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
