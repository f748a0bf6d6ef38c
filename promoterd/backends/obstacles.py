"""Obstacles: what keeps a directory from being complete on any backend, each found before anything is changed (I7)."""

import os
from collections.abc import Iterable

from promoterd.backends.base import DirectoryTerms, PlannedDirectory
from promoterd.errors import Refused
from promoterd.overlay import beneath, mountinfo, syscalls, xattrs
from promoterd.overlay.listing import Layers, LowerListing
from promoterd.overlay.watchers import watched_by_others
from promoterd.paths import display, is_below, join, show

UNLISTED_NAMES = (".snapshot", ".zfs", ".snapshots")
"""Names that file servers resolve without listing them."""


class TooYoung(Refused):
    """{path} is refused for now: {reason}."""


def refuse_root(path: bytes) -> None:
    """Refuse the root of the mount: what is read of it is fixed when it is mounted."""
    if not path:
        raise Refused(path="/", reason="the root of a mount cannot be marked", hint="promote directories below it")


def refused(path: bytes, child: bytes, reason: str, hint: str | None = None) -> Refused:
    """A refusal of ``path`` for what is at ``child``."""
    relation = "child directory" if is_below(child, path) else "ancestor"
    where = "" if child == path else f"the {relation} {show(child)} blocks it: "
    return Refused(path=show(path), reason=where + reason, hint=hint)


def refuse_other_mounts(layers: Layers, path: bytes) -> None:
    """Refuse where another file system is mounted on the directory or below it."""
    target = join(layers.overlay.mountpoint.rstrip(b"/"), path)
    for entry in mountinfo.read():
        if entry.mountpoint != layers.overlay.mountpoint and mountinfo.is_at_or_below(entry.mountpoint, target):
            raise Refused(
                path=show(path),
                reason=f"another file system is mounted below it, at {display(entry.mountpoint)}",
                hint="unmount it, or promote directories beside it",
            )


def refuse_renamed(layers: Layers, directory: bytes, path: bytes) -> None:
    """Refuse ``path`` where ``directory``, itself or above it, has another path in lower."""
    redirect = layers.upper_xattr(directory, xattrs.REDIRECT)
    if redirect is not None and layers.upper_xattr(directory, xattrs.OPAQUE) != xattrs.OPAQUE_YES:
        raise Refused(
            path=show(path),
            reason=f"{show(directory)} was renamed in the upper layer (its redirect says {display(redirect)})",
            hint="rename it back, or exclude it with `promote: never`",
        )


def contributing_below(layers: Layers, path: bytes, contributing: tuple[int, ...], directory: bytes) -> tuple[int, ...]:
    """As :meth:`Layers.contributing_below`, with a refusal that is about ``path``."""
    try:
        return layers.contributing_below(contributing, directory)
    except Refused as refusal:
        raise refused(path, directory, str(refusal.fields["reason"]), refusal.hint) from None


def refuse_opaque(layers: Layers, directory: bytes, path: bytes) -> None:
    """Refuse ``path`` where upper hides lower at ``directory``."""
    if layers.upper_xattr(directory, xattrs.OPAQUE) == xattrs.OPAQUE_YES:
        raise Refused(
            path=show(path),
            reason=f"{show(directory)} is opaque in the upper layer: it asks the server for nothing already",
        )


def refuse_young(path: bytes, directory: bytes, listing: LowerListing, demands: DirectoryTerms) -> None:
    """Refuse what is younger than policy allows, itself or an entry that is no directory (R7)."""
    newest = max((max(stamp.mtime_ns, stamp.ctime_ns) for stamp in listing.stamps), default=0)
    what = show(directory)
    if listing.newest_ns > newest:
        newest, what = listing.newest_ns, show(join(directory, os.fsencode(listing.newest)))
    if newest > demands.oldest_allowed_ns:
        raise TooYoung(
            path=show(path),
            reason=f"{what} is younger than min_age (a release may still be on its way)",
            hint="it is tried again when it is old enough; or lower `min_age` in its rule",
            wait=(newest - demands.oldest_allowed_ns) / syscalls.NANOSECONDS + 1.0,
        )


def refuse_redirected(path: bytes, directory: bytes, listing: LowerListing) -> None:
    """Refuse where files of lower have their data under other paths."""
    if listing.redirected:
        raise refused(
            path,
            directory,
            f"its lower layer carries redirects ({few(listing.redirected)}): it was an upper layer once",
            "use a lower layer without redirects",
        )


def refuse_many(path: bytes, entries: int, most: int) -> None:
    """Refuse where a directory and those to be completed with it have more entries than policy allows."""
    if entries > most:
        raise Refused(
            path=show(path),
            reason=f"with its child directories it has more than max_entries = {most} entries",
            hint="raise `max_entries` in its rule, or promote deeper directories one by one",
        )


def refuse_unlisted(layers: Layers, path: bytes, directory: PlannedDirectory) -> None:
    """Refuse where a server resolves names that it does not list, which a mark would hide (I2)."""
    for index in directory.layers:
        with beneath.opened(layers.lowers[index], directory.path) as lower:
            for name in UNLISTED_NAMES:
                if name not in directory.listing.entries and _resolves(lower, name):
                    raise refused(
                        path,
                        directory.path,
                        f"the server resolves {name} there without listing it; a complete directory would hide it",
                        "say `unlisted: hide` in its rule if nothing needs it through this mount",
                    )


def _resolves(directory: int, name: str) -> bool:
    try:
        os.stat(name, dir_fd=directory, follow_symlinks=False)
    except OSError:
        return False
    return True


def refuse_watched(layers: Layers, path: bytes, directories: Iterable[bytes]) -> None:
    """Refuse where another process watches one of the directories: its watch would go dead silently (R11)."""
    for directory, pids in watched_by_others(layers.root, directories).items():
        raise refused(
            path,
            directory,
            f"process {', '.join(map(str, sorted(pids)))} watches it (inotify), and the watch would go dead "
            "on activation",
            "stop that process, or say `watched: ignore` in its rule",
        )


def few(names: list[str], most: int = 3) -> str:
    """Some of the names, for a message."""
    shown = ", ".join(display(os.fsencode(name)) for name in names[:most])
    return shown + (f" and {len(names) - most} more" if len(names) > most else "")
