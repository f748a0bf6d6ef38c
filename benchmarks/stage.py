"""Where a benchmark happens: a fresh ext4 with a journal in a loop-mounted image, with trees and overlays on it."""

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager

from promoterd.overlay import syscalls

OPTIONS = b"metacopy=on,redirect_dir=on,index=off,xino=off"
OLD = 1_600_000_000_000_000_000
"""Modification time of everything in a tree (ns)."""


@contextmanager
def ext4(inode_size: int, size: str = "2G") -> Iterator[bytes]:
    """The mount point of an ext4 in TMPDIR, with a journal and inodes of so many bytes, its tables written before."""
    base = tempfile.mkdtemp(prefix="promoterd-bench-")
    image, mountpoint = f"{base}/image", f"{base}/ext4"
    os.mkdir(mountpoint)
    try:
        subprocess.run(["truncate", "-s", size, image], check=True)
        eager = "lazy_itable_init=0,lazy_journal_init=0"
        subprocess.run(["mkfs.ext4", "-q", "-F", "-I", str(inode_size), "-i", "8192", "-E", eager, image], check=True)
        subprocess.run(["mount", "-t", "ext4", "-o", "loop,noatime", image, mountpoint], check=True)
        try:
            yield mountpoint.encode()
        finally:
            unmount(mountpoint.encode())
    finally:
        if not os.path.ismount(mountpoint):
            shutil.rmtree(base)


def build_tree(root: bytes, directories: list[bytes], files: int) -> int:
    """These directories with so many files in each, all small and old; returns how many entries that makes."""
    for directory in directories:
        os.makedirs(root + b"/" + directory)
        for number in range(files):
            path = root + b"/%s/f%05d" % (directory, number)
            with open(path, "wb") as file:
                file.write(b"%d\n" % number)
            os.utime(path, ns=(OLD, OLD))
    entries = 0
    for above, names, others in os.walk(root, topdown=False):
        os.utime(above, ns=(OLD, OLD))
        entries += len(names) + len(others)
    return entries


@contextmanager
def overlay(home: bytes, lower: bytes, name: bytes) -> Iterator[bytes]:
    """The mount point of an overlay with a fresh upper layer in ``home``; nothing of it stays."""
    base = home + b"/" + name
    for part in (b"", b"/upper", b"/work", b"/mount"):
        os.mkdir(base + part)
    data = b"lowerdir=%s,upperdir=%s/upper,workdir=%s/work,%s" % (lower, base, base, OPTIONS)
    try:
        syscalls.mount(b"promoterd-bench", base + b"/mount", b"overlay", 0, data)
        try:
            yield base + b"/mount"
        finally:
            unmount(base + b"/mount")
    finally:
        if not os.path.ismount(base + b"/mount"):
            shutil.rmtree(base)
        settle(home)


def settle(directory: bytes) -> None:
    """Write out what is left of the last run, so that the next one does not pay for it."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        syscalls.syncfs(descriptor)
    finally:
        os.close(descriptor)


def unmount(mountpoint: bytes, patience: float = 5.0) -> None:
    """Unmount; whatever is busy for longer than ``patience`` seconds is detached."""
    deadline = time.monotonic() + patience
    while True:
        try:
            syscalls.umount(mountpoint)
        except OSError:
            if time.monotonic() > deadline:
                syscalls.umount(mountpoint, syscalls.MNT_DETACH)
                return
            time.sleep(0.05)
        else:
            return
