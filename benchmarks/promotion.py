"""How fast a promotion is, against coreutils' ``chown -hR`` and against its own trigger alone, on the same local tree.

``python -m benchmarks.promotion``, as root. One round is one run of each, every time on a fresh upper layer, forwards
and backwards in turn; a ratio compares the runs of one round, and what is printed is the median of the rounds.

- ``chown -hR``: what an administrator would do by hand. It copies up, neither verifies nor marks, and leaves the upper
  layer unwritten.
- trigger: link and unlink of each file, utimensat of each directory, and nothing else.
- promotion: from the first entry to the durable mark, with verification, provenance, fsync and marks.
- planned: the same and the planning before it, so a whole `promoterd promote` but for its start.

The redirect that the kernel writes on each file does not fit into an ext4 inode of 256 bytes, mkfs.ext4's default,
beside its other attributes, and then takes a block of 4 KiB of its own; with 512 bytes it does. Both are measured.
"""

import json
import os
import stat
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from benchmarks import stage
from promoterd.cli.direct import work_on
from promoterd.mounted import Mounted
from promoterd.overlay import copyup, mounts
from promoterd.overlay.listing import Layers
from promoterd.overlay.scratch import Scratch, open_scratch
from promoterd.policy.load import parse_policy
from promoterd.promotion import Outcome, Promotion, promote

TREE = b"release"
FILES = 100
"""In one directory."""
TARGET = 0.5
"""What a promotion has to reach of ``chown -hR``'s entries per second."""
INODE_SIZES = (512, 256)
"""What the documentation recommends, and mkfs.ext4's default (bytes)."""
_POLICY = """
state_dir: {state}
mounts:
  - mountpoint: {mountpoint}
    backend: opaque
    limits: {{entries_per_second: unlimited, min_free_space: 0%, min_free_inodes: 0%}}
    rules:
      - {{path: release, min_age: 0s, max_entries: 1000000}}
      - {{path: release/**, min_age: 0s}}
"""


def chown(mountpoint: bytes) -> dict[str, float]:
    """Seconds that ``chown -hR`` takes."""
    started = time.perf_counter()
    subprocess.run(["chown", "-hR", "0:0", mountpoint + b"/" + TREE], check=True)
    return {"chown": time.perf_counter() - started}


def trigger(mountpoint: bytes) -> dict[str, float]:
    """Seconds that the copy-up alone takes, as the backend triggers it."""
    overlay = mounts.overlay_at(mountpoint)
    scratch_name = b".promoterd"
    with Layers(overlay) as layers:
        Scratch(scratch_name).ensure(layers.root, layers.upper, layers.lowers)
        scratch = open_scratch(layers.root, scratch_name)
        started = time.perf_counter()
        for _, names, others, descriptor in os.fwalk(os.fsdecode(TREE), dir_fd=layers.root):
            for name in names:
                copyup.copy_up(descriptor, name, stat.S_IFDIR, scratch)
            for name in others:
                copyup.copy_up(descriptor, name, stat.S_IFREG, scratch)
        seconds = time.perf_counter() - started
        os.close(scratch)
        return {"trigger": seconds}


def promotion(mountpoint: bytes) -> dict[str, float]:
    """Seconds of a promotion, as `promoterd promote` does it, from its first entry and from its plan on."""
    steps: list[float] = []

    async def work(mount: Mounted) -> Promotion:
        steps.append(time.perf_counter())
        done = await promote(mount, TREE, progress=lambda *_: steps.append(time.perf_counter()))
        steps.append(time.perf_counter())
        return done

    with tempfile.TemporaryDirectory() as state:
        policy = parse_policy(_POLICY.format(state=state, mountpoint=os.fsdecode(mountpoint)))
        done = work_on(policy, policy.mounts[0], work)
    if done.outcome is not Outcome.MARKED:
        sys.exit(f"the promotion ended as {done.outcome}: {done.reason}")
    return {"promotion": steps[-1] - steps[1], "planned": steps[-1] - steps[0]}


WAYS: tuple[Callable[[bytes], dict[str, float]], ...] = (chown, trigger, promotion)


@dataclass(frozen=True)
class Result:
    """Medians: entries per second of each way, and how each compares with ``chown -hR`` within a round."""

    inode_size: int
    entries: int
    rounds: int
    entries_per_second: dict[str, float]
    ratio_to_chown: dict[str, float]

    @property
    def reached(self) -> bool:
        """Whether the promotion is as fast as wanted."""
        return self.ratio_to_chown["promotion"] >= TARGET


def measure(entries: int, rounds: int, inode_size: int) -> Result:
    """Run every way ``rounds`` times, after one that does not count, on inodes of so many bytes."""
    rates: dict[str, list[float]] = defaultdict(list)
    with stage.ext4(inode_size) as home:
        directories = [TREE + b"/d%04d" % number for number in range(max(1, entries // (FILES + 1)))]
        count = stage.build_tree(home + b"/lower", directories, FILES)
        with stage.overlay(home, home + b"/lower", b"warm-up") as mountpoint:
            chown(mountpoint)
        for number in range(rounds):
            for run in WAYS if number % 2 else reversed(WAYS):
                with stage.overlay(home, home + b"/lower", b"%s-%d" % (run.__name__.encode(), number)) as mountpoint:
                    for way, seconds in run(mountpoint).items():
                        rates[way].append(count / seconds)
    ratios = {
        way: statistics.median(one / other for one, other in zip(rates[way], rates["chown"], strict=True))
        for way in rates
        if way != "chown"
    }
    return Result(inode_size, count, rounds, {way: statistics.median(found) for way, found in rates.items()}, ratios)


def table_of(result: Result) -> Table:
    """For people."""
    table = Table()
    for column in ("", "entries/s", "of chown -hR"):
        table.add_column(column, justify="right" if column else "left")
    for way in ("chown", "trigger", "promotion", "planned"):
        ratio = result.ratio_to_chown.get(way)
        table.add_row(way, f"{result.entries_per_second[way]:,.0f}", "" if ratio is None else f"{ratio:.2f} x")
    return table


def main(
    entries: Annotated[int, typer.Option(min=1, help="Size of the tree.")] = 20_000,
    pairs: Annotated[int, typer.Option(min=1, help="How many rounds.")] = 5,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Compare a promotion with ``chown -hR`` and with its own trigger alone."""
    if os.geteuid() != 0:
        sys.exit("this benchmark mounts file systems, which needs root")
    results = [measure(entries, pairs, inode_size) for inode_size in INODE_SIZES]
    if as_json:
        print(json.dumps({"target": TARGET, "results": [asdict(one) | {"reached": one.reached} for one in results]}))
        return
    console = Console()
    for result in results:
        console.print(f"{result.entries} entries, ext4 with a journal, {result.inode_size}-byte inodes, ", end="")
        console.print(f"median of {result.rounds}:")
        console.print(table_of(result))
    console.print(f"wanted of a promotion, with {INODE_SIZES[0]}-byte inodes: at least {TARGET} x chown -hR")


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    app()
