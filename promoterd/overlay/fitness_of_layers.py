"""Whether a mount is fit for a metadata layer of ours, and what stands against it. Decides only, as :mod:`.fitness`.

The layout that it needs is described in ``docs/layout.md``, and made by ``promoterd layout``.
"""

from collections.abc import Iterator

from promoterd.overlay.facts import Facts, LayerFacts
from promoterd.overlay.findings import Finding, Severity, info, refuse
from promoterd.overlay.fitness_of_hosts import host_findings
from promoterd.overlay.fitness_of_mounts import option_findings, place_findings, upper_findings
from promoterd.overlay.mountinfo import is_network
from promoterd.overlay.mounts import FILES, REST, Overlay
from promoterd.overlay.remedy import layout_command
from promoterd.paths import display

LAYOUT = "layout"
"""The option of a finding that no other mount option can mend: the mount is laid out otherwise."""
_SMALL_INODES = 256  # bytes


def layer_findings(overlay: Overlay, facts: Facts) -> list[Finding]:
    """What stands against building directories in the metadata layer of this mount, refusals first."""
    found = [
        *host_findings(facts.host, display(overlay.mountpoint)),
        *_kernel(overlay, facts),
        *upper_findings(overlay),
        *option_findings(overlay, facts),
        *_options(overlay),
        *_layout(overlay, facts),
        *place_findings(overlay, facts),
        *(_home(overlay, facts.layer) if facts.layer is not None else ()),
        *_worth_knowing(overlay, facts),
    ]
    return sorted(found, key=lambda finding: list(Severity).index(finding.severity))


def _kernel(overlay: Overlay, facts: Facts) -> Iterator[Finding]:
    trial, mountpoint = facts.host.trial, display(overlay.mountpoint)
    if trial.error:
        return
    if not trial.data_only_layers:
        yield refuse(
            "kernel",
            f"the kernel {facts.host.kernel} has no data-only layers, from which the files of a metadata layer at "
            f"{mountpoint} would read",
            "boot Linux 6.5 or newer, or use `backend: opaque`",
        )
    elif not (trial.lazy_data and trial.layer_answers_misses):
        what = (
            "asks the server for a name that a complete directory of a metadata layer does not have"
            if trial.lazy_data
            else "does not find the data of a file in a metadata layer, or not its attributes"
        )
        yield refuse(
            "kernel",
            f"a test mount showed that the kernel {facts.host.kernel} {what}, which {mountpoint} would need",
            "boot a stock kernel, Linux 6.5 or newer, or use `backend: opaque`",
        )


def _options(overlay: Overlay) -> Iterator[Finding]:
    mountpoint = display(overlay.mountpoint)
    if overlay.index:
        yield refuse(
            "index",
            f"the overlay at {mountpoint} is mounted with index=on: a file that was copied up from the server and then "
            "stands in a metadata layer, or the other way round, answers ESTALE",
            "mount it with index=off",
        )
    if overlay.verity == "require":
        yield refuse(
            "verity",
            f"the overlay at {mountpoint} is mounted with verity=require, and files of a metadata layer have no digest",
            "mount it with verity=off",
        )


def _layout(overlay: Overlay, facts: Facts) -> Iterator[Finding]:
    mountpoint = display(overlay.mountpoint)
    way_out = f"`{layout_command(overlay, facts)}` prints how to mount it"
    if not overlay.metadata:
        yield refuse(
            LAYOUT,
            f"the overlay at {mountpoint} has no metadata layer: its topmost lower layers are not {display(FILES)} and "
            f"{display(REST)} of one directory",
            way_out,
        )
    elif not overlay.data_only:
        yield refuse(
            LAYOUT,
            f"the overlay at {mountpoint} has a metadata layer and no data-only layer: its files would have no data",
            way_out,
        )
    elif len(overlay.data_only) != len(overlay.lowers):
        yield refuse(
            LAYOUT,
            f"the overlay at {mountpoint} has {len(overlay.data_only)} data-only layers for {len(overlay.lowers)} of "
            "the server's: a file would be looked for in the wrong ones",
            f"give it one data-only layer for each of the server's, in the same order: {way_out}",
        )
    for other in facts.other_data:
        yield refuse(
            LAYOUT,
            f"the data-only layer {display(other.layer)} of the overlay at {mountpoint} is not the same tree as the "
            f"server's layer in its place: {other.seen}",
            "mount the same export there once more, with nosharecache, and keep the order of the layers",
        )


def _home(overlay: Overlay, layer: LayerFacts) -> Iterator[Finding]:
    mountpoint, home = display(overlay.mountpoint), display(overlay.layer_home or b"")
    local = "put it on ext4, xfs or btrfs of a local disk, and mount the overlay with it there"
    if is_network(layer.fstype):
        yield refuse(
            LAYOUT,
            f"the metadata layer {home} of the overlay at {mountpoint} is on {layer.fstype}, so that a lookup asks a "
            "server after all",
            local,
        )
    elif layer.trusted_xattrs is False:
        yield refuse(
            LAYOUT,
            f"the file system of the metadata layer {home} of the overlay at {mountpoint} ({layer.fstype}) has no "
            "trusted.* attributes",
            local,
        )
    for server in layer.with_server:
        yield refuse(
            LAYOUT,
            f"the layer {display(server)} of the overlay at {mountpoint} is on the file system of the metadata layer "
            f"{home}, so that nothing is spared, and inode numbers do not tell which of them answers",
            "put the metadata layer on a file system of its own",
        )
    for directory in layer.apart:
        yield refuse(
            LAYOUT,
            f"{display(directory)} is on another file system or mount than {home}, so that nothing that was built can "
            f"be moved into place in the overlay at {mountpoint}",
            "keep both halves, stage and graveyard in one directory of one mount (and one subvolume)",
        )


def _worth_knowing(overlay: Overlay, facts: Facts) -> Iterator[Finding]:
    home = display(overlay.layer_home or b"")
    if facts.layer is not None and facts.layer.inode_bytes is not None and facts.layer.inode_bytes <= _SMALL_INODES:
        yield info(
            "lowerdir",
            f"the metadata layer {home} is on ext4 with inodes of {facts.layer.inode_bytes} bytes: a file's redirect "
            "may take a block of its own, which costs 4 KiB for each file",
            "make the file system of a new metadata layer with mkfs.ext4 -I 512",
        )
    if facts.writer:
        yield info(
            "upperdir",
            f"the upper layer {display(overlay.upper or b'')} is being changed by {facts.writer}",
            "there can be one writer at a time",
        )
