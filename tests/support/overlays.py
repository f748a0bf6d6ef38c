"""Real overlays for tests: on plain directories or a counting file system, with an upper layer on any file system."""

import errno
import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Literal, Self

from promoterd.demo.lower import CountingLower
from promoterd.overlay import syscalls
from support.needs import need
from support.trees import Tree, build

UpperFs = Literal["dir", "ext4", "xfs", "btrfs", "tmpfs"]
OPTIONS = "metacopy=on,redirect_dir=on,xino=off"
_IMAGE_SIZE = 320 * 1024 * 1024  # the least that mkfs.xfs makes is 300 MiB
_MKFS = {"ext4": ("mkfs.ext4", "-q", "-F"), "xfs": ("mkfs.xfs", "-q", "-f"), "btrfs": ("mkfs.btrfs", "-q", "-f")}


def unmount(mountpoint: bytes, patience: float = 1.0) -> bool:
    """Unmount; when it stays busy for ``patience`` seconds, detach it. False if it had to be detached."""
    deadline = time.monotonic() + patience
    while True:
        try:
            syscalls.umount(mountpoint)
        except OSError as error:
            if error.errno == errno.EINVAL:  # not mounted
                return True
            if error.errno != errno.EBUSY or time.monotonic() > deadline:
                syscalls.umount(mountpoint, syscalls.MNT_DETACH)
                return False
            time.sleep(0.02)
        else:
            return True


def unmounted(mounted: "MountedOverlay") -> bool:
    """Unmount an overlay, if it is idle at this moment: a daemon that has it in work may be looking at a directory."""
    try:
        mounted.umount()
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        return False
    return True


@dataclass
class MountedOverlay:
    """An overlay below ``base``. Paths are bytes; the methods that take a path take it relative to their layer."""

    base: bytes
    lowers: list[bytes]
    """The lower trees as the server has them: change them here."""
    layers: list[bytes]
    """What ``lowerdir`` names: the same directories, or counting file systems on them."""
    upper: bytes
    work: bytes
    options: str
    countings: list[CountingLower]
    _stack: ExitStack = field(repr=False)
    data_layers: list[bytes] = field(default_factory=list)
    metadata: list[bytes] = field(default_factory=list)
    """The two halves of the metadata layer, with ``layered=True``."""
    data_countings: list[CountingLower] = field(default_factory=list)

    @property
    def mountpoint(self) -> bytes:
        return self.base + b"/mnt"

    @property
    def counting(self) -> CountingLower | None:
        """The first counting lower layer; None without ``counting=True``."""
        return self.countings[0] if self.countings else None

    @property
    def counted(self) -> CountingLower:
        """The first counting lower layer, which there must be."""
        return self.countings[0]

    def at(self, path: str | bytes) -> bytes:
        """Where an application sees it."""
        return self.mountpoint + b"/" + os.fsencode(path)

    def on_server(self, path: str | bytes, lower: int = 0) -> bytes:
        return self.lowers[lower] + b"/" + os.fsencode(path)

    def in_upper(self, path: str | bytes) -> bytes:
        return self.upper + b"/" + os.fsencode(path)

    @property
    def layer_home(self) -> bytes:
        return os.path.dirname(self.metadata[0])

    def in_files(self, path: str | bytes) -> bytes:
        return self.metadata[0] + b"/" + os.fsencode(path)

    def in_rest(self, path: str | bytes) -> bytes:
        return self.metadata[1] + b"/" + os.fsencode(path)

    def asked(self) -> int:
        """Requests to all counting file systems since the last :meth:`reset`, those for data too."""
        return sum(counting.total() for counting in (*self.countings, *self.data_countings))

    def reset(self) -> None:
        """Count from here."""
        for counting in (*self.countings, *self.data_countings):
            counting.reset()

    def mount(self) -> Self:
        lowerdir = b":".join([*self.metadata, *self.layers]) + b"".join(b"::" + layer for layer in self.data_layers)
        data = b"lowerdir=%s,upperdir=%s,workdir=%s" % (lowerdir, self.upper, self.work)
        if self.options:
            data += b"," + self.options.encode()
        syscalls.mount(b"overlay-" + os.path.basename(self.base), self.mountpoint, b"overlay", 0, data)
        return self

    def umount(self, *, lazy: bool = False) -> None:
        """Unmount; raises OSError (EBUSY) while it is in use, unless lazily."""
        syscalls.umount(self.mountpoint, syscalls.MNT_DETACH if lazy else 0)

    def remount(self) -> Self:
        """Unmount and mount anew: all that the kernel knew of the overlay is forgotten."""
        self.umount()
        return self.mount()

    def cool(self) -> None:
        """A no-op reconfigure: drops this overlay's unused dentries and nothing else."""
        descriptor = os.open(self.mountpoint, os.O_RDONLY | os.O_DIRECTORY)
        try:
            syscalls.reconfigure_superblock(descriptor)
        finally:
            os.close(descriptor)

    def close(self) -> None:
        """Undo everything; detaches what is busy."""
        self._stack.close()


