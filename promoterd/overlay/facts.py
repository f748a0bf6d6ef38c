"""What is known of a host and of a mount's layers beyond the mount options.

Gathered by :mod:`promoterd.overlay.probe`, judged by :mod:`promoterd.overlay.fitness`.
"""

from dataclasses import dataclass, field

from promoterd.overlay.nfs import NfsLayer


@dataclass(frozen=True, slots=True)
class Trial:
    """What an overlay on a tmpfs, mounted for the test in a mount namespace of its own, was seen to do (R16).

    ``error`` says why there was none; then nothing else is known. ``reconfigure`` is ``fspick``, ``remount`` or, where
    neither drops the dentries, empty. ``lazy_data``: a file of a metadata layer has the layer's attributes and the data
    layer's data; ``layer_answers_misses``: a complete directory of it does not ask the layers below for a name.
    """

    error: str = ""
    metacopy: bool = False
    absolute_redirect: bool = False
    reconfigure: str = ""
    opaque_takes_effect: bool = False
    finalizes: bool = False
    data_only_layers: bool = False
    lazy_data: bool = False
    layer_answers_misses: bool = False


@dataclass(frozen=True, slots=True)
class Host:
    """What holds for all mounts of this machine, and for this process."""

    kernel: str
    capabilities: frozenset[str]
    """Effective ones, of those that matter here, as capabilities(7) spells them."""
    initial_user_namespace: bool
    openat2: bool
    redirect_max: int
    """Bytes; the overlay module's parameter."""
    inotify_watches: int
    inotify_instances: int
    """The kernel's limits per user (inotify(7))."""
    trial: Trial
    hidden_processes: int = 0
    """Processes that this one may not look into, so that it cannot know what they watch (R11)."""


@dataclass(frozen=True, slots=True)
class Project:
    """The project id of a directory, and whether what is created in it inherits it (FS_IOC_FSGETXATTR)."""

    number: int = 0
    inherited: bool = False

    def clashes_with(self, source: "Project") -> bool:
        """Whether this directory takes no link to and no rename of what was created below ``source``.

        EXDEV from xfs_link, ext4_link and their renames: a directory that hands its project down takes nothing of
        another project.
        """
        return self.inherited and self.number != (source.number if source.inherited else 0)


@dataclass(frozen=True, slots=True)
class Space:
    """Free space of the upper file system, in bytes and inodes; a file system without a number of inodes has None."""

    free_bytes: int
    total_bytes: int
    free_inodes: int | None
    total_inodes: int | None


@dataclass(frozen=True, slots=True)
class Misplaced:
    """A layer whose path does not lead to what the overlay uses, with what was seen."""

    layer: bytes
    seen: str


@dataclass(frozen=True, slots=True)
class LayerFacts:
    """Where the metadata layer of a mount lies."""

    fstype: str = ""
    trusted_xattrs: bool | None = None
    apart: tuple[bytes, ...] = ()
    """Of its halves, its stage and its graveyard, those that nothing can be renamed to and from its home."""
    with_server: tuple[bytes, ...] = ()
    """Layers of the server on the file system of the metadata layer."""
    inode_bytes: int | None = None
    """Of an ext4 whose device can be read."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What the layers of one mount were seen to be; None is for what could not be found out."""

    host: Host
    one_file_system: bool | None = None
    upper_fstype: str = ""
    upper_trusted_xattrs: bool | None = None
    upper_project: Project = field(default_factory=Project)
    work_project: Project = field(default_factory=Project)
    upper_space: Space | None = None
    upper_inode_bytes: int | None = None
    """Of an ext4 whose device can be read."""
    second_users: tuple[str, ...] = ()
    misplaced: tuple[Misplaced, ...] = ()
    unanswered: tuple[bytes, ...] = ()
    """Layers that did not answer in time: a dead server, most likely."""
    layer: LayerFacts | None = None
    """None where the mount has no metadata layer."""
    other_data: tuple[Misplaced, ...] = ()
    """Data-only layers that are not the same tree as the server's layer in their place."""
    exports: tuple[bytes, ...] = ()
    """``SERVER:/path`` of each of the server's layers that lies on NFS, in their order."""
    nfs: tuple[NfsLayer, ...] = ()
    """The lower layers that lie on NFS, as far as they answered."""
    writer: str = ""
    """Who holds the writer's lock on the upper layer, if anybody does."""
