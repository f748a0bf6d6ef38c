"""Planning: a directory with its whole closure of child directories, or the reason why it can never be complete.

Everything that would make a closure unfinishable is found here, before anything is copied (I7). Why the whole closure:
under an opaque parent a merged child directory would need a redirect, which only a rename makes the kernel write,
and which a later rename replaces by a relative one (the child then shows up empty); an opaque child needs none.
"""

import os
import stat
from collections.abc import Iterable, Iterator

from promoterd.backends.base import DirectoryTerms, Plan, PlannedDirectory, Terms
from promoterd.backends.denied import refused_where_denied
from promoterd.errors import Refused
from promoterd.overlay import beneath, mountinfo, mounts, syscalls, xattrs
from promoterd.overlay.listing import UNCHANGEABLE, Layers, LowerListing, UpperEntry
from promoterd.overlay.shadows import file_stands_alone
from promoterd.overlay.watchers import watched_by_others
from promoterd.paths import ancestors, display, is_below, join, show
from promoterd.provenance import decode

UNLISTED_NAMES = (".snapshot", ".zfs", ".snapshots")
"""Names that file servers resolve without listing them."""


class TooYoung(Refused):
    """{path} is refused for now: {reason}."""


def plan_closure(layers: Layers, path: bytes, terms: Terms, *, needs_redirects: bool, alone: bool = False) -> Plan:
    """Plan ``path`` and every child directory that is not complete yet, children first; nothing where it is complete.

    ``needs_redirects``: regular files get an absolute redirect, whose length the kernel limits. ``alone`` plans the
    directory without its children. Raises Refused naming the directory that stands in the way, and OSError.
    """
    if not path:
        raise Refused(path="/", reason="the root of a mount cannot be marked", hint="promote directories below it")
    with refused_where_denied(path):
        return _plan(layers, path, terms, needs_redirects=needs_redirects, alone=alone)


def _plan(layers: Layers, path: bytes, terms: Terms, *, needs_redirects: bool, alone: bool) -> Plan:
    plan = Plan(path)
    waiting = _root_of_closure(layers, path)
    entries = 0
    while waiting:
        directory, contributing = waiting.pop()
        demands = terms.of(directory)
        if demands.forbidden is not None:
            raise _refused(path, directory, demands.forbidden)
        _refuse_renamed(layers, directory, path)
        listing = layers.list_lower(directory, contributing)
        entries += len(listing.entries)
        if entries > terms.max_entries:
            raise Refused(
                path=show(path),
                reason=f"with its child directories it has more than max_entries = {terms.max_entries} entries",
                hint="raise `max_entries` in its rule, or promote deeper directories one by one",
            )
        upper = layers.list_upper(directory)
        _check_listing(layers, path, directory, listing, upper, demands)
        if needs_redirects:
            _refuse_long(layers, path, directory, listing, upper)
        if not demands.hide_unlisted:
            _refuse_unlisted(layers, path, PlannedDirectory(directory, contributing, listing))
        if demands.break_hardlinks and not layers.overlay.index:
            plan.broken_hardlinks.extend(
                join(directory, os.fsencode(name)) for name in listing.hard_linked if name not in upper
            )
        children = [] if alone else _merged_children(layers, path, directory, listing, upper)
        if children and not terms.recursive:
            raise _refused(
                path, children[0], "it is not complete itself, and the rule says `recursive: false`", "promote it first"
            )
        waiting.extend(_with_layers(layers, path, contributing, children))
        plan.directories.append(PlannedDirectory(directory, contributing, listing))
    plan.directories.reverse()
    refuse_watched(layers, path, (d.path for d in plan.directories if not terms.of(d.path).ignore_watchers))
    return plan


def _refused(path: bytes, child: bytes, reason: str, hint: str | None = None) -> Refused:
    relation = "child directory" if is_below(child, path) else "ancestor"
    where = "" if child == path else f"the {relation} {show(child)} blocks it: "
    return Refused(path=show(path), reason=where + reason, hint=hint)


def _refuse_other_mounts(layers: Layers, path: bytes) -> None:
    target = join(layers.overlay.mountpoint.rstrip(b"/"), path)
    for entry in mountinfo.read():
        if entry.mountpoint != layers.overlay.mountpoint and mountinfo.is_at_or_below(entry.mountpoint, target):
            raise Refused(
                path=show(path),
                reason=f"another file system is mounted below it, at {display(entry.mountpoint)}",
                hint="unmount it, or promote directories beside it",
            )


def _refuse_renamed(layers: Layers, directory: bytes, path: bytes) -> None:
    redirect = layers.upper_xattr(directory, xattrs.REDIRECT)
    if redirect is not None and layers.upper_xattr(directory, xattrs.OPAQUE) != xattrs.OPAQUE_YES:
        raise Refused(
            path=show(path),
            reason=f"{show(directory)} was renamed in the upper layer (its redirect says {display(redirect)})",
            hint="rename it back, or exclude it with `promote: never`",
        )


def _root_of_closure(layers: Layers, path: bytes) -> list[tuple[bytes, tuple[int, ...]]]:
    """The directory itself, with the lower layers that have it, where its mount and its ancestors allow it."""
    _refuse_other_mounts(layers, path)
    for ancestor in ancestors(path):
        _refuse_renamed(layers, ancestor, path)
        _refuse_opaque(layers, ancestor, path)
    with beneath.opened(layers.root, path):
        pass
    if is_complete(layers, path):
        return []
    _refuse_renamed(layers, path, path)
    contributing: tuple[int, ...] = tuple(range(len(layers.lowers)))
    for directory in [*ancestors(path), path]:
        contributing = _contributing_below(layers, path, contributing, directory)
        if not contributing:
            raise Refused(path=show(path), reason="no lower layer has it: there is nothing to ask the server for")
        _refuse_unchangeable(layers, path, directory, contributing[0])
    _refuse_opaque(layers, path, path)
    return [(path, contributing)]


