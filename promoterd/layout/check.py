"""Whether the kernel and the servers take a layout: found by mounting it where nobody sees it."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from promoterd.errors import KernelTooOld, PromoterdError, Refused
from promoterd.layout.plan import Layout
from promoterd.layout.rehearsal import Seen
from promoterd.layout.survey import existing
from promoterd.overlay.facts import Trial
from promoterd.paths import display

PATIENCE = 90.0
"""Seconds that the servers have; mount.nfs itself would go on for two minutes."""
_LOOPS = "symbolic links"  # ELOOP, in the C locale
_BOOT = "boot Linux 6.5 or newer; without it, `backend: opaque` needs no layout"


def check(layout: Layout, trial: Trial, *, patience: float = PATIENCE) -> Seen:
    """Mount the servers, and above them an overlay with new layers on the file system of the real ones; then forget it.

    Raises KernelTooOld, and Refused with what failed and the way out.
    """
    if trial.error:
        raise PromoterdError(
            f"no test mount is possible here: {trial.error}",
            hint="run it as root, outside containers, on a kernel with overlayfs and tmpfs",
        )
    if not trial.data_only_layers:
        raise KernelTooOld(needed="data-only layers in overlayfs", hint=_BOOT)
    if not (trial.lazy_data and trial.layer_answers_misses):
        raise KernelTooOld(needed="data-only layers that are looked up when a file is opened", hint=_BOOT)
    with _scratch(layout.home) as scratch:
        seen = _rehearse(layout, scratch, patience)
    if seen.failed:
        raise Refused(path=display(layout.mountpoint), reason=f"{seen.failed}: {seen.reason}", hint=_hint(seen))
    return seen


@contextmanager
def _scratch(home: bytes) -> Iterator[bytes]:
    directory = tempfile.mkdtemp(prefix=b".promoterd-check-", dir=existing(home))
    try:
        yield directory
    finally:
        shutil.rmtree(directory)


def _rehearse(layout: Layout, scratch: bytes, patience: float) -> Seen:
    servers = [
        [[os.fsdecode(export.source), options.decode()] for options in (layout.nfs_options, layout.data_options)]
        for export in layout.exports
    ]
    with subprocess.Popen(
        [sys.executable, "-P", "-m", "promoterd.layout.rehearsal"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,  # so that its mount(8) and mount.nfs(8) can be ended with it
    ) as process:
        try:
            asked = json.dumps({"servers": servers, "scratch": os.fsdecode(scratch)}).encode()
            out, err = process.communicate(asked, timeout=patience)
        except BaseException as error:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            if isinstance(error, subprocess.TimeoutExpired):
                return Seen(_names(layout), f"no answer within {patience:g} s")
            raise
    if process.returncode:
        said = err.decode(errors="replace").strip().splitlines() or [f"exit status {process.returncode}"]
        return Seen("the test process", said[-1])
    return Seen(**json.loads(out))


def _names(layout: Layout) -> str:
    return ", ".join(display(export.source) for export in layout.exports)


def _hint(seen: Seen) -> str:
    if seen.failed.startswith("the overlay"):
        if _LOOPS in seen.reason:
            return (
                "two layers lie in each other on the server: export and name directories of which none is in another; "
                "the kernel log says which"
            )
        return "the kernel log (`dmesg`) says what overlayfs refused"
    if seen.failed.startswith("the file"):
        return "look whether the export is a re-export or a replica that answers differently from mount to mount"
    return "look at the server's name, its export and --nfs-options; `showmount -e SERVER` lists exports of NFS 3"
