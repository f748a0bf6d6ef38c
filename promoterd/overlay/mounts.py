"""Mounted overlays as the kernel describes them: layers and the options that are in effect.

The kernel shows only options that differ from the module's defaults *of the moment* (ovl_show_options,
fs/overlayfs/params.c), so what is not shown is read from ``/sys/module/overlay/parameters``.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from urllib.parse import quote

from promoterd.errors import MountNotFound
from promoterd.overlay.escapes import split_lowerdir, unescape_octal, unescape_option
from promoterd.overlay.mountinfo import MountEntry, MountTree, MountWatch, is_at_or_below, parse, read
from promoterd.paths import display

_PARAMETERS = "/sys/module/overlay/parameters"
_REDIRECT_MAX = 256
FILES, REST = b"promoterd.files", b"promoterd.rest"
"""What the two halves of a metadata layer are called: the topmost lower layers of an overlay that has one."""
STAGE, GRAVEYARD = b"promoterd.stage", b"promoterd.graveyard"
"""Beside the halves: where directories are built, and where those are kept that were taken out."""
_LAYER_OPTIONS = (b"lowerdir", b"lowerdir+", b"datadir+", b"upperdir", b"workdir")

__all__ = [
    "FILES",
    "GRAVEYARD",
    "REST",
    "STAGE",
    "ModuleDefaults",
    "MountWatch",
    "Overlay",
    "lower_identity",
    "overlay_at",
    "read_overlays",
    "redirect_max",
]


@dataclass(frozen=True, slots=True)
class ModuleDefaults:
    """What holds for an option that is not shown."""

    metacopy: bool = False
    redirect_dir: bool = False
    redirect_always_follow: bool = False
    index: bool = False
    nfs_export: bool = False
    xino_auto: bool = False

    @classmethod
    def read(cls) -> "ModuleDefaults":
        """The running module's parameters; an older kernel's missing ones are off."""
        return cls(*(_parameter(name) == "Y" for name in cls.__slots__))


@dataclass(frozen=True, slots=True)
class Overlay:
    """One mounted overlay.

    Layer paths are those of the mounter, topmost first; a relative one means nothing here and is in
    ``relative_layers``. ``lowers`` are those that the server holds; the two halves of a metadata layer of ours above
    them, known by their names alone, are in ``metadata``: files first, then the rest. ``redirect_dir`` is ``on``,
    ``follow`` or ``nofollow``: what the kernel does, also where the mounter wrote ``off``. ``other_options`` are those
    that have no field, as given.
    """

    mount_id: int
    mountpoint: bytes
    device: tuple[int, int]
    source: bytes
    mount_options: tuple[str, ...]
    super_options: bytes
    read_only: bool
    metadata: tuple[bytes, ...]
    lowers: tuple[bytes, ...]
    data_only: tuple[bytes, ...]
    upper: bytes | None
    work: bytes | None
    metacopy: bool
    redirect_dir: str
    index: bool
    nfs_export: bool
    userxattr: bool
    volatile: bool
    xino: str
    verity: str
    other_options: tuple[bytes, ...]

    @property
    def mount_read_only(self) -> bool:
        """Whether this mount is read-only, whatever its superblock is."""
        return "ro" in self.mount_options

    @property
    def layers(self) -> tuple[bytes, ...]:
        """Every layer path: upper, then the lower and the data-only ones."""
        return (*self.merged, *self.data_only)

    @property
    def merged(self) -> tuple[bytes, ...]:
        """The layers that directories are merged of: upper, the metadata layer's halves, and the lower ones."""
        return (*((self.upper,) if self.upper is not None else ()), *self.metadata, *self.lowers)

    @property
    def walked(self) -> tuple[bytes, ...]:
        """The layers in which directories are found: as ``merged``, without what promotion has made of them itself."""
        return tuple(layer for layer in self.merged if layer not in self.metadata)

    @property
    def layer_home(self) -> bytes | None:
        """The directory that holds both halves of the metadata layer; None where there is none."""
        return os.path.dirname(self.metadata[0]) if self.metadata else None

    @property
    def relative_layers(self) -> tuple[bytes, ...]:
        """Layer and work paths that only the mounter's working directory could resolve."""
        return tuple(path for path in (*self.layers, self.work or b"/") if not path.startswith(b"/"))

    @property
    def identity(self) -> tuple[object, ...]:
        """Differs when the overlay at this mount point was replaced or remounted with other options (R16)."""
        return self.mount_id, self.device, self.mount_options, self.super_options


