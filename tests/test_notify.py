import asyncio
import gc
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from promoterd.notify import Notifier


class Systemd:
    """A socket where systemd would listen."""

    def __init__(self, address: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(address)
        self.socket.settimeout(5)

    def heard(self) -> list[str]:
        return self.socket.recv(65536).decode("utf-8").split("\n")

    def heard_so_far(self) -> list[list[str]]:
        self.socket.setblocking(False)
        messages = []
        try:
            while True:
                messages.append(self.heard())
        except BlockingIOError:
            return messages


@pytest.fixture
def systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Systemd]:
    monkeypatch.delenv("WATCHDOG_USEC", raising=False)
    monkeypatch.delenv("WATCHDOG_PID", raising=False)
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    listener = Systemd(str(tmp_path / "notify"))
    yield listener
    listener.socket.close()


@pytest.fixture
def notifier(systemd: Systemd) -> Iterator[Notifier]:
    del systemd
    made = Notifier()
    yield made
    made.close()


def test_the_life_of_a_service(systemd: Systemd, notifier: Notifier) -> None:
    notifier.ready("working on 2 of 2 mounts")
    assert systemd.heard() == ["READY=1", "STATUS=working on 2 of 2 mounts"]
    before = time.monotonic_ns() // 1000
    notifier.reloading()
    reloading, stamp = systemd.heard()
    assert reloading == "RELOADING=1"
    assert before <= int(stamp.removeprefix("MONOTONIC_USEC=")) <= time.monotonic_ns() // 1000
    notifier.ready()
    assert systemd.heard() == ["READY=1"]
    notifier.stopping()
    assert systemd.heard() == ["STOPPING=1"]


def test_a_status_is_one_line_of_utf8_whatever_it_says(systemd: Systemd, notifier: Notifier) -> None:
    notifier.status("grüße 漢\nREADY=1 \udcff")
    assert systemd.heard() == ["STATUS=grüße 漢 READY=1 \\udcff"]


def test_an_abstract_socket_is_understood(monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"promoterd-test-{os.getpid()}"
    listener = Systemd(f"\0{name}")
    monkeypatch.setenv("NOTIFY_SOCKET", f"@{name}")
    notifier = Notifier()
    notifier.ready()
    assert listener.heard() == ["READY=1"]
    notifier.close()
    listener.socket.close()


def test_outside_systemd_nothing_happens_and_nothing_is_left_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    monkeypatch.setenv("WATCHDOG_USEC", "1000000")
    monkeypatch.delenv("WATCHDOG_PID", raising=False)
    before = set(os.listdir("/proc/self/fd"))
    notifier = Notifier()
    for tell in (notifier.ready, notifier.reloading, notifier.stopping, notifier.close):
        tell()
    asyncio.run(asyncio.wait_for(notifier.watchdog(lambda: True), 5))
    gc.collect()
    assert set(os.listdir("/proc/self/fd")) == before


def test_a_systemd_that_is_gone_is_survived(systemd: Systemd, notifier: Notifier) -> None:
    systemd.socket.close()
    notifier.ready()
    notifier.status("still here")


async def beat(notifier: Notifier, seconds: float, healthy: list[bool], heard: list[bool]) -> None:
    turns = iter(healthy)
    task = asyncio.create_task(notifier.watchdog(lambda: next(turns, healthy[-1]), heard.append))
    await asyncio.wait({task}, timeout=seconds)
    assert not task.done()
    task.cancel()


def test_the_watchdog_is_fed_at_half_its_interval(
    systemd: Systemd, notifier: Notifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "200000")
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    asyncio.run(beat(notifier, 0.95, [True], []))
    beats = systemd.heard_so_far()
    assert set(map(tuple, beats)) == {("WATCHDOG=1",)}
    assert 6 <= len(beats) <= 10


def test_the_watchdog_goes_hungry_while_the_daemon_is_not_healthy(
    systemd: Systemd, notifier: Notifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "20000")
    heard: list[bool] = []
    asyncio.run(beat(notifier, 0.5, [True, False, True, False], heard))
    assert heard[:4] == [True, False, True, False]
    assert len(systemd.heard_so_far()) == 2


def test_a_health_check_that_fails_is_no_health(
    systemd: Systemd, notifier: Notifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "20000")

    async def main() -> None:
        task = asyncio.create_task(notifier.watchdog(lambda: 1 // 0 > 0))
        await asyncio.wait({task}, timeout=0.2)
        assert not task.done()
        task.cancel()

    asyncio.run(main())
    assert systemd.heard_so_far() == []


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"WATCHDOG_USEC": "0"},
        {"WATCHDOG_USEC": "soon"},
        {"WATCHDOG_USEC": "20000", "WATCHDOG_PID": str(os.getpid() + 1)},
    ],
)
def test_a_watchdog_that_waits_for_nobody_or_another_is_left_alone(
    systemd: Systemd, notifier: Notifier, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    asyncio.run(asyncio.wait_for(notifier.watchdog(lambda: True), 5))
    assert systemd.heard_so_far() == []
