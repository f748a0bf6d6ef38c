"""Whether a mount is fit for marking, and what stands against it. Decides only; :mod:`.probe` looks.

Each rule is a kernel fact of ``docs/how-it-works.md``. Every finding names the option, the path and the way out (I7).
"""

from collections.abc import Iterator, Sequence

from promoterd.overlay.facts import Facts, Host, Misplaced, Project, Space, Trial
from promoterd.overlay.findings import Finding, Severity, info, refuse, warn
from promoterd.overlay.fitness_of_hosts import host_findings
from promoterd.overlay.fitness_of_mounts import option_findings, place_findings, upper_findings
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
]

_TOO_SMALL_INODES = 256  # bytes; a power of two, as every size that ext4 has


def is_fit(findings: Sequence[Finding]) -> bool:
    """Whether nothing is refused."""
    return all(finding.severity is not Severity.REFUSE for finding in findings)


def marking_findings(overlay: Overlay, facts: Facts) -> list[Finding]:
    """What stands against copying up and marking in the upper layer of this mount, refusals first."""
    found = [
        *host_findings(facts.host, display(overlay.mountpoint)),
        *upper_findings(overlay),
        *option_findings(overlay, facts),
        *place_findings(overlay, facts),
        *_data_only(overlay),
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


def _data_only(overlay: Overlay) -> Iterator[Finding]:
    if overlay.data_only and not overlay.metadata:
        yield warn(
            "lowerdir",
            f"the overlay at {display(overlay.mountpoint)} has data-only layers; files whose data is there carry "
            "redirects in a lower layer, and their directories are refused",
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
