"""What systemd is told (sd_notify(3)); nothing where systemd does not listen."""

import asyncio
import os
import time
from collections.abc import Callable

from sdnotify import SystemdNotifier

from promoterd.log import get_logger

log = get_logger(__name__)


class Notifier:
    """Speaks to the socket that NOTIFY_SOCKET names. Every method does nothing where there is none."""

    def __init__(self) -> None:
        # without the variable SystemdNotifier would leave a socket open for the garbage collector
        self._systemd = SystemdNotifier() if os.environ.get("NOTIFY_SOCKET") else None

    def close(self) -> None:
        """Close the socket; nothing is told any more."""
        if self._systemd is not None and self._systemd.socket is not None:
            self._systemd.socket.close()
        self._systemd = None

    def ready(self, status: str | None = None) -> None:
        """Started, or done with reloading."""
        self._tell("READY=1", *_status(status))

    def reloading(self) -> None:
        """Reading the policy again; :meth:`ready` ends it."""
        now = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        self._tell("RELOADING=1", f"MONOTONIC_USEC={now}")

    def stopping(self, status: str | None = None) -> None:
        """Shutting down."""
        self._tell("STOPPING=1", *_status(status))

    def status(self, text: str) -> None:
        """One line for ``systemctl status``."""
        self._tell(*_status(text))

    async def watchdog(self, healthy: Callable[[], bool], on_beat: Callable[[bool], None] | None = None) -> None:
        """Keep systemd's watchdog content for as long as ``healthy`` says so, until cancelled.

        Returns at once where no watchdog waits for this process. The first of several beats withheld is logged, and
        ``on_beat`` hears of every one, given or withheld; without them systemd ends the service after WatchdogSec.
        """
        interval = watchdog_interval()
        if interval is None or self._systemd is None:
            return
        was_well = True
        while True:
            is_well = _ask(healthy)
            if is_well:
                self._tell("WATCHDOG=1")
            elif was_well:
                log.error("watchdog_withheld", reason="the daemon is not healthy; systemd will restart it")
            was_well = is_well
            if on_beat is not None:
                on_beat(is_well)
            await asyncio.sleep(interval)

    def _tell(self, *assignments: str) -> None:
        if self._systemd is not None:
            # sdnotify encodes as Latin-1, and drops what that cannot hold; systemd wants UTF-8
            text = "\n".join(assignments).encode("utf-8", "backslashreplace")
            self._systemd.notify(text.decode("latin-1"))


def watchdog_interval() -> float | None:
    """Seconds between two beats: half of what systemd allows (sd_watchdog_enabled(3)); None where it waits for none."""
    try:
        allowed = int(os.environ.get("WATCHDOG_USEC", "0"))
        process = int(os.environ.get("WATCHDOG_PID", os.getpid()))
    except ValueError:
        return None
    return allowed / 2 / 1_000_000 if allowed > 0 and process == os.getpid() else None


def _status(text: str | None) -> tuple[str, ...]:
    return () if text is None else ("STATUS=" + " ".join(text.split()),)


def _ask(healthy: Callable[[], bool]) -> bool:
    try:
        return healthy()
    except Exception:
        log.exception("watchdog_check_failed")
        return False
