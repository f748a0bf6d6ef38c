"""What a node needs for an overlay with a metadata layer: decided from what was asked for, without a look at anything.

The layout, and why each option stands there, is described in ``docs/layout.md``.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

from promoterd.errors import UsageError
from promoterd.overlay.escapes import escape_option
from promoterd.overlay.mountinfo import is_at_or_below
from promoterd.overlay.mounts import FILES, GRAVEYARD, REST, STAGE
from promoterd.paths import display

NFS_OPTIONS = b"ro,vers=4.2,hard"
STATE_PARENT, MOUNT_PARENT = b"/var/lib/promoterd/mounts", b"/mnt/promoterd"
_OVERLAY = b"metacopy=on,redirect_dir=on,index=off,xino=off"
_OWN_SUPERBLOCK = b"nosharecache"
_EXPORT = re.compile(rb"(?:\[[0-9A-Fa-f:.]+(?:%[\w.-]+)?\]|[A-Za-z0-9_][A-Za-z0-9_.-]*):(/[^\x00-\x1f\x7f]*)")
_BEYOND_MOUNT = re.compile(rb'[\x00-\x1f\x7f"]|,,|,\Z')
"""What mount(8) cannot be given in an option: a quote parts options differently, two commas are one."""
_REFUSED_NFS = {
    b"bg": "the overlay would be mounted on an empty directory while the server does not answer",
    b"sharecache": "the data-only layer must not share its superblock with the server's layer",
    b"noauto": "the overlay needs both mounts",
    b"remount": "the mounts are new ones",
    b"bind": "the mounts are new ones",
}
_PLAIN_NAME = re.compile(rb"[A-Za-z0-9._+=@](?:[A-Za-z0-9._+=@-]*[A-Za-z0-9._+=@])?")
_LONGEST = 4095
"""Bytes of all options together: mount(2) copies one page, the NUL included."""
_LONGEST_VALUE = 255
_DEEPEST = 4095


@dataclass(frozen=True, slots=True)
class Wanted:
    """What was asked for; None and empty are for the defaults."""

    lowers: Sequence[bytes]
    mountpoint: bytes
    state: bytes | None = None
    upper: bytes | None = None
    work: bytes | None = None
    lower_mountpoints: Sequence[bytes] = ()
    data_mountpoints: Sequence[bytes] = ()
    nfs_options: bytes = NFS_OPTIONS


@dataclass(frozen=True, slots=True)
class Export:
    """What one server exports, and the two places that it is mounted at."""

    source: bytes
    lower: bytes
    data: bytes


@dataclass(frozen=True, slots=True)
class Layout:
    """An overlay with a metadata layer, and the mounts below it. Paths are absolute, and none lies in another."""

    exports: tuple[Export, ...]
    mountpoint: bytes
    upper: bytes
    work: bytes
    home: bytes
    nfs_options: bytes

    @property
    def data_options(self) -> bytes:
        """Those of the second mount of each export, which needs a superblock of its own (ovl_setup_trap)."""
        return self.nfs_options + b"," + _OWN_SUPERBLOCK

    @property
    def overlay_options(self) -> bytes:
        """Those of the overlay, as mount(8) takes them."""
        return overlay_options(self, [(export.lower, export.data) for export in self.exports])

    @property
    def is_long(self) -> bool:
        """Whether a value is longer than fsconfig(2) takes, which mount(8) uses from util-linux 2.39 on."""
        values = split_options(self.overlay_options)
        return any(len(value.partition(b"=")[2]) > _LONGEST_VALUE for value in values)

    @property
    def servers(self) -> Iterator[tuple[bytes, bytes, bytes]]:
        """Every NFS mount: source, mount point and options."""
        for export in self.exports:
            yield export.source, export.lower, self.nfs_options
            yield export.source, export.data, self.data_options

    @property
    def mountpoints(self) -> tuple[bytes, ...]:
        """Every mount point, the overlay's last."""
        return (*(at for _, at, _ in self.servers), self.mountpoint)

    @property
    def layer(self) -> tuple[bytes, ...]:
        """The directories of the metadata layer: halves, stage and graveyard."""
        return tuple(self.home + b"/" + name for name in (FILES, REST, STAGE, GRAVEYARD))


def overlay_options(layout: Layout, trees: Sequence[tuple[bytes, bytes]]) -> bytes:
    """The overlay's options over these mounts of the server, each with its data-only one."""
    lowers = [*layout.layer[:2], *(lower for lower, _ in trees)]
    lowerdir = b":".join(map(escape_option, lowers)) + b"".join(b"::" + escape_option(data) for _, data in trees)
    return b"lowerdir=%s,upperdir=%s,workdir=%s,%s" % (
        lowerdir,
        escape_option(layout.upper),
        escape_option(layout.work),
        _OVERLAY,
    )


def split_options(options: bytes) -> list[bytes]:
    """Options, parted at the commas that no backslash stands before."""
    return re.findall(rb"(?:[^,\\]|\\.)+", options, re.DOTALL)


