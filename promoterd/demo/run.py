"""``promoterd demo``: the main job, shown on real mounts and measured by counting what the lower layer is asked."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table

from promoterd.backends.choice import AUTO
from promoterd.control import Request, request
from promoterd.demo.application import Spec, launch
from promoterd.demo.reader import Known, Reader
from promoterd.demo.stage import Stage, stage
from promoterd.demo.view import differences, snapshot
from promoterd.errors import DaemonUnreachable, DemoFailed
from promoterd.overlay import probe
from promoterd.paths import display, show

LATENCY_US = 1000
AGREEMENT = 0.02
"""How far two measurements of the same state may lie apart."""
REDUCTION = 0.99
"""The share of negative lookups that has to go."""
FOUND_AS_WELL = 0.5
"""The share of all lookups that may be left with a metadata layer: what leads through growing directories."""
_THINK_WHILE_MEASURED = 0.05
_START_PATIENCE, _ACTIVE_PATIENCE, _FOUND_ALL = 20.0, 90.0, 2.0
_PAUSE, _TAKEN_UP = 0.25, 2.0
"""Seconds between two looks at the daemon, and until what a launch made hot has been taken up."""
_SCRATCH = b".promoterd"


@dataclass(frozen=True, slots=True)
class Cost:
    """What one cold launch asked the lower layer, by kind of request; ``lookups`` counts the negative ones too."""

    lookups: int
    negative_lookups: int
    stats: int
    readdirs: int
    opens: int
    reads: int
    total: int
    seconds: float


def run_demo(*, backend: str, as_json: bool) -> int:
    """Show it with a backend, or with the best that the kernel has for ``auto``; 0 only if every check holds.

    Raises DemoFailed.
    """
    console = Console(stderr=as_json)
    with ExitStack() as stack:
        console.print("Building a software share, a counting file system on it, and an overlay on that …")
        if backend == AUTO:
            backend = "layer" if probe.host().trial.lazy_data else "opaque"
        scene = stack.enter_context(stage(latency_us=0, layered=backend == "layer"))
        view_before = snapshot(scene.mountpoint, skip=[_SCRATCH])
        spec = Spec.of(scene.share, scene.mountpoint)
        absent = [directory + b"/never-there.so" for directory in scene.share.search_path]
        reader = stack.enter_context(Reader(scene.mountpoint, Known.of(scene.share.root, absent)))
        console.print("Launching the application cold, twice …")
        before, again = _measure(scene, spec, reader), _measure(scene, spec, reader)
        _check_agreement(before, again)
        console.print("Starting the daemon, and launching the application under its eyes …")
        status = stack.enter_context(_daemon(scene, backend))
        launch(spec)
        launch(spec)
        completed, refused = _wait_until_active(scene, spec, status, console)
        console.print("Launching the application cold again …")
        after = _measure(scene, spec, reader)
        scene.set_latency(0)
        changed = differences(view_before, snapshot(scene.mountpoint, skip=[_SCRATCH]))
        errors = reader.stop()
    result = {
        "before": asdict(before),
        "after": asdict(after),
        "directories_completed": completed,
        "reader_errors": len(errors),
        "view_identical": not changed,
        "backend": backend,
        "kernel": os.uname().release,
    }
    failures = _failures(backend, before, after, changed, errors)
    if as_json:
        print(json.dumps(result, indent=2))  # noqa: T201 - the output asked for
    else:
        _show(console, result, refused, reader.requests)
    for failure in failures:
        console.print(f"FAILED: {failure}", style="bold red", markup=False)
    return DemoFailed.exit_code if failures else 0


def _measure(scene: Stage, spec: Spec, reader: Reader) -> Cost:
    """One launch after a no-op reconfigure; the file system below keeps nothing (timeouts 0), so it is cold."""
    thinking, reader.think = reader.think, _THINK_WHILE_MEASURED
    scene.set_latency(LATENCY_US)
    scene.cool()
    scene.reset()
    begun = time.monotonic()
    report = launch(spec)
    seconds = time.monotonic() - begun
    counts = scene.counts()
    scene.set_latency(0)
    reader.think = thinking
    if report.errors:
        raise DemoFailed(f"the application met an error: {report.errors[0]}")
    return Cost(
        lookups=counts["LOOKUP"] + counts["LOOKUP_NEGATIVE"],
        negative_lookups=counts["LOOKUP_NEGATIVE"],
        stats=counts["GETATTR"],
        readdirs=counts["OPENDIR"] + counts["READDIR"],
        opens=counts["OPEN"],
        reads=counts["READ"],
        total=sum(counts.values()),
        seconds=round(seconds, 2),
    )


def _check_agreement(first: Cost, second: Cost) -> None:
    """Raise DemoFailed where two measurements of the same state differ: nothing could be concluded from a third."""
    for name in ("negative_lookups", "total"):
        one, two = getattr(first, name), getattr(second, name)
        if abs(one - two) > AGREEMENT * max(one, two):
            raise DemoFailed(
                f"two cold launches differ by more than {AGREEMENT:.0%} in {name}: {one} and {two}",
                hint="the machine is too busy; try again",
            )


def _policy(scene: Stage, backend: str) -> dict[str, Any]:
    """What the daemon is told: which subtrees it may promote and which grow, and nothing of what is hot."""
    return {
        "state_dir": os.fsdecode(scene.base) + "/state",
        "control": {"socket": os.fsdecode(scene.base) + "/control.sock"},
        "metrics": {"listen": "off"},
        "log": {"format": "json", "level": "info"},
        "mounts": [
            {
                "mountpoint": os.fsdecode(scene.mountpoint),
                "backend": backend,
                "heat": {"threshold": 1.5, "half_life": "10m", "settle": "1s"},
                "limits": {
                    "entries_per_second": "unlimited",
                    "concurrency": 8,
                    "min_free_space": 0,
                    "min_free_inodes": 0,
                },
                "activation_interval": "1s",
                "rules": [
                    *({"path": os.fsdecode(path), "growing": True} for path in scene.share.growing),
                    # the share was built a moment ago; real releases are given an hour (min_age)
                    {"path": "apps/**", "min_age": "0s"},
                ],
            }
        ],
    }


@contextmanager
def _daemon(scene: Stage, backend: str) -> Iterator[str]:
    """The real daemon in a process of its own, at work, and ended by SIGTERM; yields its control socket."""
    base = os.fsdecode(scene.base)
    with open(f"{base}/policy.yaml", "w", encoding="utf-8") as file:
        yaml.safe_dump(_policy(scene, backend), file)
    with open(f"{base}/daemon.log", "wb") as log:
        running = subprocess.Popen(
            [sys.executable, "-m", "promoterd", "run", "--config", f"{base}/policy.yaml"], stdout=log, stderr=log
        )
    try:
        deadline = time.monotonic() + _START_PATIENCE
        while _mount_status(f"{base}/control.sock").get("phase") != "working":
            if running.poll() is not None or time.monotonic() > deadline:
                raise DemoFailed(f"the daemon did not start: {_last_lines(f'{base}/daemon.log')}")
            time.sleep(0.1)
        _wait_until_it_hears(scene, f"{base}/control.sock")
        yield f"{base}/control.sock"
    finally:
        running.terminate()
        try:
            running.wait(10)
        except subprocess.TimeoutExpired:
            running.kill()
            running.wait()


def _mount_status(socket: str) -> dict[str, Any]:
    """What the daemon says of its one mount; empty while it does not answer."""
    try:
        mounts = request(socket, Request(command="status"))["mounts"]
    except DaemonUnreachable:
        return {}
    status: dict[str, Any] = mounts[0] if mounts else {}
    return status


def _wait_until_it_hears(scene: Stage, socket: str) -> None:
    """Until no more directories are found: a launch before that would be heard in part."""
    deadline = time.monotonic() + _START_PATIENCE
    most, since = 0, time.monotonic()
    while time.monotonic() < deadline:
        source = _mount_status(socket).get("heat_source")
        if source is not None and source["armed"] > most:
            most, since = source["armed"], time.monotonic()
        if most >= len(scene.share.search_path) and time.monotonic() - since > _FOUND_ALL:
            return
        time.sleep(0.1)
    raise DemoFailed("the daemon did not watch all search directories in time")


def _wait_until_active(scene: Stage, spec: Spec, socket: str, console: Console) -> tuple[int, list[str]]:
    """Wait until every search directory is active; how many directories are, and what was refused.

    The application is launched again where some are cold when all is done: a directory is not heard (R11) while it
    comes into the layer beside one that becomes complete.
    """
    deadline = time.monotonic() + _ACTIVE_PATIENCE
    expected = sorted(show(path) for path in scene.share.search_path)
    missing: dict[str, str] = {}
    with console.status("Waiting until the hot directories are active …") as waiting:
        while time.monotonic() < deadline:
            time.sleep(_PAUSE)
            status = _mount_status(socket)
            states = status.get("states", {})
            active = states.get("active", 0)
            waiting.update(f"Waiting until the hot directories are active: {active} …")
            if not states or any(states[name] for name in ("shadowing", "complete", "hot")):
                continue
            refused = [
                f"{one['path']}: {one['reason']}" for one in status.get("troubled", ()) if one["state"] == "refused"
            ]
            found = {path: _state(socket, scene, path) for path in expected}
            missing = {path: state for path, state in found.items() if state != "active"}
            if not missing and (refused or status["backend"] != "opaque"):  # several names are no obstacle to a layer
                return active, refused
            launch(spec)
            time.sleep(_TAKEN_UP)
    raise DemoFailed(
        f"not every search directory became active in {_ACTIVE_PATIENCE:.0f} s; left are {missing}; the daemon says: "
        + _last_lines(os.fsdecode(scene.base) + "/daemon.log")
    )


def _state(socket: str, scene: Stage, path: str) -> str:
    absolute = scene.mountpoint + os.fsencode(path)
    return str(request(socket, Request(command="explain", path=absolute))["state"])


def _last_lines(path: str, count: int = 5) -> str:
    with open(path, "rb") as file:
        return " | ".join(display(line) for line in file.read().splitlines()[-count:])


def _failures(backend: str, before: Cost, after: Cost, changed: list[str], errors: list[str]) -> list[str]:
    """Every check that does not hold."""
    failures = []
    if backend == "layer" and after.lookups > FOUND_AS_WELL * before.lookups:
        failures.append(f"all lookups fell from {before.lookups} to {after.lookups}, not to {FOUND_AS_WELL:.0%}")
    if after.negative_lookups > (1 - REDUCTION) * before.negative_lookups:
        failures.append(
            f"negative lookups fell from {before.negative_lookups} to {after.negative_lookups}, not by {REDUCTION:.0%}"
        )
    if changed:
        failures.append(f"the view differs: {'; '.join(changed[:5])}")
    if errors:
        failures.append(f"a reader met {len(errors)} errors: {errors[0]}")
    return failures


def _show(console: Console, result: dict[str, Any], refused: list[str], requests: int) -> None:
    table = Table(title=f"One cold launch, {LATENCY_US / 1000:g} ms away, on {result['kernel']}")
    for heading in ("asked of the lower layer", "before", "after"):
        table.add_column(heading, justify="left" if heading[0] == "a" and heading != "after" else "right")
    words = {
        "negative_lookups": "lookups of missing names",
        "lookups": "all lookups",
        "stats": "stats",
        "readdirs": "directory reads",
        "opens": "opens",
        "reads": "reads",
        "total": "all requests",
        "seconds": "seconds",
    }
    for key, word in words.items():
        table.add_row(word, f"{result['before'][key]:,}", f"{result['after'][key]:,}")
    console.print(table)
    console.print(f"{result['directories_completed']} directories completed by the backend {result['backend']}.")
    for line in refused:
        console.print(f"Refused, as it should be: {line}", markup=False)
    console.print(f"The view is {'the same' if result['view_identical'] else 'NOT the same'} before and after.")
    console.print(
        f"A reader that ran the whole time made {requests:,} requests and saw {result['reader_errors']} errors."
    )
