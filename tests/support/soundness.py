"""Whether layers are sound as they lie on disk, judged by means of its own: nothing here asks the code under test."""

import os
import stat
from collections.abc import Iterator

from support.overlays import MountedOverlay

OPAQUE, METACOPY = "trusted.overlay.opaque", "trusted.overlay.metacopy"
REDIRECT = "trusted.overlay.redirect"
PROVENANCE, DATA = "trusted.overlay.promoterd.mark", "trusted.overlay.promoterd.data"
LATE = "trusted.overlay.promoterd.late"


def xattr(path: bytes, name: str) -> bytes | None:
    """An attribute, or None."""
    try:
        return os.getxattr(path, name, follow_symlinks=False)
    except OSError:
        return None


def is_whiteout(path: bytes) -> bool:
    status = os.lstat(path)
    return stat.S_ISCHR(status.st_mode) and not status.st_rdev


def lower_names(mounted: MountedOverlay, path: bytes) -> set[bytes]:
    """The names that the lower layers merge at ``path``; whiteouts and opaque directories of theirs respected."""
    found: set[bytes] = set()
    hidden: set[bytes] = set()
    for number in range(len(mounted.lowers)):
        directory, parts = mounted.lowers[number], path.split(b"/")
        covered = False
        for part in parts:
            covered = covered or xattr(directory, OPAQUE) == b"y"
            directory += b"/" + part
            if not os.path.lexists(directory):
                break
            if not stat.S_ISDIR(os.lstat(directory).st_mode):
                return found
        else:
            attributes = xattr(directory, OPAQUE) == b"x"
            for name in os.listdir(directory):
                entry = directory + b"/" + name
                whiteout = is_whiteout(entry) or (attributes and xattr(entry, "trusted.overlay.whiteout") is not None)
                if name not in hidden | found:
                    (hidden if whiteout else found).add(name)
            covered = covered or xattr(directory, OPAQUE) == b"y"
        if covered:
            break
    return found


def directories_of(half: bytes) -> Iterator[bytes]:
    """Every directory below the root of one half of a metadata layer, by its path, parents first."""
    for directory, _, _ in os.walk(half):
        path = os.path.relpath(directory, half)
        if path != b".":
            yield path


def assert_layer_is_sound(mounted: MountedOverlay, *, settled: bool = True) -> list[bytes]:
    """I1 on a metadata layer as it lies there; returns the directories that are complete, parents first.

    What is complete has every name of lower, in the right half and of the right type and size; what is a stub leads to
    the place that it stands at; and every directory is in both halves, but (without ``settled``) between a crash and
    the next start.
    """
    for path in directories_of(mounted.in_files("").rstrip(b"/")):
        assert not settled or os.path.isdir(mounted.in_rest(path)), f"{path!r} has files, and no twin"
        _assert_is_files_half(mounted, path, settled=settled)
    marked = []
    for path in directories_of(mounted.in_rest("").rstrip(b"/")):
        here = mounted.in_rest(path)
        redirect, opaque, ours = xattr(here, REDIRECT), xattr(here, OPAQUE), xattr(here, PROVENANCE)
        assert redirect == b"/" + path, f"{path!r} is merged with {redirect!r}"
        assert opaque in (None, b"y")
        assert not settled or os.path.isdir(mounted.in_files(path)), f"{path!r} is in the rest half only"
        for name in os.listdir(here):
            assert not stat.S_ISREG(os.lstat(here + b"/" + name).st_mode), f"the file {path + b'/' + name!r} in rest"
        if opaque is not None:
            assert ours is not None, f"the mark on {path!r} is nobody's"
            _assert_is_complete(mounted, path)
            marked.append(path)
    return marked


def _assert_is_files_half(mounted: MountedOverlay, path: bytes, *, settled: bool) -> None:
    here = mounted.in_files(path)
    assert {name for name in os.listxattr(here) if name.startswith("trusted.overlay.")} <= {LATE}
    first: dict[int, set[bytes | None]] = {}
    for name in os.listdir(here):
        file = here + b"/" + name
        status = os.lstat(file)
        if stat.S_ISDIR(status.st_mode):
            continue
        assert stat.S_ISREG(status.st_mode), f"{path + b'/' + name!r} is no file, in the files half"
        if xattr(file, DATA) is not None:
            continue
        assert xattr(file, METACOPY) == b"", f"{path + b'/' + name!r} is no stub"
        redirect = xattr(file, REDIRECT)
        assert redirect is not None
        assert redirect.startswith(b"/" + path + b"/"), f"{path + b'/' + name!r} leads to {redirect!r}"
        if settled and status.st_nlink == 1:
            assert redirect == b"/" + path + b"/" + name, f"{path + b'/' + name!r} leads to {redirect!r}"
        first.setdefault(status.st_ino, set()).add(redirect)
    assert all(len(found) == 1 for found in first.values())


def _assert_is_complete(mounted: MountedOverlay, path: bytes) -> None:
    halves = (mounted.in_files(path), mounted.in_rest(path))
    assert all(map(os.path.isdir, halves)), f"{path!r} is complete, and has one half"
    names = lower_names(mounted, path)
    missing = names.difference(*map(os.listdir, halves))
    assert not missing, f"{path!r} is complete, but {sorted(missing)[:5]} are in neither half"
    extra = set(os.listdir(halves[0])).union(os.listdir(halves[1])) - names
    assert not extra, f"{path!r} has {sorted(extra)[:5]}, and the server has not"
    for name in names:
        place = path + b"/" + name
        lower = next(os.lstat(top + b"/" + place) for top in mounted.lowers if os.path.lexists(top + b"/" + place))
        local = os.lstat(halves[0 if stat.S_ISREG(lower.st_mode) else 1] + b"/" + name)
        assert stat.S_IFMT(local.st_mode) == stat.S_IFMT(lower.st_mode), place
        assert not stat.S_ISREG(lower.st_mode) or local.st_size == lower.st_size, place


def stage_leftovers(mounted: MountedOverlay) -> list[bytes]:
    """What is left of what was being built aside."""
    stage = mounted.layer_home + b"/promoterd.stage"
    return sorted(os.listdir(stage)) if os.path.isdir(stage) else []


def graves(mounted: MountedOverlay) -> list[bytes]:
    """What was taken out of the layer, and is kept."""
    return sorted(os.listdir(mounted.layer_home + b"/promoterd.graveyard"))
