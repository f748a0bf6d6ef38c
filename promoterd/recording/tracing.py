"""Running a command, or watching a process, under strace(1).

The command stays our own child, with its streams, its process group and its exit code: strace is a grandchild aside
(``-DD``). What it writes is read through a FIFO while the command runs.

Should we be killed, strace ends with its next line (SIGPIPE), and what it traced goes on. It has to end at once for
that (``-I1``): otherwise it stops every process to let go of it, and one that waits for its child of vfork(2), which
strace still holds, cannot stop; so the three wait for each other for ever.

Nothing goes on where strace worked with a seccomp filter, by which it sees those system calls alone that look up names:
a process has that for ever, and without a tracer these calls fail with ENOSYS (SECCOMP_RET_TRACE, seccomp(2)). Hence
only where it was asked for, and then all that the command began is waited for.
"""

import os
import re
import select
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Final

from promoterd.errors import NotPermitted, RecordingFailed
from promoterd.recording.running import TICK, Signals, program_of
from promoterd.recording.tracelog import FILTER, TraceLog

PROGRAM: Final = "strace"
_OLDEST: Final = (5, 7)
_GRACE: Final = 1.0
"""Seconds in which strace ends by itself once the command has; with what that left behind it would go on."""
_OPTIONS: Final = ("-I1", "-f", "-q", "-y", "-xx", "-s", "1", "-e", FILTER, "-e", "signal=none")
_MAY_NOT_TRACE: Final = "run it as root; /proc/sys/kernel/yama/ptrace_scope may forbid it, or somebody trace it already"


def strace() -> str:
    """The program. Raises RecordingFailed where there is none, or one that is too old."""
    found = shutil.which(PROGRAM)
    if found is None:
        raise RecordingFailed(
            "there is no strace on this machine", hint="install the package strace, or record with `--with inotify`"
        )
    said = subprocess.run([found, "-V"], capture_output=True, text=True, check=False).stdout
    version = re.search(r"version (\d+)\.(\d+)", said)
    if version is not None and (int(version[1]), int(version[2])) < _OLDEST:
        raise RecordingFailed(
            f"strace {version[1]}.{version[2]} is too old", hint="it has to be 5.7 or newer; or use `--with inotify`"
        )
    return found


def trace_command(command: Sequence[str], signals: Signals, *, seccomp: bool = False) -> tuple[TraceLog, int]:
    """Run a command to its end; what it looked up, and the status that it ended with, as of wait(2).

    SIGINT, SIGTERM, SIGHUP and SIGQUIT are for the command. What it leaves behind in the background goes on, untraced;
    with ``seccomp``, it is waited for. Raises CommandNotFound, RecordingFailed.
    """
    program_of(command)
    program, here = strace(), os.getcwdb()
    log = TraceLog(lambda _pid: here)
    with _reading(log) as (fifo, reader):
        options = ["-DD", *(["--seccomp-bpf"] if seccomp else []), *_OPTIONS]
        child = signals.spawn(program, [program, *options, "-o", fifo, "--", *command])
        status = signals.wait_forwarding(child)
        if seccomp:
            reader.join()
        _end_tracer(log, reader)
    log.finish()
    if log.first is None:
        raise RecordingFailed("strace could not run the command", hint="it has said why; `--with inotify` needs none")
    if not log.runs and not log.not_understood:
        raise RecordingFailed(f"{command[0]} could not be executed", hint="strace has said why; no list was written")
    return log, status


def _end_tracer(log: TraceLog, reader: threading.Thread) -> None:
    reader.join(_GRACE)
    while reader.is_alive():
        tracers = {tracer for pid in log.processes if (tracer := _tracer_of(pid))}
        for tracer in tracers:
            with suppress(ProcessLookupError):
                os.kill(tracer, signal.SIGTERM)  # and the kernel lets go of all of them
        reader.join(_GRACE)
        if not tracers:
            break


def _tracer_of(pid: int) -> int:
    with suppress(OSError), open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as status:
        for line in status:
            if line.startswith("TracerPid:"):
                return int(line.split()[1])
    return 0


