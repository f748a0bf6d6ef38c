"""A counting file system as an object: started, watched, slowed, broken and stopped from the outside."""

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from typing import Self

from promoterd.demo.counters import Counters, Op, Word
from promoterd.errors import DemoFailed
from promoterd.overlay import syscalls

_POLL = 0.005


class CountingLower:
    """:mod:`promoterd.demo.countfs` on ``mountpoint``, as a context manager.

    Timeouts are in seconds, the latency in microseconds. The process ends with this one, however that ends. Raises
    DemoFailed if it does not come up, with what it said.
    """

    def __init__(  # noqa: PLR0913 - the options of a mount, each with a default
        self,
        source: str | bytes,
        mountpoint: str | bytes,
        *,
        latency_us: int = 0,
        entry_timeout: float = 0.0,
        attr_timeout: float = 0.0,
        negative_timeout: float = 0.0,
        xattrs: bool = False,
        log: str | None = None,
    ) -> None:
        self.source = os.fsdecode(source)
        self.mountpoint = os.fsdecode(mountpoint)
        self._arguments = [
            f"--latency-ms={latency_us / 1000}",
            f"--entry-timeout={entry_timeout}",
            f"--attr-timeout={attr_timeout}",
            f"--negative-timeout={negative_timeout}",
            *(["--xattrs"] if xattrs else []),
            *([f"--log={log}"] if log else []),
        ]
        self._process: subprocess.Popen[bytes] | None = None
        self._counters: Counters | None = None
        self._baseline = [0] * len(Op)

    @property
    def pid(self) -> int | None:
        """The process that serves the mount; None when there is none."""
        return self._process.pid if self._process is not None else None

    def start(self, timeout: float = 10.0) -> None:
        """Mount, and return when the kernel has had its first answer. Raises DemoFailed."""
        if self._process is not None:
            raise DemoFailed(f"the counting file system on {self.mountpoint} runs already")
        descriptor, path = tempfile.mkstemp(prefix="countfs-")
        os.close(descriptor)
        try:
            self._counters = Counters(path, create=True)
            self._baseline = self._counters.counts()
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "promoterd.demo.countfs", self.source, self.mountpoint),
                    *(f"--counters={path}", "--stop-with-stdin", *self._arguments),
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                start_new_session=True,
            )
            self._wait_until_ready(self._process, self._counters, time.monotonic() + timeout)
        except BaseException:
            self.stop()
            raise
        finally:
            os.unlink(path)

    def _wait_until_ready(self, process: subprocess.Popen[bytes], counters: Counters, deadline: float) -> None:
        while not counters.words[Word.READY]:
            if process.poll() is not None:
                _, said = process.communicate()
                what = said.decode(errors="replace").strip() or f"countfs ended with {process.returncode}"
                raise DemoFailed(what, hint="the demonstration needs root, FUSE and pyfuse3")
            if time.monotonic() > deadline:
                raise DemoFailed(f"the counting file system did not mount on {self.mountpoint} in time")
            time.sleep(_POLL)

    def stop(self, timeout: float = 5.0) -> None:
        """Unmount and end the process; whatever still uses the mount gets ENOTCONN. Does nothing when not started."""
        process, self._process = self._process, None
        counters, self._counters = self._counters, None
        if counters is not None:
            counters.words[Word.HANG] = 0
            counters.close()
        if process is None:
            return
        with contextlib.suppress(OSError):
            syscalls.umount(os.fsencode(self.mountpoint), syscalls.MNT_DETACH)
        process.terminate()
        try:
            process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def _page(self) -> Counters:
        if self._counters is None:
            raise DemoFailed(f"the counting file system on {self.mountpoint} does not run")
        return self._counters

    def counts(self) -> dict[str, int]:
        """Requests by kind (the names of :class:`Op`) since the start or the last :meth:`reset`."""
        now = self._page.counts()
        return {op.name: now[op] - self._baseline[op] for op in Op}

    def total(self) -> int:
        """All requests since the start or the last :meth:`reset`."""
        return sum(self.counts().values())

    def reset(self) -> None:
        """Count from here."""
        self._baseline = self._page.counts()

    def set_latency(self, microseconds: int) -> None:
        """Hold every request that arrives from now on for so long."""
        self._page.words[Word.LATENCY] = microseconds

    def hang(self, on: bool) -> None:
        """Leave requests unanswered, or answer those that wait; who waits can be killed (fs/fuse/dev.c)."""
        self._page.words[Word.HANG] = int(on)

    def fail(self, error: int) -> None:
        """Answer every request with this errno; 0 ends it."""
        self._page.words[Word.FAIL] = error
