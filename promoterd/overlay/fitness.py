"""Whether a mount is fit for marking, and what stands against it. Decides only; :mod:`.probe` looks.

Each rule is a kernel fact of ``docs/how-it-works.md``. Every finding names the option, the path and the way out (I7).
"""

from collections.abc import Iterator, Sequence

from promoterd.overlay.facts import Facts, Host, Misplaced, Project, Space, Trial
from promoterd.overlay.findings import Finding, Severity, info, refuse, warn
from promoterd.overlay.fitness_of_hosts import host_findings
from promoterd.overlay.mounts import Overlay
from promoterd.paths import display

__all__ = [
    "Facts",
    "Finding",
    "Host",
    "Misplaced",
    "Project",
    "Severity",
    "Space",
    "Trial",
    "finalize_findings",
    "is_fit",
    "marking_findings",
    "placement_findings",
]

_TOO_SMALL_INODES = 256  # bytes; a power of two, as every size that ext4 has


def is_fit(findings: Sequence[Finding]) -> bool:
    """Whether nothing is refused."""
    return all(finding.severity is not Severity.REFUSE for finding in findings)


def marking_findings(overlay: Overlay, facts: Facts) -> list[Finding]:
    """What stands against copying up and marking in the upper layer of this mount, refusals first."""
    found = [
        *host_findings(facts.host, display(overlay.mountpoint)),
        *_upper(overlay),
        *_options(overlay, facts),
        *_layers(overlay, facts),
        *_upper_file_system(overlay, facts),
        *_worth_knowing(overlay, facts),
    ]
    return sorted(found, key=lambda finding: list(Severity).index(finding.severity))


def finalize_findings(overlay: Overlay, facts: Facts) -> list[Finding]:
    """As :func:`marking_findings`, for a kernel that marks by itself."""
    found = marking_findings(overlay, facts)
    if not facts.host.trial.error and not facts.host.trial.finalizes:
        found.insert(
            0,
            refuse(
                "kernel",
                f"the kernel {facts.host.kernel} under {display(overlay.mountpoint)} does not mark a directory when a "
                "readdir finds it complete: the patch for that (ovl-finalize-dir) was never merged",
                "use `backend: opaque`, or boot a kernel with the patch",
            ),
        )
    return found


def _upper(overlay: Overlay) -> Iterator[Finding]:
    mountpoint = display(overlay.mountpoint)
    if overlay.upper is None:
        yield refuse(
            "upperdir",
            f"the overlay at {mountpoint} has no upper layer (upperdir) to promote into",
            "mount it with upperdir= and workdir= on a local file system",
        )
    elif overlay.read_only or overlay.mount_read_only:
        what = "the overlay" if overlay.read_only else "this mount of the overlay"
        yield refuse("ro", f"{what} at {mountpoint} is read-only (ro)", f"mount -o remount,rw {mountpoint}")
    if overlay.volatile:
        yield refuse(
            "volatile",
            f"the overlay at {mountpoint} is volatile: a power loss leaves its upper layer "
            f"{display(overlay.upper or b'')} in any state, marks before what they rely on",
            "mount it without volatile, with a new upper layer (or this one, after a clean unmount and the removal of "
            "work/incompat/volatile in the work directory)",
        )


def _options(overlay: Overlay, facts: Facts) -> Iterator[Finding]:
    mountpoint = display(overlay.mountpoint)
    if overlay.userxattr:
        yield refuse(
            "userxattr",
            f"the overlay at {mountpoint} is mounted with userxattr, which excludes redirects and metacopy",
            "mount it as root without userxattr, with a new upper layer",
        )
    if overlay.nfs_export:
        yield refuse(
            "nfs_export",
            f"the overlay at {mountpoint} is mounted with nfs_export=on, which excludes metacopy=on",
            "mount it with nfs_export=off",
        )
    if not overlay.metacopy:
        yield refuse(
            "metacopy",
            f"the overlay at {mountpoint} is mounted without metacopy=on: a copy-up would copy the data of every file",
            "mount it with metacopy=on",
        )
    if overlay.redirect_dir != "on":
        yield refuse(
            "redirect_dir",
            f"the overlay at {mountpoint} is mounted with redirect_dir={overlay.redirect_dir}: files of a marked "
            "directory could not find their data",
            "mount it with redirect_dir=on",
        )
    if overlay.xino != "off" and not facts.one_file_system:
        yield refuse(
            "xino",
            f"the overlay at {mountpoint} is mounted with xino={overlay.xino}: a plain readdir of a marked directory "
            "would look up every entry on the server (several requests per entry)",
            "mount it with xino=off",
        )


