"""``promoterd record``: a command, a process, or a while, and the heat list that it leaves."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from promoterd.cli.listing import describe, summary
from promoterd.cli.output import say, say_json, warn
from promoterd.cli.privilege import require_privilege
from promoterd.cli.progress import sign_of_life
from promoterd.cli.settings import DEFAULT_CONFIG, read_policy
from promoterd.errors import UsageError
from promoterd.heat.choice import AUTO
from promoterd.heatlist import HeatList, read_list
from promoterd.heatlist.files import STANDARD, check_writable, write_list
from promoterd.heatlist.text import dumps
from promoterd.overlay.mounts import read_overlays
from promoterd.paths import display
from promoterd.policy import MountPolicy
from promoterd.recording.listening import Listeners, check_overlay, listening
from promoterd.recording.places import Places, places_of
from promoterd.recording.running import exit_code_of, program_of, signals_held
from promoterd.recording.tracelog import TraceLog
from promoterd.recording.tracing import PROGRAM, trace_command, trace_process
from promoterd.recording.walking import Walker, heat_of, look

_HINT = "`promoterd record -- COMMAND`, `record --pid PID`, or `record --seconds N`"


@dataclass(frozen=True, slots=True)
class Asked:
    """What was typed."""

    command: list[str]
    output: str
    add: bool
    pid: int | None
    seconds: float | None
    how: str | None
    seccomp: bool
    mounts: list[str]

    def check(self, *, as_json: bool) -> None:
        """Raise UsageError for what does not go together, and HeatListError for a list that could not be written."""
        if self.command and (self.pid is not None or self.seconds is not None):
            raise UsageError("a COMMAND is recorded to its end, without --pid and --seconds", hint=_HINT)
        if not self.command and self.pid is None and self.seconds is None:
            raise UsageError("nothing to record", hint=_HINT)
        if self.command and (as_json or self.output == STANDARD):
            raise UsageError(
                f"{'--json' if as_json else '--output -'} would mix with what the command itself prints",
                hint="name a file with --output",
            )
        if not self.command and self.pid is None and self.how == PROGRAM:
            raise UsageError("strace needs a COMMAND or --pid", hint=_HINT)
        if self.seccomp and not (self.command and self.tracing):
            raise UsageError("--seccomp is for a COMMAND that strace records", hint=_HINT)
        if self.output == STANDARD and (as_json or self.add):
            raise UsageError("--output - goes with neither --json nor --add", hint="name a file with --output")
        if self.output != STANDARD:
            check_writable(self.output)

    @property
    def tracing(self) -> bool:
        """Whether strace does it."""
        return (self.how or (PROGRAM if self.command or self.pid is not None else "")) == PROGRAM


def record_run(asked: Asked, config: str | None, *, as_json: bool) -> int:
    """Record, and write the list; the exit code of the command, or 0. Raises PromoterdError."""
    asked.check(as_json=as_json)
    before = read_list([asked.output]) if asked.add and os.path.exists(asked.output) else HeatList()
    policies = _policies(asked, config)
    places = places_of(policies)
    if asked.command:
        program_of(asked.command)
    heat, code = _traced(asked, places) if asked.tracing else _heard(asked, places, policies)
    before.merge(heat)
    if asked.output == STANDARD:
        say(dumps(before))
    else:
        write_list(before, asked.output)
        if as_json:
            say_json({"written": asked.output, **summary(before)})
        else:
            warn(f"promoterd: {describe(before)}, written to {display(os.fsencode(asked.output))}")
    if code:
        sys.exit(code)  # whatever it is: no code of ours
    return 0


def _policies(asked: Asked, config: str | None) -> dict[bytes, MountPolicy | None]:
    """The mount points, each with its policy where it has one. Raises PolicyError, UsageError."""
    named = [os.path.realpath(os.fsencode(mount)) for mount in asked.mounts]
    if named and config is None and not os.path.exists(DEFAULT_CONFIG):
        return dict.fromkeys(named)
    policies = {mount.mountpoint_bytes: mount for mount in read_policy(config).mounts}
    return {point: policies.get(point) for point in named or policies}


def _traced(asked: Asked, places: Places) -> tuple[HeatList, int]:
    with signals_held() as signals:
        if asked.command:
            log, status = trace_command(asked.command, signals, seccomp=asked.seccomp)
            return _heat_of(log, places), exit_code_of(status)
        assert asked.pid is not None  # noqa: S101 - there is a command or a process
        with _sign_of_life(asked):
            log = trace_process(asked.pid, asked.seconds, signals)
    return _heat_of(log, places), 0


def _heat_of(log: TraceLog, places: Places) -> HeatList:
    if log.not_understood:
        warn(f"promoterd: {log.not_understood} lines of strace were not understood: the counts may be too low")
    heat = heat_of(log.lookups.items(), Walker(look), places.of)
    for mountpoint in places.wanted:
        heat.mounts.setdefault(mountpoint, {})
    return heat


def _heard(asked: Asked, places: Places, policies: dict[bytes, MountPolicy | None]) -> tuple[HeatList, int]:
    require_privilege()
    overlays = {overlay.mountpoint: overlay for overlay in read_overlays()}
    wanted = [
        (check_overlay(overlays.get(point), point), _source(asked.how, policies[point]), policies[point])
        for point in sorted(places.wanted)
    ]
    code = 0
    with listening(wanted) as listeners, signals_held() as signals:
        if asked.command:
            program = program_of(asked.command)
            child = signals.spawn(program, asked.command)
            code = exit_code_of(signals.wait_forwarding(child, listeners.pump))
        else:
            with _sign_of_life(asked):
                signals.wait_until(lambda: _pumped(listeners) and _has_ended(asked.pid), asked.seconds)
        heat = listeners.heat()
        for doubt in listeners.doubts():
            warn(f"promoterd: {doubt}")
    return heat, code


def _pumped(listeners: Listeners) -> bool:
    listeners.pump()
    return True


def _has_ended(pid: int | None) -> bool:
    return pid is not None and not os.path.exists(f"/proc/{pid}")


def _source(how: str | None, policy: MountPolicy | None) -> str:
    return how or (policy.heat.source if policy is not None else AUTO)


@contextmanager
def _sign_of_life(asked: Asked) -> Iterator[None]:
    until = "for " + f"{asked.seconds:g} s, or until Ctrl-C" if asked.seconds is not None else "until Ctrl-C"
    with sign_of_life(f"recording {until} …", wanted=True):
        yield
