"""Whether a mount is fit for marking, and what stands against it. Decides only; :mod:`.probe` looks.

Each rule is a kernel fact of ``docs/how-it-works.md``. Every finding names the option, the path and the way out (I7).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

from promoterd.overlay.facts import Facts, Host, Misplaced, Project, Space, Trial
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

NEEDED_CAPABILITIES = {
    "CAP_SYS_ADMIN": "reads and writes trusted.overlay.* attributes and reconfigures the mount",
    "CAP_DAC_OVERRIDE": "works in directories of other users",
    "CAP_FOWNER": "sets times and links files of other users",
    "CAP_CHOWN": "lets copied-up ancestors follow the owner on the server",
}
USEFUL_CAPABILITIES = {
    "CAP_SYS_PTRACE": "finds the processes that pin a directory",
    "CAP_FSETID": "keeps the set-group-id bit of ancestors that follow the server",
}


class Severity(StrEnum):
    """``refuse`` makes a mount unfit for the backend; the others are for people to read."""

    REFUSE = "refuse"
    WARN = "warn"
    INFO = "info"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that stands against a backend on a mount, or that a user should know, and the way out."""

    severity: Severity
    option: str
    message: str
    remedy: str


def is_fit(findings: Sequence[Finding]) -> bool:
    """Whether nothing is refused."""
    return all(finding.severity is not Severity.REFUSE for finding in findings)


def marking_findings(overlay: Overlay, facts: Facts) -> list[Finding]:
    """What stands against copying up and marking in the upper layer of this mount, refusals first."""
    found = [
        *_host(facts.host, display(overlay.mountpoint)),
        *_trial(facts.host.trial, display(overlay.mountpoint)),
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
            _refuse(
                "kernel",
                f"the kernel {facts.host.kernel} under {display(overlay.mountpoint)} does not mark a directory when a "
                "readdir finds it complete: the patch for that (ovl-finalize-dir) was never merged",
                "use `backend: opaque`, or boot a kernel with the patch",
            ),
        )
    return found


def _refuse(option: str, message: str, remedy: str) -> Finding:
    return Finding(Severity.REFUSE, option, message, remedy)


def _warn(option: str, message: str, remedy: str) -> Finding:
    return Finding(Severity.WARN, option, message, remedy)


def _host(host: Host, mountpoint: str) -> Iterator[Finding]:
    for capability, why in NEEDED_CAPABILITIES.items():
        if capability not in host.capabilities:
            yield _refuse(capability, f"this process lacks {capability}, which {why} at {mountpoint}", "run it as root")
    if not host.initial_user_namespace:
        yield _refuse(
            "user namespace",
            "this process runs in a user namespace, where the trusted.overlay.* attributes of the overlay at "
            f"{mountpoint} cannot be seen",
            "run it in the initial user namespace",
        )
    if not host.openat2:
        yield _refuse(
            "kernel",
            f"the kernel {host.kernel} lacks openat2, which keeps every step beneath {mountpoint}",
            "boot Linux 5.6 or newer",
        )
    for capability, why in USEFUL_CAPABILITIES.items():
        if capability not in host.capabilities:
            yield _warn(capability, f"this process lacks {capability}, which {why} at {mountpoint}", "run it as root")


def _trial(trial: Trial, mountpoint: str) -> Iterator[Finding]:
    if trial.error:
        yield _refuse(
            "kernel",
            f"what the kernel can do for {mountpoint} is unknown, no test mount was possible: {trial.error}",
            "run it as root, outside containers, on a kernel with overlayfs and tmpfs",
        )
        return
    wanted = {
        "metadata-only copy-up (metacopy=on)": trial.metacopy,
        "an absolute redirect for a linked file (redirect_dir=on)": trial.absolute_redirect,
        "a reconfigure that makes a mark take effect": trial.opaque_takes_effect,
    }
    for what, works in wanted.items():
        if not works:
            yield _refuse(
                "kernel",
                f"a test mount showed that the kernel lacks {what}, which {mountpoint} needs",
                "boot Linux 5.15 or newer",
            )
    if trial.reconfigure == "remount":
        yield Finding(
            Severity.INFO,
            "kernel",
            f"the kernel has no fspick: marks at {mountpoint} are activated by a remount with the same flags",
            "Linux 5.2 or newer has it",
        )


def _upper(overlay: Overlay) -> Iterator[Finding]:
    mountpoint = display(overlay.mountpoint)
    if overlay.upper is None:
        yield _refuse(
            "upperdir",
            f"the overlay at {mountpoint} has no upper layer (upperdir) to promote into",
            "mount it with upperdir= and workdir= on a local file system",
        )
    elif overlay.read_only or overlay.mount_read_only:
        what = "the overlay" if overlay.read_only else "this mount of the overlay"
        yield _refuse("ro", f"{what} at {mountpoint} is read-only (ro)", f"mount -o remount,rw {mountpoint}")
    if overlay.volatile:
        yield _refuse(
            "volatile",
            f"the overlay at {mountpoint} is volatile: a power loss leaves its upper layer "
            f"{display(overlay.upper or b'')} in any state, marks before what they rely on",
            "mount it without volatile, with a new upper layer (or this one, after a clean unmount and the removal of "
            "work/incompat/volatile in the work directory)",
        )


