"""Whether this machine can hold a layout: looks at directories and the mount table, and changes nothing."""

import os
import stat
from collections.abc import Iterator

from promoterd.errors import Refused
from promoterd.layout.plan import Layout
from promoterd.overlay.mountinfo import MountEntry, MountTree, is_network, read
from promoterd.overlay.probe_of_layers import trusted_xattrs_at
from promoterd.paths import display

_LOCAL = "choose a directory on ext4, xfs or btrfs of a local disk with --state (or --upper and --work)"


def survey(layout: Layout, root: bytes = b"/") -> list[str]:
    """What is worth a warning. Raises Refused for what cannot be, with the path and the way out.

    ``root``: where the system lies that the layout is for. What is mounted at the mount points matters only here.
    """
    tree = MountTree(read())
    for path in layout.mountpoints:
        _check_directory(at(root, path))
    for path in (layout.upper, layout.work, layout.home):
        _check_local(at(root, path), tree)
    _check_together(layout, root, tree)
    return list(_warnings(layout, root, tree))


def at(root: bytes, path: bytes) -> bytes:
    """Where a path of the system below ``root`` is seen from here."""
    return path if root == b"/" else root.rstrip(b"/") + path


def existing(path: bytes) -> bytes:
    """The path, or the nearest directory above it that exists."""
    while not os.path.lexists(path):
        path = os.path.dirname(path)
    return path


def _check_directory(path: bytes) -> None:
    """No symlink may be in it: systemd mounts on no such path (unit_fail_if_noncanonical)."""
    found = existing(path)
    if not stat.S_ISDIR(os.stat(found).st_mode):
        raise Refused(
            path=display(path),
            reason=f"{display(found)} is no directory",
            hint="name another path, or move away what is there",
        )
    real = os.path.realpath(found)
    if real != found:
        raise Refused(
            path=display(path),
            reason=f"{display(found)} leads through a symlink to {display(real)}",
            hint=f"name the direct path, which begins with {display(real)}",
        )


def _check_local(path: bytes, tree: MountTree) -> None:
    mount = tree.at(path)
    if mount is not None and is_network(mount.fstype):
        raise Refused(
            path=display(path),
            reason=f"it would be on {mount.fstype} ({display(mount.mountpoint)}), and must not need a server",
            hint=_LOCAL,
        )
    _check_directory(path)
    if trusted_xattrs_at(existing(path)) is not True:
        fstype = "its file system" if mount is None else f"the file system there ({mount.fstype})"
        raise Refused(path=display(path), reason=f"{fstype} has no trusted.* attributes", hint=_LOCAL)


def _check_together(layout: Layout, root: bytes, tree: MountTree) -> None:
    upper, work = (tree.at(existing(at(root, path))) for path in (layout.upper, layout.work))
    if upper != work:
        raise Refused(
            path=display(layout.work),
            reason=f"the work directory must be on the same mount as the upper layer, {display(layout.upper)}",
            hint="choose both below one directory",
        )


def _warnings(layout: Layout, root: bytes, tree: MountTree) -> Iterator[str]:
    home = tree.at(existing(at(root, layout.home)))
    upper = tree.at(existing(at(root, layout.upper)))
    for path, mount in ((layout.upper, upper), (layout.home, home)):
        if mount is not None and mount.fstype == "tmpfs":
            yield f"{display(path)} is on a tmpfs: what is written there is gone at the next boot"
    if root != b"/":
        return
    for source, place, _ in layout.servers:
        there = _mounted_at(place, tree)
        if there is not None and there.source != source:
            raise Refused(
                path=display(place),
                reason=f"{display(there.source)} ({there.fstype}) is mounted there, not {display(source)}",
                hint="unmount it, or name other mount points with --lower-mountpoint and --data-mountpoint",
            )
    there = _mounted_at(layout.mountpoint, tree)
    if there is not None:
        yield (
            f"{display(layout.mountpoint)} has {display(there.source)} ({there.fstype}) mounted on it: unmount that "
            "before you mount the overlay"
        )


def _mounted_at(path: bytes, tree: MountTree) -> MountEntry | None:
    found = tree.at(path)
    return found if found is not None and found.mountpoint == path else None
