"""A directory to mount overlays in, with options of one's own."""

import os
from contextlib import ExitStack

from promoterd.overlay import syscalls
from promoterd.overlay.mounts import Overlay, overlay_at
from support.fsopen import mount_overlay
from support.overlays import unmount


class Place:
    """A directory to mount overlays in, undone after the test."""

    def __init__(self, base: bytes, stack: ExitStack) -> None:
        self.base = base
        self._stack = stack
        self.mountpoint = self.directory(b"mnt")
        self.upper, self.work = self.directory(b"up"), self.directory(b"wk")

    def directory(self, name: bytes) -> bytes:
        path = self.base + b"/" + name
        os.mkdir(path)
        return path

    def mount(self, options: bytes, target: bytes | None = None) -> Overlay:
        target = target or self.mountpoint
        syscalls.mount(b"overlay", target, b"overlay", 0, options)
        self._stack.callback(unmount, target)
        return overlay_at(target)

    def mount_new(self, options: list[tuple[bytes, bytes | int]]) -> Overlay:
        mount_overlay(self.mountpoint, options)
        self._stack.callback(unmount, self.mountpoint)
        return overlay_at(self.mountpoint)