def _options(overlay: Overlay, facts: Facts) -> Iterator[Finding]:
    mountpoint = display(overlay.mountpoint)
    if overlay.userxattr:
        yield _refuse(
            "userxattr",
            f"the overlay at {mountpoint} is mounted with userxattr, which excludes redirects and metacopy",
            "mount it as root without userxattr, with a new upper layer",
        )
    if overlay.nfs_export:
        yield _refuse(
            "nfs_export",
            f"the overlay at {mountpoint} is mounted with nfs_export=on, which excludes metacopy=on",
            "mount it with nfs_export=off",
        )
    if not overlay.metacopy:
        yield _refuse(
            "metacopy",
            f"the overlay at {mountpoint} is mounted without metacopy=on: a copy-up would copy the data of every file",
            "mount it with metacopy=on",
        )
    if overlay.redirect_dir != "on":
        yield _refuse(
            "redirect_dir",
            f"the overlay at {mountpoint} is mounted with redirect_dir={overlay.redirect_dir}: files of a marked "
            "directory could not find their data",
            "mount it with redirect_dir=on",
        )
    if overlay.xino != "off" and not facts.one_file_system:
        yield _refuse(
            "xino",
            f"the overlay at {mountpoint} is mounted with xino={overlay.xino}: a plain readdir of a marked directory "
            "would look up every entry on the server (several requests per entry)",
            "mount it with xino=off",
        )


def _layers(overlay: Overlay, facts: Facts) -> Iterator[Finding]:
    mountpoint = display(overlay.mountpoint)
    for path in overlay.relative_layers:
        yield _refuse(
            "workdir" if path == overlay.work else "upperdir" if path == overlay.upper else "lowerdir",
            f"the overlay at {mountpoint} was mounted with the relative path {display(path)}, which only the mounter's "
            "working directory explains",
            "mount it with absolute layer paths",
        )
    for misplaced in facts.misplaced:
        yield _refuse(
            "upperdir" if misplaced.layer == overlay.upper else "lowerdir",
            f"the layer {display(misplaced.layer)} of the overlay at {mountpoint} is not what its path shows now: "
            f"{misplaced.seen}",
            "unmount what covers it, or mount the overlay again on what is there now",
        )
    for path in facts.unanswered:
        yield _refuse(
            "lowerdir",
            f"the layer {display(path)} of the overlay at {mountpoint} does not answer",
            "look at its server, then try again",
        )
    for user in facts.second_users:
        yield _refuse(
            "upperdir",
            f"the upper or work directory of the overlay at {mountpoint} is used by another mount: {user}",
            "give each overlay an upper and a work directory of its own",
        )
    if overlay.data_only:
        yield _warn(
            "lowerdir",
            f"the overlay at {mountpoint} has data-only layers; files whose data is there carry redirects in a lower "
            "layer, and their directories are refused",
            "promote what has no such files",
        )


def _upper_file_system(overlay: Overlay, facts: Facts) -> Iterator[Finding]:
    upper, work = display(overlay.upper or b""), display(overlay.work or b"")
    if facts.upper_trusted_xattrs is False:
        yield _refuse(
            "upperdir",
            f"the file system of the upper layer {upper} ({facts.upper_fstype}) has no trusted.* attributes",
            "put upperdir and workdir on ext4, xfs or btrfs",
        )
    if facts.upper_project.clashes_with(facts.work_project):
        number = facts.upper_project.number
        yield _refuse(
            "project quota",
            f"project quota: the upper layer {upper} hands down project id {number}, the work directory {work} does "
            "not, so that copy-up and link fail with EXDEV",
            f"unmount the overlay, then chattr -R -p {number} {work} && chattr -R +P {work}",
        )
    if facts.upper_fstype == "btrfs":
        yield _warn(
            "upperdir",
            f"the upper layer {upper} is on btrfs, whose directories always have one link: that a mark took effect "
            "cannot be proven there",
            "put upperdir and workdir on ext4 or xfs to have the proof",
        )


def _worth_knowing(overlay: Overlay, facts: Facts) -> Iterator[Finding]:
    mountpoint = display(overlay.mountpoint)
    if overlay.upper is not None and not overlay.index:
        yield Finding(
            Severity.INFO,
            "index",
            f"the overlay at {mountpoint} is mounted with index=off: directories with hard-linked files are refused",
            "mount it with index=on, or accept broken links with `hardlinks: break`",
        )
    yield Finding(
        Severity.INFO,
        "redirect_max",
        f"files whose path below {mountpoint} is longer than redirect_max ({facts.host.redirect_max} bytes) cannot be "
        "linked, and their directories are refused",
        "raise /sys/module/overlay/parameters/redirect_max",
    )
    if facts.writer:
        yield Finding(
            Severity.INFO,
            "upperdir",
            f"the upper layer {display(overlay.upper or b'')} is being changed by {facts.writer}",
            "there can be one writer at a time",
        )
