"""What both boots share: the overlay on the share's disk, with its upper layer on a disk that outlives the boots."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from lab.guest import server
from lab.guest.stack import Nfs, mounted_nfs, overlay_on, upper_home
from support.overlays import MountedOverlay

HOME = b"/mnt/local"
VIEW = "/mnt/local/view.json"
RELEASE = b"apps/tool/1.0"
STATE = "/mnt/local/state"
MARKED = [RELEASE + b"/bin", RELEASE + b"/lib"]
_SHARE = server.EXPORT + b"/share"


@contextmanager
def staged(*, fresh: bool) -> Iterator[MountedOverlay]:
    """A new overlay, or the one of the boot before."""
    with (
        mounted_nfs(Nfs("4.2", "actimeo=600")) as layer,
        upper_home("ext4", HOME),
        overlay_on([layer], HOME, on_server=[_SHARE], fresh=fresh) as mounted,
    ):
        yield mounted


def view(mounted: MountedOverlay) -> dict[str, list[int]]:
    """What an application sees of the release, in a form that JSON keeps."""
    seen = {}
    for above, directories, names in os.walk(mounted.at(RELEASE)):
        for name in [*directories, *names]:
            status = os.lstat(os.path.join(above, name))
            path = os.path.relpath(os.path.join(above, name), mounted.mountpoint)
            seen[os.fsdecode(path)] = [status.st_mode, status.st_uid, status.st_gid, status.st_mtime_ns]
    return seen