def read_overlays(mountinfo: bytes | None = None) -> list[Overlay]:
    """The overlays of this mount namespace, those that another mount hides left out.

    A bind mount of a directory of an overlay is not one. ``mountinfo`` stands in for ``/proc/self/mountinfo``.
    """
    entries = read() if mountinfo is None else parse(mountinfo)
    tree = MountTree(entries)
    defaults = ModuleDefaults.read()
    return [overlay_of(entry, defaults) for entry in entries if _is_whole(entry) and tree.is_visible(entry)]


def overlay_at(mountpoint: bytes) -> Overlay:
    """The overlay mounted at a path, the topmost if several are. Raises MountNotFound with what is there instead."""
    entries = read()
    tree = MountTree(entries)
    path = os.path.normpath(os.path.join(os.getcwdb(), mountpoint))
    found = tree.at(path)
    if found is None or found.mountpoint != path:
        path = os.path.realpath(path)
        found = tree.at(path)
    if found is not None and found.mountpoint == path and _is_whole(found):
        return overlay_of(found, ModuleDefaults.read())
    raise MountNotFound(mountpoint=display(mountpoint), hint=_near_miss(path, found, entries))


def _near_miss(path: bytes, found: MountEntry | None, entries: list[MountEntry]) -> str | None:
    if found is not None and found.fstype == "overlay":
        if found.root != b"/":
            whole = [entry for entry in entries if entry.device == found.device and entry.root == b"/"]
            where = f": name {display(whole[0].mountpoint)} instead" if whole else ""
            return f"{display(path)} shows only the directory {display(found.root)} of an overlay{where}"
        return f"it lies inside the overlay at {display(found.mountpoint)}: name that instead"
    if any(entry.mountpoint == path and entry.fstype == "overlay" for entry in entries):
        cover = found.fstype if found is not None else "mount"
        return f"there is an overlay, but a {cover} mounted over it hides it: unmount that first"
    below = [entry for entry in entries if _is_whole(entry) and is_at_or_below(entry.mountpoint, path)]
    if below:
        return f"there is one at {display(below[0].mountpoint)}: name that instead"
    return None


def _is_whole(entry: MountEntry) -> bool:
    return entry.fstype == "overlay" and entry.root == b"/"


def overlay_of(
    entry: MountEntry, defaults: ModuleDefaults, is_directory: Callable[[bytes], bool] = os.path.isdir
) -> Overlay:
    """What a line of mountinfo says of an overlay. ``is_directory`` decides between two readings of a backslash."""
    shown = list(_options(entry.super_options))
    of = dict(shown)
    switches = {name: _switch(of.get(name), default=getattr(defaults, name.decode())) for name in _SWITCHES}
    lowers, data_only = split_lowerdir(of.get(b"lowerdir", b""))
    metadata, lowers = split_metadata(
        lowers + tuple(unescape_octal(value) for name, value in shown if name == b"lowerdir+")
    )
    return Overlay(
        mount_id=entry.mount_id,
        mountpoint=entry.mountpoint,
        device=entry.device,
        source=entry.source,
        mount_options=entry.options,
        super_options=entry.super_options,
        read_only=b"ro" in of,
        metadata=metadata,
        lowers=lowers,
        data_only=data_only + tuple(unescape_octal(value) for name, value in shown if name == b"datadir+"),
        upper=_layer_path(of.get(b"upperdir"), is_directory),
        work=_layer_path(of.get(b"workdir"), is_directory),
        metacopy=switches[b"metacopy"],
        redirect_dir=_redirect_dir(of.get(b"redirect_dir"), defaults, metacopy=switches[b"metacopy"]),
        index=switches[b"index"],
        nfs_export=switches[b"nfs_export"],
        userxattr=b"userxattr" in of,
        # newer kernels show `volatile` as `fsync=volatile`
        volatile=b"volatile" in of or of.get(b"fsync") == b"volatile",
        xino=of.get(b"xino", b"auto" if defaults.xino_auto else b"off").decode(),
        verity=of.get(b"verity", b"off").decode(),
        other_options=tuple(_others(shown)),
    )


