"""A tracing instance of our own (Documentation/trace/ftrace.rst, "Instances"), and what earlier ones of ours left.

It has its own triggers and buffers, so that it disturbs nobody else's tracing. No event is ever written to its buffers:
histogram triggers count where the event happens. Nothing is set that would make the kernel look at other events than
those: with ``set_event_notrace_pid`` it looks at every context switch.
"""

import itertools
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from typing import Final

ROOT: Final = "/sys/kernel/tracing"
_INSTANCES: Final = f"{ROOT}/instances"
_SYNTHETIC: Final = f"{ROOT}/events/synthetic"
_LOCKDOWN = "/sys/kernel/security/lockdown"
_NAME = re.compile(r"promoterd_(\d+)_(\d+)_(\d+)_\d+")
"""Of an instance and of its synthetic event: namespace and number of the process, when it began, and a count."""
_SMALLEST_BUFFER = "1"
_COUNTER = itertools.count()
_ACTIVE = re.compile(r" \[(active|paused)\]$")


def lacking(event: str) -> str | None:
    """Why this machine cannot count such an event; None if it can."""
    if not os.path.isdir(_INSTANCES):
        return f"tracefs is not mounted at {ROOT} (mount -t tracefs tracefs {ROOT})"
    with suppress(OSError), open(_LOCKDOWN, encoding="ascii") as file:
        if "[confidentiality]" in file.read():
            return "the kernel is locked down (lockdown=confidentiality), which forbids tracing"
    if not os.access(_INSTANCES, os.W_OK | os.X_OK):
        return f"this process may not write to {_INSTANCES}: it needs to be root"
    home = f"{ROOT}/events/{event}"
    if not os.path.isdir(home):
        return f"the kernel has no event {event}: its module is not loaded, or it was built without"
    if not os.path.exists(f"{home}/hist"):
        return "the kernel was built without histogram triggers (CONFIG_HIST_TRIGGERS)"
    return None


class Instance:
    """One instance; it lasts until it is removed, and not only as long as this process."""

    def __init__(self) -> None:
        """Make it. Raises OSError."""
        namespace, pid, begun = _process("self")
        self.name = f"promoterd_{namespace}_{pid}_{begun}_{next(_COUNTER)}"
        self.path = f"{_INSTANCES}/{self.name}"
        os.mkdir(self.path)
        try:
            _write(f"{self.path}/buffer_size_kb", _SMALLEST_BUFFER)
        except OSError:
            self.remove()
            raise

    def layout(self, event: str) -> str:
        """The fields of an event. Raises OSError."""
        return _read(f"{self.path}/events/{event}/format").decode("utf-8", "replace")

    def attach(self, event: str, trigger: str) -> None:
        """Attach a trigger to an event, or do to one what the command says. Raises OSError."""
        _write(f"{self.path}/events/{event}/trigger", trigger)

    def detach(self, event: str, trigger: str) -> None:
        """Take a trigger off. Raises OSError: EBUSY where another one refers to it."""
        _write(f"{self.path}/events/{event}/trigger", f"!{trigger}")

    def histograms(self, event: str) -> bytes:
        """What the triggers of an event have counted. Raises OSError."""
        return _read(f"{self.path}/events/{event}/hist")

    def define(self, fields: str) -> str:
        """Make a synthetic event that nobody else uses, and return its name. Raises OSError."""
        _write(f"{ROOT}/synthetic_events", f"{self.name} {fields}", os.O_APPEND)
        return self.name

    def remove(self) -> None:
        """Remove it with its triggers and its synthetic event. Raises OSError where somebody reads one of its files."""
        _remove(self.path)
        _undefine(self.name)


def remove_leftovers() -> list[str]:
    """Remove the instances of processes that have ended; returns their names.

    Those of other process namespaces are left alone, as their processes cannot be seen from here.
    """
    removed = []
    for name in filter(_is_left, _names(_INSTANCES)):
        with suppress(OSError):
            _remove(f"{_INSTANCES}/{name}")
            removed.append(name)
    for name in filter(_is_left, _names(_SYNTHETIC)):
        _undefine(name)
    return removed


def _is_left(name: str) -> bool:
    match = _NAME.fullmatch(name)
    return match is not None and match[1] == _process("self")[0] and not _lives(match[2], match[3])


def _undefine(name: str) -> None:
    if os.path.isdir(f"{_SYNTHETIC}/{name}"):
        with suppress(OSError):
            _write(f"{ROOT}/synthetic_events", f"!{name}", os.O_APPEND)


def _names(directory: str) -> list[str]:
    try:
        return os.listdir(directory)
    except OSError:
        return []


def _process(pid: str) -> tuple[str, str, str]:
    """A process: its namespace of process numbers, its number, and when it began (proc_pid_stat(5), starttime)."""
    with open(f"/proc/{pid}/stat", "rb") as file:
        fields = file.read().rpartition(b")")[2].split()
    namespace = os.stat(f"/proc/{pid}/ns/pid").st_ino
    return str(namespace), str(os.getpid()) if pid == "self" else pid, fields[19].decode()


def _lives(pid: str, begun: str) -> bool:
    try:
        return _process(pid)[2] == begun
    except OSError:
        return False


def _remove(path: str) -> None:
    """An instance can be removed when none of its triggers refers to another one any more."""
    for _ in range(2):
        for file, trigger in list(_triggers(path)):
            with suppress(OSError):
                _write(file, f"!{trigger}")
    os.rmdir(path)


def _triggers(path: str) -> Iterator[tuple[str, str]]:
    for system in ("nfs", "nfs4", "synthetic"):
        home = f"{path}/events/{system}"
        for event in os.listdir(home) if os.path.isdir(home) else ():
            file = f"{home}/{event}/trigger"
            with suppress(OSError):
                for line in _read(file).decode("utf-8", "replace").splitlines():
                    if not line.startswith("#"):
                        yield file, _ACTIVE.sub("", line)


def _read(path: str) -> bytes:
    with open(path, "rb", buffering=0) as file:
        return file.read()


def _write(path: str, text: str, flags: int = 0) -> None:
    """One write, since the kernel takes each as a whole. O_TRUNC would take off all triggers of an event."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC | flags)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)