def placement_findings(overlay: Overlay, facts: Facts) -> Iterator[Finding]:
    """Layers that cannot be reached as they are named, or do not answer."""
    mountpoint = display(overlay.mountpoint)
    for path in overlay.relative_layers:
        yield refuse(
            "workdir" if path == overlay.work else "upperdir" if path == overlay.upper else "lowerdir",
            f"the overlay at {mountpoint} was mounted with the relative path {display(path)}, which only the mounter's "
            "working directory explains",
            "mount it with absolute layer paths",
        )
    for misplaced in facts.misplaced:
        yield refuse(
            "upperdir" if misplaced.layer == overlay.upper else "lowerdir",
            f"the layer {display(misplaced.layer)} of the overlay at {mountpoint} is not what its path shows now: "
            f"{misplaced.seen}",
            "unmount what covers it, or mount the overlay again on what is there now",
        )
    for path in facts.unanswered:
        yield refuse(
            "lowerdir",
            f"the layer {display(path)} of the overlay at {mountpoint} does not answer",
            "look at its server, then try again",
        )


def _layers(overlay: Overlay, facts: Facts) -> Iterator[Finding]:
    mountpoint = display(overlay.mountpoint)
    yield from placement_findings(overlay, facts)
    for user in facts.second_users:
        yield refuse(
            "upperdir",
            f"the upper or work directory of the overlay at {mountpoint} is used by another mount: {user}",
            "give each overlay an upper and a work directory of its own",
        )
    if overlay.data_only:
        yield warn(
            "lowerdir",
            f"the overlay at {mountpoint} has data-only layers; files whose data is there carry redirects in a lower "
            "layer, and their directories are refused",
            "promote what has no such files",
        )


def _upper_file_system(overlay: Overlay, facts: Facts) -> Iterator[Finding]:
    upper, work = display(overlay.upper or b""), display(overlay.work or b"")
    if facts.upper_trusted_xattrs is False:
        yield refuse(
            "upperdir",
            f"the file system of the upper layer {upper} ({facts.upper_fstype}) has no trusted.* attributes",
            "put upperdir and workdir on ext4, xfs or btrfs",
        )
    if facts.upper_project.clashes_with(facts.work_project):
        number = facts.upper_project.number
        yield refuse(
            "project quota",
            f"project quota: the upper layer {upper} hands down project id {number}, the work directory {work} does "
            "not, so that copy-up and link fail with EXDEV",
            f"unmount the overlay, then chattr -R -p {number} {work} && chattr -R +P {work}",
        )
    if facts.upper_fstype == "btrfs":
        yield warn(
            "upperdir",
            f"the upper layer {upper} is on btrfs, whose directories always have one link: that a mark took effect "
            "cannot be proven there",
            "put upperdir and workdir on ext4 or xfs to have the proof",
        )
    if facts.upper_inode_bytes is not None and facts.upper_inode_bytes <= _TOO_SMALL_INODES:
        yield info(
            "upperdir",
            f"the upper layer {upper} is on ext4 with inodes of {facts.upper_inode_bytes} bytes: a file's redirect "
            "does not fit in beside its other attributes and takes a block of its own, which costs 4 KiB for each file "
            "and makes a promotion about half as fast",
            "make the file system of a new upper layer with mkfs.ext4 -I 512",
        )


def _worth_knowing(overlay: Overlay, facts: Facts) -> Iterator[Finding]:
    mountpoint = display(overlay.mountpoint)
    if overlay.upper is not None and not overlay.index:
        yield info(
            "index",
            f"the overlay at {mountpoint} is mounted with index=off: directories with hard-linked files are refused",
            "mount it with index=on, or accept broken links with `hardlinks: break`",
        )
    yield info(
        "redirect_max",
        f"files whose path below {mountpoint} is longer than redirect_max ({facts.host.redirect_max} bytes) cannot be "
        "linked, and their directories are refused",
        "raise /sys/module/overlay/parameters/redirect_max",
    )
    if facts.writer:
        yield info(
            "upperdir",
            f"the upper layer {display(overlay.upper or b'')} is being changed by {facts.writer}",
            "there can be one writer at a time",
        )
