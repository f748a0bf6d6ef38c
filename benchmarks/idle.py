"""What the daemon costs while nothing happens: processor time and memory with many watched directories.

``python -m benchmarks.idle``, as root. The real daemon (`promoterd run`) on a real overlay, whose directories are all
such as policy could promote, so that each has a watch.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Annotated

import typer
from rich.console import Console

from benchmarks import stage

MAX_SHARE = 0.005
"""Of one core."""
MAX_BYTES = 100_000_000
_LIMIT = "/proc/sys/fs/inotify/max_user_watches"
_START_PATIENCE = 120.0
_POLICY = """
state_dir: {home}/state
control: {{socket: {home}/socket}}
metrics: {{listen: 127.0.0.1:0}}
log: {{format: json, level: warning}}
mounts:
  - mountpoint: {mountpoint}
    heat: {{source: inotify, max_watches: {watches}}}
    rules:
      - path: apps/**
"""


@dataclass(frozen=True)
class Result:
    """``share`` is of one core; memory in bytes, as resident now and at its highest."""

    directories: int
    watches: int
    seconds: float
    share: float
    resident: int
    highest: int

    @property
    def reached(self) -> bool:
        """Whether it costs as little as wanted."""
        return self.share < MAX_SHARE and self.resident < MAX_BYTES


def measure(directories: int, seconds: float, settle: float) -> Result:
    """Start the daemon, wait until it hears every directory and has come to rest, and look at what it then uses."""
    with stage.ext4(512) as home:
        names = [b"apps/a%03d/d%03d" % (number // 100, number % 100) for number in range(directories)]
        stage.build_tree(home + b"/lower", names, 1)
        with (
            stage.overlay(home, home + b"/lower", b"idle") as mountpoint,
            daemon(os.fsdecode(mountpoint), directories) as (process, socket),
        ):
            pid = process.pid
            watches = wait_until_armed(process, socket, directories)
            time.sleep(settle)
            before, started = cpu_seconds(pid), time.monotonic()
            time.sleep(seconds)
            used, took = cpu_seconds(pid) - before, time.monotonic() - started
            resident, highest = memory(pid)
            return Result(directories, watches, took, used / took, resident, highest)


@contextmanager
def daemon(mountpoint: str, directories: int) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """The daemon's process and control socket."""
    home = os.path.dirname(mountpoint)
    policy = f"{home}/policy.yaml"
    with open(policy, "w", encoding="utf-8") as file:
        file.write(_POLICY.format(home=home, mountpoint=mountpoint, watches=directories * 2 + 1000))
    process = subprocess.Popen([sys.executable, "-m", "promoterd", "run", "--config", policy])
    try:
        yield process, f"{home}/socket"
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_until_armed(process: subprocess.Popen[bytes], socket: str, directories: int) -> int:
    """How many watches the daemon has, once it hears every directory."""
    deadline = time.monotonic() + _START_PATIENCE
    armed = 0
    while time.monotonic() < deadline:
        time.sleep(0.25)
        command = [sys.executable, "-m", "promoterd", "status", "--socket", socket, "--json"]
        answer = subprocess.run(command, capture_output=True, check=False)
        if process.poll() is not None:
            sys.exit("the daemon ended; it says why above")
        if answer.returncode:
            continue
        (mount,) = json.loads(answer.stdout)["mounts"]
        source = mount.get("heat_source") or {}
        armed = source.get("armed", 0)
        if armed >= directories:
            return int(source["watches"])
    sys.exit(f"the daemon hears {armed} of {directories} directories after {_START_PATIENCE:g} s")


def cpu_seconds(pid: int) -> float:
    """Processor time that all threads of a process have used, by its CPU clock (clock_getcpuclockid(3))."""
    return time.clock_gettime((~pid << 3) | 2)


def memory(pid: int) -> tuple[int, int]:
    """Resident memory of a process, now and at its highest, in bytes."""
    with open(f"/proc/{pid}/status", encoding="ascii") as file:
        fields = dict(line.split(":", 1) for line in file)
    return int(fields["VmRSS"].split()[0]) * 1024, int(fields["VmHWM"].split()[0]) * 1024


def main(
    directories: Annotated[int, typer.Option(min=1, help="How many are watched.")] = 10_000,
    seconds: Annotated[float, typer.Option(min=0.1, help="How long to measure.")] = 60.0,
    settle: Annotated[float, typer.Option(min=0.0, help="How long to wait before, in seconds.")] = 15.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Measure what the daemon uses while nothing happens."""
    if os.geteuid() != 0:
        sys.exit("this benchmark mounts file systems, which needs root")
    with open(_LIMIT, encoding="ascii") as file:
        limit = int(file.read())
    if limit < directories:
        sys.exit(f"the kernel grants {limit} watches (fs.inotify.max_user_watches), and {directories} are needed")
    result = measure(directories, seconds, settle)
    if as_json:
        limits = {"max_share": MAX_SHARE, "max_resident": MAX_BYTES, "reached": result.reached}
        print(json.dumps(asdict(result) | limits))
        return
    console = Console()
    console.print(f"idle with {result.directories} directories ({result.watches} watches), {result.seconds:.0f} s:")
    console.print(f"  {result.share:.3%} of a core, wanted below {MAX_SHARE:.1%}")
    resident, highest, most = (size / 1e6 for size in (result.resident, result.highest, MAX_BYTES))
    console.print(f"  {resident:.0f} MB resident, {highest:.0f} MB at its highest, wanted below {most:.0f} MB")


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    app()