def _contributing_below(
    layers: Layers, path: bytes, contributing: tuple[int, ...], directory: bytes
) -> tuple[int, ...]:
    try:
        return layers.contributing_below(contributing, directory)
    except Refused as refusal:
        raise _refused(path, directory, str(refusal.fields["reason"]), refusal.hint) from None


def _refuse_unchangeable(layers: Layers, path: bytes, directory: bytes, index: int) -> None:
    """Refuse where the directory would have to be copied up and cannot be."""
    if beneath.exists_beneath(layers.upper, directory):
        return
    with beneath.opened(layers.lowers[index], directory) as lower:
        if syscalls.statx(lower).attributes & UNCHANGEABLE:
            raise _refused(path, directory, "it is immutable or append-only", "chattr -ia it on the server")


def _with_layers(
    layers: Layers, path: bytes, contributing: tuple[int, ...], children: Iterable[bytes]
) -> Iterator[tuple[bytes, tuple[int, ...]]]:
    for child in children:
        found = _contributing_below(layers, path, contributing, child)
        if found:
            yield child, found


def is_complete(layers: Layers, path: bytes) -> bool:
    """Whether the upper directory carries a mark of ours that was made for this path."""
    provenance = decode(layers.upper_xattr(path, xattrs.PROVENANCE))
    return provenance is not None and provenance.is_at(path) and layers.upper_xattr(path, xattrs.OPAQUE) is not None


def _refuse_opaque(layers: Layers, directory: bytes, path: bytes) -> None:
    if layers.upper_xattr(directory, xattrs.OPAQUE) == xattrs.OPAQUE_YES:
        raise Refused(
            path=show(path),
            reason=f"{show(directory)} is opaque in the upper layer: it asks the server for nothing already",
        )


def _merged_children(
    layers: Layers, path: bytes, directory: bytes, listing: LowerListing, upper: dict[str, UpperEntry]
) -> list[bytes]:
    """Child directories that ask a lower layer, complete ones left out."""
    children = []
    for name in listing.directories():
        above = upper.get(name)
        child = join(directory, os.fsencode(name))
        if above is None or (stat.S_ISDIR(above.mode) and layers.upper_xattr(child, xattrs.OPAQUE) is None):
            children.append(child)
    for name, above in upper.items():
        if stat.S_ISDIR(above.mode) and not stat.S_ISDIR(listing.entries.get(name, 0)):
            _refuse_renamed(layers, join(directory, os.fsencode(name)), path)
    return children


def _check_listing(
    layers: Layers,
    path: bytes,
    directory: bytes,
    listing: LowerListing,
    upper: dict[str, UpperEntry],
    demands: DirectoryTerms,
) -> None:
    if listing.redirected:
        raise _refused(
            path,
            directory,
            f"its lower layer carries redirects ({_few(listing.redirected)}): it was an upper layer once",
            "use a lower layer without redirects",
        )
    linked = [name for name in listing.hard_linked if name not in upper]
    if linked and not layers.overlay.index and not demands.break_hardlinks:
        raise _refused(
            path,
            directory,
            f"it holds hard-linked files ({_few(linked)}), and copy-up without index=on breaks hard links",
            "mount with index=on, or say `hardlinks: break` in its rule",
        )
    fixed = [name for name in listing.unchangeable if name not in upper]
    if fixed:
        raise _refused(
            path,
            directory,
            f"it holds immutable or append-only entries ({_few(fixed)})",
            "chattr -ia them on the server",
        )
    _refuse_young(path, directory, listing, demands)


def _refuse_young(path: bytes, directory: bytes, listing: LowerListing, demands: DirectoryTerms) -> None:
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


def _refuse_long(
    layers: Layers, path: bytes, directory: bytes, listing: LowerListing, upper: dict[str, UpperEntry]
) -> None:
    most = mounts.redirect_max()
    for name, mode in listing.entries.items():
        length = len(b"/") + len(join(directory, os.fsencode(name)))
        if not stat.S_ISREG(mode) or length <= most or (name in upper and _needs_no_redirect(layers, directory, name)):
            continue
        raise _refused(
            path,
            directory,
            f"the path of {display(os.fsencode(name))} has {length} bytes inside the mount, more than the overlay "
            f"module's redirect_max = {most}",
            "raise it: echo 4096 > /sys/module/overlay/parameters/redirect_max",
        )


def _needs_no_redirect(layers: Layers, directory: bytes, name: str) -> bool:
    with beneath.opened(layers.upper, directory) as above:
        return file_stands_alone(above, name)


def _refuse_unlisted(layers: Layers, path: bytes, directory: PlannedDirectory) -> None:
    for index in directory.layers:
        with beneath.opened(layers.lowers[index], directory.path) as lower:
            for name in UNLISTED_NAMES:
                if name not in directory.listing.entries and _resolves(lower, name):
                    raise _refused(
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
        raise _refused(
            path,
            directory,
            f"process {', '.join(map(str, sorted(pids)))} watches it (inotify), and the watch would go dead "
            "on activation",
            "stop that process, or say `watched: ignore` in its rule",
        )


def _few(names: list[str], most: int = 3) -> str:
    shown = ", ".join(display(os.fsencode(name)) for name in names[:most])
    return shown + (f" and {len(names) - most} more" if len(names) > most else "")