def make_overlay(  # noqa: PLR0913 - what tests vary, each with a default
    base: bytes,
    lowers: Tree | Sequence[Tree] = (),
    *,
    options: str = OPTIONS,
    upper_fs: UpperFs = "dir",
    upper_size: int = _IMAGE_SIZE,
    counting: bool = False,
    latency_us: int = 0,
    timeouts: float = 0.0,
    xattrs: bool = True,
    log: bool = False,
    data_lowers: Sequence[Tree] = (),
    layered: bool = False,
    mount: bool = True,
) -> MountedOverlay:
    """An overlay in the new directory ``base``, on trees as :mod:`support.trees` writes them (topmost first).

    With ``counting`` each lower layer is a counting file system, whose three timeouts are all ``timeouts`` seconds;
    ``log`` makes it write its requests to ``base/lowerN.log``. ``upper_fs`` other than "dir" puts the upper layer on
    a fresh file system of ``upper_size`` bytes. ``layered`` puts a metadata layer of ours above the lower layers, and
    each of them below as a data layer once more, through a (counting) file system of its own, as it has to be.
    Without ``counting``, give it an ``upper_fs`` of its own: on a single file system an overlay's inode numbers are
    that one's, and tell nothing of what took effect.
    """
    need("root", "overlay", *(["fuse"] if counting or layered else []))
    trees = [lowers] if isinstance(lowers, Mapping) else list(lowers) or [{}]
    with ExitStack() as stack:
        os.makedirs(base + b"/mnt")
        sources = [base + b"/lower%d" % number for number in range(len(trees))]
        for source, tree in zip(sources, trees, strict=True):
            build(source, tree)
        data_layers = [base + b"/data%d" % number for number in range(len(data_lowers))]
        for source, tree in zip(data_layers, data_lowers, strict=True):
            build(source, tree)
        layers = [source + b".fuse" if counting else source for source in sources]
        data_layers += [source + b".data" for source in sources if layered]
        countings = []
        for source, layer in zip(sources * 2, layers + data_layers[len(data_lowers) :], strict=False):
            if layer != source:
                os.mkdir(layer)
                lower = CountingLower(
                    source,
                    layer,
                    latency_us=latency_us,
                    entry_timeout=timeouts,
                    attr_timeout=timeouts,
                    negative_timeout=timeouts,
                    xattrs=xattrs,
                    log=os.fsdecode(layer).removesuffix(".fuse") + ".log" if log else None,
                )
                countings.append(stack.enter_context(lower))
        home = make_upper_fs(base, upper_fs, upper_size, stack)
        build(home + b"/upper", {})  # an overlay's root has the stamps of upper's
        os.mkdir(home + b"/work")
        metadata = [home + b"/layer/promoterd.files", home + b"/layer/promoterd.rest"] if layered else []
        for half in metadata:
            os.makedirs(half)
        stack.callback(unmount, base + b"/mnt")
        made = MountedOverlay(
            base,
            sources,
            layers,
            home + b"/upper",
            home + b"/work",
            options,
            countings[: len(sources)] if counting else [],
            stack.pop_all(),
            data_layers,
            metadata,
            countings[len(sources) if counting else 0 :],
        )
        try:
            return made.mount() if mount else made
        except BaseException:
            made.close()
            raise


def make_upper_fs(base: bytes, kind: UpperFs, size: int, stack: ExitStack) -> bytes:
    """A directory on a file system of this kind, unmounted by ``stack``."""
    home = base + b"/" + kind.encode()
    os.mkdir(home)
    if kind == "dir":
        return home
    if kind == "tmpfs":
        syscalls.mount(b"tmpfs", home, b"tmpfs", 0, b"size=%d" % size)
    else:
        need("loop", f"mkfs.{kind}")
        image = home + b".img"
        with open(image, "wb") as file:
            file.truncate(size)
        subprocess.run([*_MKFS[kind], image], check=True, capture_output=True)
        subprocess.run(["mount", "-t", kind, "-o", "loop", image, home], check=True, capture_output=True)
    stack.callback(unmount, home)
    return home