def plan(wanted: Wanted) -> Layout:
    """The layout for what was asked for. Raises UsageError, with the option and what to say instead."""
    mountpoint = _path("--mountpoint", wanted.mountpoint)
    sources = _sources(wanted.lowers)
    name = _name(mountpoint)
    state = _chosen("--state", wanted.state, STATE_PARENT, name)
    layout = Layout(
        tuple(
            Export(source, lower, data)
            for source, lower, data in zip(
                sources,
                _mountpoints("--lower-mountpoint", wanted.lower_mountpoints, b"lower", name, len(sources)),
                _mountpoints("--data-mountpoint", wanted.data_mountpoints, b"data", name, len(sources)),
                strict=True,
            )
        ),
        mountpoint,
        state + b"/upper" if wanted.upper is None else _path("--upper", wanted.upper),
        state + b"/work" if wanted.work is None else _path("--work", wanted.work),
        state + b"/layer",
        _nfs_options(wanted.nfs_options),
    )
    _check_apart(layout)
    _check_length(layout)
    return layout


def _sources(lowers: Sequence[bytes]) -> list[bytes]:
    for lower in lowers:
        found = _EXPORT.fullmatch(lower)
        if found is None or b".." in found[1].split(b"/"):
            raise UsageError(
                f"--lower {display(lower)} is not SERVER:/PATH",
                hint="name what the server exports, as in mount.nfs(8): --lower nas1:/export/software; an overlay of "
                "ours is on NFS only",
            )
        if lowers.count(lower) > 1:
            raise UsageError(
                f"--lower {display(lower)} is given twice", hint="name each export once, the topmost first"
            )
    return [lower[: lower.index(b":/") + 1] + _normal(lower[lower.index(b":/") + 1 :]) for lower in lowers]


def _mountpoints(option: str, given: Sequence[bytes], kind: bytes, name: bytes | None, count: int) -> list[bytes]:
    if given and len(given) != count:
        raise UsageError(
            f"{option} is given {len(given)} times, and --lower {count} times",
            hint=f"give {option} once for each --lower, in the same order, or not at all",
        )
    if given:
        return [_path(option, path) for path in given]
    parent = _chosen(option, None, MOUNT_PARENT, name) + b"/" + kind
    return [parent + (b"%d" % number if count > 1 else b"") for number in range(1, count + 1)]


def _name(mountpoint: bytes) -> bytes | None:
    """A mount point as the name of a directory, none like another's; None where there is no plain one."""
    parts = mountpoint[1:].split(b"/")
    if all(_PLAIN_NAME.fullmatch(part) for part in parts):
        return b"-".join(part.replace(b"-", b"--") for part in parts)
    return None


def _chosen(option: str, given: bytes | None, parent: bytes, name: bytes | None) -> bytes:
    if given is not None:
        return _path(option, given)
    if name is None:
        raise UsageError(
            f"{option} has no default for this mount point, which is not made of letters, digits and the like",
            hint=f"say {option} DIRECTORY",
        )
    return parent + b"/" + name


def _path(option: str, path: bytes) -> bytes:
    if not path.startswith(b"/"):
        raise UsageError(f"{option} {display(path)} is not an absolute path", hint="begin it with a slash")
    if b".." in path.split(b"/"):
        raise UsageError(f"{option} {display(path)} contains '..'", hint="give the direct path")
    plain = _normal(path)
    if plain == b"/":
        raise UsageError(f"{option} / is the root of the system", hint="name a directory below it")
    if len(plain) > _DEEPEST:
        raise UsageError(f"{option} {display(plain[:60])}… has more than {_DEEPEST} bytes", hint="name a shorter path")
    if _BEYOND_MOUNT.search(plain):
        raise UsageError(
            f"{option} {display(plain)}: mount(8) takes no control character, no double quote, no two commas in a row "
            "and no comma at the end of a path",
            hint="choose another path",
        )
    return plain


def _normal(path: bytes) -> bytes:
    return b"/" + b"/".join(part for part in path.split(b"/") if part not in (b"", b"."))


def _nfs_options(given: bytes) -> bytes:
    options = given.split(b",")
    for option in options:
        if not re.fullmatch(rb'[^\x00-\x20\x7f"\\]+', option):
            raise UsageError(
                f"--nfs-options {display(given)}: an option is empty, or holds a blank, a quote or a backslash",
                hint="write them as in mount(8), such as --nfs-options vers=4.2,soft",
            )
        if option in _REFUSED_NFS:
            raise UsageError(
                f"--nfs-options {display(given)}: {display(option)} is refused: {_REFUSED_NFS[option]}",
                hint=f"leave {display(option)} out",
            )
    return b",".join(option for option in options if option not in (_OWN_SUPERBLOCK, b"_netdev", b"fg"))


def _check_apart(layout: Layout) -> None:
    of = {
        "--mountpoint": layout.mountpoint,
        **{f"--lower-mountpoint {at}": export.lower for at, export in enumerate(layout.exports, 1)},
        **{f"--data-mountpoint {at}": export.data for at, export in enumerate(layout.exports, 1)},
        "upper": layout.upper,
        "work": layout.work,
        "layer": layout.home,
    }
    for (name, path), (other, there) in combinations(of.items(), 2):
        if is_at_or_below(path, there) or is_at_or_below(there, path):
            raise UsageError(
                f"{name} ({display(path)}) and {other} ({display(there)}) lie in each other",
                hint="give each mount point and each layer a directory of its own; "
                "upper, work and layer lie in --state, unless --upper and --work name others",
            )


def _check_length(layout: Layout) -> None:
    length = len(layout.overlay_options)
    if length > _LONGEST:
        raise UsageError(
            f"the overlay's options would have {length} bytes, and mount(2) takes {_LONGEST}",
            hint="choose shorter paths with --state, --lower-mountpoint and --data-mountpoint",
        )