def trace_process(pid: int, seconds: float | None, signals: Signals) -> TraceLog:
    """Watch a process and its descendants, those to come too, until it ends, for so long, or until Ctrl-C.

    Raises RecordingFailed, NotPermitted.
    """
    program = strace()
    log = TraceLog(_working_directory)
    _threads(pid)  # there must be such a process
    followed = [pid, *_descendants(pid)]
    for number in followed:
        with suppress(RecordingFailed):  # it has just ended
            log.begin(number, _threads(number))
    attach = [argument for number in followed for argument in ("-p", str(number))]
    with _reading(log) as (fifo, reader), tempfile.TemporaryFile() as said:
        child = signals.spawn(
            program,
            [program, *_OPTIONS, "-o", fifo, *attach],
            file_actions=[(os.POSIX_SPAWN_DUP2, said.fileno(), 2)],
            setpgroup=0,  # a terminal's Ctrl-C is for us
        )
        signals.wait_until(lambda: _has_ended(child) or not os.path.exists(f"/proc/{pid}"), seconds)
        status = signals.end(child, _GRACE)
        reader.join(_GRACE)
        said.seek(0)
        problem = said.read().decode("utf-8", "backslashreplace").strip()
    log.finish()
    if os.WIFEXITED(status) and os.WEXITSTATUS(status) == 1 and "attach" in problem:
        why = problem.splitlines()[-1]
        if "not permitted" in problem:
            raise NotPermitted(f"process {pid} may not be traced ({why})", hint=_MAY_NOT_TRACE)
        raise RecordingFailed(f"process {pid} cannot be traced ({why})")
    return log


def _has_ended(child: int) -> bool:
    """Whether our child waits to be reaped."""
    return os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _working_directory(pid: int) -> bytes | None:
    try:
        return os.readlink(b"/proc/%d/cwd" % pid)
    except OSError:
        return None


def _descendants(pid: int) -> list[int]:
    found: list[int] = []
    for thread in _threads(pid):
        with suppress(OSError, RecordingFailed):
            with open(f"/proc/{pid}/task/{thread}/children", encoding="ascii") as children:
                below = [int(child) for child in children.read().split()]
            for child in below:
                found += [child, *_descendants(child)]
    return found


def _threads(pid: int) -> list[int]:
    try:
        return [int(thread) for thread in os.listdir(f"/proc/{pid}/task")]
    except OSError as error:
        raise RecordingFailed(f"there is no process {pid}") from error


@contextmanager
def _reading(log: TraceLog) -> Iterator[tuple[str, threading.Thread]]:
    """A FIFO whose lines go to the log, by a thread that ends with whoever writes to it."""
    with tempfile.TemporaryDirectory(prefix="promoterd-record-") as directory:
        fifo = os.path.join(directory, "trace")
        os.mkfifo(fifo, 0o600)
        descriptor = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        done = threading.Event()
        reader = threading.Thread(target=_read, args=(descriptor, log, done), name="trace", daemon=True)
        reader.start()
        try:
            yield fifo, reader
        finally:
            done.set()
            reader.join()
            os.close(descriptor)


def _read(descriptor: int, log: TraceLog, done: threading.Event) -> None:
    rest, is_open = b"", False
    while True:
        readable, _, _ = select.select([descriptor], [], [], 0 if done.is_set() else TICK)
        if not readable:
            if done.is_set():
                break
            continue
        try:
            part = os.read(descriptor, 1 << 20)
        except BlockingIOError:
            continue
        if part:
            is_open = True
            *lines, rest = (rest + part).split(b"\n")
            for line in lines:
                _feed(log, line)
        elif is_open or done.is_set():  # nobody writes any more
            break
        else:  # strace has not opened it yet
            time.sleep(TICK / 10)
    if rest:
        _feed(log, rest)


def _feed(log: TraceLog, line: bytes) -> None:
    """Take a line in, whatever it is: were nobody to read on, the command would wait for it for ever."""
    try:
        log.feed(line)
    except Exception:  # noqa: BLE001 - counted, and said at the end
        log.not_understood += 1
