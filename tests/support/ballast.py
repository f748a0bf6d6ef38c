"""Filling the file system of an upper layer, or of a metadata layer."""

import os

from support.overlays import MountedOverlay


class Ballast:
    """Files beside the upper layer that leave no more than so much room."""

    def __init__(self, mounted: MountedOverlay) -> None:
        self._home = os.path.dirname(mounted.upper)
        self._made: list[bytes] = []

    def fill_inodes(self, leave: int) -> None:
        while os.statvfs(self._home).f_ffree > leave:
            self._made.append(self._home + b"/ballast%d" % len(self._made))
            os.close(os.open(self._made[-1], os.O_CREAT | os.O_WRONLY))

    def fill_blocks(self, leave: int) -> None:
        self._made.append(self._home + b"/ballast")
        with open(self._made[-1], "wb", buffering=0) as file:
            while (free := os.statvfs(self._home).f_bfree) > leave:
                size = os.statvfs(self._home).f_frsize
                try:
                    file.write(b"\1" * size * min(64, free - leave))
                except OSError:
                    break
                os.fsync(file.fileno())

    def clear(self) -> None:
        for path in self._made:
            os.unlink(path)
        self._made = []
        os.sync()