def split_metadata(lowers: tuple[bytes, ...]) -> tuple[tuple[bytes, ...], tuple[bytes, ...]]:
    """The two halves of a metadata layer of ours, if the lower layers begin with them, and the others."""
    halves, others = lowers[:2], lowers[2:]
    names = tuple(os.path.split(half) for half in halves)
    if [name for _, name in names] == [FILES, REST] and names[0][0] == names[1][0] and others:
        return halves, others
    return (), lowers


def unmounted_overlay(upper: bytes, lowers: Sequence[bytes]) -> Overlay:
    """An upper layer with its lower ones, mounted nowhere: mount point and options say nothing."""
    nowhere = MountEntry(-1, -1, (0, 0), b"/", b"", (), "overlay", b"", b"")
    metadata, others = split_metadata(tuple(lowers))
    return replace(overlay_of(nowhere, ModuleDefaults()), upper=upper, metadata=metadata, lowers=others)


_SWITCHES = (b"metacopy", b"index", b"nfs_export")
_KNOWN = {*_SWITCHES, *_LAYER_OPTIONS, b"redirect_dir", b"userxattr", b"volatile", b"xino", b"verity", b"ro", b"rw"}


def _others(shown: list[tuple[bytes, bytes]]) -> Iterator[bytes]:
    for name, value in shown:
        if name not in _KNOWN and (name, value) != (b"fsync", b"volatile"):
            yield name + b"=" + value if value else name


def _options(super_options: bytes) -> Iterator[tuple[bytes, bytes]]:
    for option in super_options.split(b","):
        name, _, value = option.partition(b"=")
        # lowerdir+=PATH: the first "=" ends the name, so the plus sign is part of it
        yield unescape_octal(name), value


def _switch(value: bytes | None, *, default: bool) -> bool:
    return default if value is None else value == b"on"


def _redirect_dir(shown: bytes | None, defaults: ModuleDefaults, *, metacopy: bool) -> str:
    """What the kernel does with redirects.

    Up to 6.4 ``metacopy=on`` turns redirects on without showing it, and ``off`` is shown as the mounter wrote it.
    """
    follow = "follow" if defaults.redirect_always_follow else "nofollow"
    if shown == b"off":
        return follow
    if shown is not None:
        return shown.decode()
    return "on" if metacopy or defaults.redirect_dir else follow


def _layer_path(raw: bytes | None, is_directory: Callable[[bytes], bool]) -> bytes | None:
    """An upper or work path: the mounter's spelling, or the plain path where it was given by descriptor (6.13)."""
    if raw is None:
        return None
    plain = unescape_octal(raw)
    path = unescape_option(plain)
    return plain if path != plain and not is_directory(path) and is_directory(plain) else path


def _parameter(name: str) -> str:
    try:
        with open(f"{_PARAMETERS}/{name}") as file:
            return file.read().strip()
    except OSError:
        return ""


def redirect_max() -> int:
    """The longest redirect, in bytes, that the overlay module writes; a longer one fails with EXDEV."""
    value = _parameter("redirect_max")
    return int(value) if value.isdigit() else _REDIRECT_MAX


def lower_identity(layer: bytes) -> str:
    """What a layer is, across reboots and remounts: file system, source, path in it, and the inode of its root.

    Not the device number: NFS and FUSE choose it anew at every mount. A bind mount of the same directory is the same
    layer. Raises OSError where the layer cannot be reached.
    """
    path = os.path.realpath(layer)
    entry = MountTree(read()).at(path)
    if entry is None:
        raise FileNotFoundError(f"no mount holds {display(layer)}")
    return f"{entry.fstype}:{quote(entry.source)}:{quote(entry.inside(path))}:{os.stat(layer).st_ino}"
