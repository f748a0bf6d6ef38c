"""Whether this machine and this process are fit for marking: the part of :mod:`.fitness` that no mount changes."""

from collections.abc import Iterator

from promoterd.overlay.facts import Host, Trial
from promoterd.overlay.findings import Finding, info, refuse, warn

NEEDED_CAPABILITIES = {
    "CAP_SYS_ADMIN": "reads and writes trusted.overlay.* attributes and reconfigures the mount",
    "CAP_DAC_OVERRIDE": "works in directories of other users",
    "CAP_FOWNER": "sets times and links files of other users",
    "CAP_CHOWN": "lets copied-up ancestors follow the owner on the server",
}
USEFUL_CAPABILITIES = {
    "CAP_SYS_PTRACE": "finds the processes that pin a directory, and those that watch one: a watched directory that is "
    "not known to be is promoted, and the watch stays silent from then on",
    "CAP_FSETID": "keeps the set-group-id bit of ancestors that follow the server",
    "CAP_SETFCAP": "gives files in a metadata layer their capabilities: without it, directories with such are refused "
    "there",
}


def host_findings(host: Host, mountpoint: str) -> Iterator[Finding]:
    """What stands against a mount whatever its options and layers are."""
    yield from _process(host, mountpoint)
    yield from _trial(host.trial, mountpoint)


def _process(host: Host, mountpoint: str) -> Iterator[Finding]:
    for capability, why in NEEDED_CAPABILITIES.items():
        if capability not in host.capabilities:
            yield refuse(capability, f"this process lacks {capability}, which {why} at {mountpoint}", "run it as root")
    if not host.initial_user_namespace:
        yield refuse(
            "user namespace",
            "this process runs in a user namespace, where the trusted.overlay.* attributes of the overlay at "
            f"{mountpoint} cannot be seen",
            "run it in the initial user namespace",
        )
    if not host.openat2:
        yield refuse(
            "kernel",
            f"the kernel {host.kernel} lacks openat2, which keeps every step beneath {mountpoint}",
            "boot Linux 5.6 or newer",
        )
    for capability, why in USEFUL_CAPABILITIES.items():
        if capability not in host.capabilities:
            yield warn(capability, f"for {mountpoint}, this process lacks {capability}, which {why}", "run it as root")
    if host.hidden_processes:
        yield warn(
            "watched",
            f"processes that may not be looked into: {host.hidden_processes}; a directory below {mountpoint} that one "
            "of them watches is promoted all the same, and the watch stays silent from then on",
            "let the security module (AppArmor, SELinux) grant ptrace access to them, or do not promote what they watch"
            if "CAP_SYS_PTRACE" in host.capabilities
            else "run it as root, with CAP_SYS_PTRACE, or do not promote what they watch",
        )


def _trial(trial: Trial, mountpoint: str) -> Iterator[Finding]:
    if trial.error:
        yield refuse(
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
            yield refuse(
                "kernel",
                f"a test mount showed that the kernel lacks {what}, which {mountpoint} needs",
                "boot Linux 5.15 or newer",
            )
    if trial.reconfigure == "remount":
        yield info(
            "kernel",
            f"the kernel has no fspick: marks at {mountpoint} are activated by a remount with the same flags",
            "Linux 5.2 or newer has it",
        )
