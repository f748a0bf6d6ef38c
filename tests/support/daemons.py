"""The real daemon as a process of its own, watched from the outside: its log, its socket, its metrics."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Self, TypeVar

import yaml
from prometheus_client.parser import text_string_to_metric_families

from promoterd.control import Request, request
from promoterd.errors import DaemonUnreachable
from promoterd.paths import show
from support.forking import Forked
from support.overlays import MountedOverlay

T = TypeVar("T")
Event = dict[str, Any]

SLOWNESS = float(os.environ.get("TEST_SLOWNESS", "1"))
"""How much longer than a usual machine this one may take; an emulated one is slow."""
PATIENCE = 30.0 * SLOWNESS
STOP_WITHIN = 15.0
SLACK = 5.0
"""Seconds by which a busy machine may be late with what happens at once."""
_POLL = 0.02
FAST: Mapping[str, Any] = {"min_age": "0s", "recheck": "0.5s"}
"""A rule whose effects a test can wait for."""


def wait_for(what: Callable[[], T], patience: float = PATIENCE, poll: float = _POLL) -> T:
    """What ``what`` returns, as soon as that is true; the last thing that it returned is in the failure."""
    deadline = time.monotonic() + patience
    while True:
        found = what()
        if found:
            return found
        assert time.monotonic() < deadline, f"waited {patience:g} s in vain; the last answer was {found!r}"
        time.sleep(poll)


def moment(event: Event) -> float:
    """When it happened, in seconds since the epoch."""
    return datetime.fromisoformat(event["timestamp"]).timestamp()


def mount_policy(mounted: MountedOverlay, rules: Sequence[Mapping[str, Any]] = ({"path": "**"},), **keys: Any) -> Event:
    """The section of one mount, in a hurry; ``limits`` and ``heat`` are merged with what stands here.

    By inotify, whose watches tell what is heard so far, and which tests of other sources leave out.
    """
    limits = {
        "entries_per_second": "unlimited",
        "recheck_requests_per_second": "unlimited",
        "adaptive": False,
        "start_spread": "0s",
        "min_free_space": 0,
        "min_free_inodes": 0,
        **keys.pop("limits", {}),
    }
    heat = {"source": "inotify", "threshold": 1.5, "settle": "0.5s"} | keys.pop("heat", {})
    return {
        "mountpoint": os.fsdecode(mounted.mountpoint),
        "backend": "opaque",
        "heat": heat,
        "limits": limits,
        "activation_interval": "0.2s",
        "quiet_period": "0.2s",
        "rules": [{**FAST, **rule} for rule in rules],
        **keys,
    }


def use(mounted: MountedOverlay, *paths: str | bytes, times: int = 2) -> None:
    """Do what an application does in directories: list them and read a file, so many times.

    Not the same thing twice in a row, which the kernel may report as one (inotify(7), successive identical events).
    """
    for _ in range(times):
        for path in paths:
            directory = mounted.at(path)
            for name in sorted(os.listdir(directory)):
                if os.path.isfile(directory + b"/" + name):
                    with open(directory + b"/" + name, "rb") as file:
                        file.read()
                    break


class RunningDaemon:
    """``promoterd run`` in the directory ``base``, as a context manager that always ends the process.

    Leaving the block without an error stops it by SIGTERM, which must end well, within :data:`STOP_WITHIN` seconds, and
    without an unforeseen exception in the log. With an ``environment`` it has an interpreter of its own, see
    :mod:`support.forking`.
    """

    def __init__(
        self, base: bytes, *mounts: Event, environment: Mapping[str, str] | None = None, **policy: Any
    ) -> None:
        self.base = os.fsdecode(base)
        self.socket = f"{self.base}/control.sock"
        self.policy_file = f"{self.base}/policy.yaml"
        self.state_dir = f"{self.base}/state"
        self.policy: Event = {
            "state_dir": self.state_dir,
            "control": {"socket": self.socket},
            "metrics": {"listen": "127.0.0.1:0"},
            "log": {"format": "json", "level": "info"},
            "mounts": list(mounts),
            **policy,
        }
        self.process: subprocess.Popen[bytes] | Forked | None = None
        self._environment = environment
        self._log = f"{self.base}/daemon.log"
        self._mark = 0

    # Life

    def write_policy(self) -> None:
        """What :attr:`policy` says now, as the policy file."""
        os.makedirs(self.base, exist_ok=True)
        with open(self.policy_file, "w", encoding="utf-8") as file:
            yaml.safe_dump(self.policy, file)

    def launch(self) -> Self:
        """Start the process and wait for nothing. The log is appended to."""
        self.write_policy()
        self._mark = os.path.getsize(self._log) if os.path.exists(self._log) else 0
        arguments = ["run", "--config", self.policy_file]
        if self._environment is None:
            self.process = Forked(arguments, stdout=self._log, stderr=self._log, env=os.environ, cwd="/")
            return self
        with open(self._log, "ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "promoterd", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **self._environment},
                cwd="/",
            )
        return self

    def start(self, *, watching: int | None = None) -> Self:
        """Start, and wait until it is ready, works on every mount, and hears so many directories."""
        self.launch()
        self.wait_for(lambda: self.find("ready"))
        for mount in self.policy["mounts"]:
            self.wait_phase("working", mount["mountpoint"])
        if watching is not None:
            self.wait_armed(watching)
        return self

    @property
    def running(self) -> subprocess.Popen[bytes] | Forked:
        assert self.process is not None
        return self.process

    @property
    def pid(self) -> int:
        return self.running.pid

    def signal(self, number: int) -> None:
        self.running.send_signal(number)

    def stop(self) -> float:
        """SIGTERM, and what must follow; returns the seconds that took."""
        begun = time.monotonic()
        self.signal(signal.SIGTERM)
        try:
            code = self.running.wait(STOP_WITHIN)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still there {STOP_WITHIN:g} s after SIGTERM; its log ends {self.tail()}") from None
        took = time.monotonic() - begun
        self.process = None
        assert code == 0, f"ended with {code}; its log ends {self.tail()}"
        self.assert_no_surprise()
        return took

    def kill(self) -> None:
        """SIGKILL."""
        self.running.kill()
        self.running.wait()
        self.process = None

    def restart(self, *, watching: int | None = None) -> Self:
        self.stop()
        return self.start(watching=watching)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None and self.process is not None:
                self.stop()
        finally:
            if self.process is not None:
                self.kill()

    # What it says

    def lines(self) -> list[str]:
        """The lines of its log since the last start."""
        try:
            with open(self._log, "rb") as log:
                log.seek(self._mark)
                return [line for line in log.read().decode().split("\n")[:-1] if line]
        except FileNotFoundError:
            return []

    def events(self) -> list[Event]:
        """What happened since the last start: every line of the log, which must all be JSON."""
        return [json.loads(line) for line in self.lines()]

    def find(self, event: str, **fields: Any) -> list[Event]:
        """The events of a name that have all these fields."""
        return [
            found
            for found in self.events()
            if found["event"] == event and all(found.get(key) == value for key, value in fields.items())
        ]

    def tail(self, count: int = 12) -> str:
        lines = [line for line in self.lines() if '"control_request"' not in line]
        return "\n".join(["", *lines[-count:]])

    def assert_no_surprise(self) -> None:
        """Nothing that nobody foresaw: no traceback, no task whose error nobody took."""
        bad = [found for found in self.events() if "exception" in found or found["event"] == "promotion_broke"]
        assert not bad, "\n".join(json.dumps(found, indent=1).replace("\\n", "\n") for found in bad)

    def wait_for(self, what: Callable[[], T], patience: float = PATIENCE, poll: float = _POLL) -> T:
        """As :func:`wait_for`; fails at once when the daemon ends, and shows its log."""

        def alive() -> T:
            found = what()
            assert found or self.running.poll() is None, f"the daemon ended: {self.tail()}"
            return found

        try:
            return wait_for(alive, patience, poll)
        except AssertionError as error:
            raise AssertionError(f"{error}; its log ends {self.tail()}") from None

    def wait_event(self, event: str, patience: float = PATIENCE, poll: float = _POLL, **fields: Any) -> Event:
        return self.wait_for(lambda: self.find(event, **fields), patience, poll)[-1]

    def wait_phase(self, phase: str, mount: str | None = None) -> Event:
        """The event of the mount's last phase, when that is this one."""

        def last() -> Event | None:
            found = [one for one in self.find("mount") if mount is None or one["mount"] == mount]
            return found[-1] if found and found[-1]["phase"] == phase else None

        reached = self.wait_for(last)
        assert reached is not None
        return reached

    def states(self) -> dict[str, str]:
        """The state of every directory that ever left the cold, as the log tells; asks nobody anything."""
        return {found["path"]: found["state"] for found in self.find("directory")}

    def reason(self, path: bytes) -> str | None:
        """The reason in the last event about a directory's state."""
        found = self.find("directory", path=show(path))
        return found[-1]["reason"] if found else None

    def wait_state(self, state: str, *paths: bytes, patience: float = PATIENCE) -> None:
        self.wait_for(lambda: all(self.states().get(show(path)) == state for path in paths), patience)

    def wait_activated(self, directories: int) -> list[Event]:
        """The activations, once so many directories became active: each is told of after its directories."""
        self.wait_for(lambda: sum(found["active"] for found in self.find("activation")) >= directories)
        return self.find("activation")

    # What it answers

    def ask(self, command: str, path: bytes | None = None, **options: Any) -> Event:
        """Ask over the control socket; raises the error that the daemon met."""
        given = {"path": path, **options} if path is not None else options
        return request(self.socket, Request.model_validate({"command": command, **given}), silence=PATIENCE)

    def status(self, mount: int = 0) -> Event:
        """What ``status`` says of one mount; empty while nobody answers."""
        try:
            found: Event = self.ask("status")["mounts"][mount]
        except DaemonUnreachable:
            return {}
        return found

    def explain(self, mounted: MountedOverlay, path: bytes) -> Event:
        return self.ask("explain", mounted.at(path))

    def heat(self) -> dict[str, float]:
        """The heat of the hottest directories."""
        return {row["path"]: row["heat"] for row in self.ask("top")["directories"]}

    def wait_armed(self, directories: int) -> None:
        """Until the daemon hears so many directories."""
        self.wait_for(lambda: (self.status().get("heat_source") or {}).get("armed", 0) >= directories)

    def scrape(self) -> str:
        """All metrics, as Prometheus gets them."""
        ready = self.wait_event("ready")
        address = f"http://{ready['metrics_host']}:{ready['metrics_port']}/metrics"
        with urllib.request.urlopen(address, timeout=PATIENCE) as answer:
            text: str = answer.read().decode()
            return text

    def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric's series that have these labels; NaN where there is none."""
        found = [
            sample.value for sample in self.samples() if sample.name == name and labels.items() <= sample.labels.items()
        ]
        return sum(found) if found else float("nan")

    def samples(self) -> Iterator[Any]:
        for family in text_string_to_metric_families(self.scrape()):
            yield from family.samples


@contextlib.contextmanager
def daemons(new_directory: Callable[[], bytes]) -> Iterator[Callable[..., RunningDaemon]]:
    """:class:`RunningDaemon` without its first argument; none is started yet, and all end with the block."""
    with contextlib.ExitStack() as stack:
        yield lambda *mounts, **policy: stack.enter_context(RunningDaemon(new_directory(), *mounts, **policy))


@contextlib.contextmanager
def sleeping_process(*arguments: str, cwd: bytes | None = None, **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """A process that does what its Python text says and then prints a line; ended with the block."""
    process = subprocess.Popen(
        [sys.executable, *arguments], cwd=cwd, stdin=subprocess.PIPE, stdout=subprocess.PIPE, **options
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline()
        yield process
    finally:
        process.kill()
        process.communicate()
