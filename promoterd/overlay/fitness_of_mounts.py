"""What marking and a metadata layer demand alike of a mount's options and layers: what the fitness of both shares."""

from collections.abc import Iterator

from promoterd.overlay.facts import Facts
from promoterd.overlay.findings import Finding, refuse
from promoterd.overlay.mounts import Overlay
from promoterd.paths import display


def upper_findings(overlay: Overlay) -> Iterator[Finding]:
    """Whether there is an upper layer, for writing, that a power loss leaves as it was synced."""
    mountpoint = display(overlay.mountpoint)
    if overlay.upper is None:
        yield refuse(
            "upperdir",
            f"the overlay at {mountpoint} has no upper layer (upperdir), which what users write "
            "and the writer's lock need",
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


def option_findings(overlay: Overlay, facts: Facts) -> Iterator[Finding]:
    """The options that metacopies and redirects need, and those that make them dear."""
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
            f"the overlay at {mountpoint} is mounted without metacopy=on: a copy-up would copy the data of every file, "
            "and a file without data of its own cannot be opened",
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


def place_findings(overlay: Overlay, facts: Facts) -> Iterator[Finding]:
    """Whether the layers are where their paths say, answer, and belong to this overlay alone."""
    yield from reading_findings(overlay, facts)
    for user in facts.second_users:
        yield refuse(
            "upperdir",
            f"a directory of the overlay at {display(overlay.mountpoint)} that only one mount may use is used by "
            f"another: {user}",
            "give each overlay an upper, a work and a layer directory of its own",
        )


def reading_findings(overlay: Overlay, facts: Facts) -> Iterator[Finding]:
    """Whether the layers are where their paths say, and answer."""
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
