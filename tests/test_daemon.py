"""The daemon in this process: one mount's error is no other's, and a daemon that has lost its work says so."""

import asyncio
import socket
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
from structlog.testing import capture_logs

from promoterd import daemon as module
from promoterd.daemon import Daemon
from promoterd.errors import LedgerError
from promoterd.keeper import Keeper
from promoterd.policy.load import parse_policy

FIRST, SECOND = "/nowhere/first", "/nowhere/second"
FULL = LedgerError(path="/state/ledger.sqlite", reason="database or disk is full")


@pytest.fixture
def systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "notify"))
        listener.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        monkeypatch.setenv("WATCHDOG_USEC", "40000")
        monkeypatch.delenv("WATCHDOG_PID", raising=False)
        yield listener


@pytest.fixture
def daemon(tmp_path: Path, systemd: socket.socket) -> Daemon:
    """With two mounts that are absent, and a watchdog."""
    del systemd
    mounts = "".join(f"  - {{mountpoint: {path}, rules: [{{path: '**'}}]}}\n" for path in (FIRST, SECOND))
    policy = parse_policy(
        f"state_dir: {tmp_path}/state\ncontrol: {{socket: {tmp_path}/control}}\n"
        f"metrics: {{listen: 127.0.0.1:0}}\nmounts:\n{mounts}"
    )
    return Daemon(str(tmp_path / "policy.yaml"), policy, structlog.get_logger())


def heard(systemd: socket.socket) -> list[str]:
    lines = []
    try:
        while True:
            lines += systemd.recv(4096).decode().splitlines()
    except BlockingIOError:
        return lines


def run(
    daemon: Daemon, systemd: socket.socket, what: Callable[[list[str]], Coroutine[Any, Any, None]]
) -> list[dict[str, Any]]:
    """While the daemon runs, with what it tells systemd; returns what it logged."""
    told: list[str] = []

    async def both() -> None:
        # what nobody reads fills the socket up, and the next one who tells systemd something waits
        asyncio.get_running_loop().add_reader(systemd, lambda: told.extend(heard(systemd)))
        running = asyncio.create_task(daemon.run())
        try:
            await what(told)
        finally:
            daemon.stop()
            await running

    with capture_logs() as logs:
        asyncio.run(both())
    return [dict(said) for said in logs]


async def until(what: Callable[[], bool], patience: float = 5.0) -> None:
    deadline = time.monotonic() + patience
    while not what():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


def beats(daemon: Daemon, result: str) -> float:
    return daemon.metrics.registry.get_sample_value("promoterd_watchdog_beats_total", {"result": result}) or 0.0


@pytest.mark.parametrize("error", [FULL, KeyError("a bug")], ids=["ledger", "bug"])
def test_stock_is_taken_of_the_others(
    daemon: Daemon, systemd: socket.socket, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    monkeypatch.setattr(module, "HOUSEKEEPING", 0.02)
    taken: list[str] = []
    is_well = False

    def take_stock(keeper: Keeper) -> None:
        taken.append(keeper.policy.mountpoint)
        if keeper.policy.mountpoint == FIRST and not is_well:
            raise error

    monkeypatch.setattr(Keeper, "take_stock", take_stock)

    async def look(_told: list[str]) -> None:
        nonlocal is_well
        await until(lambda: taken.count(SECOND) >= 3)
        is_well = True
        before = len(taken)
        await until(lambda: len(taken) > before + 4)
        is_well = False
        before = len(taken)
        await until(lambda: len(taken) > before + 4)
        await until(lambda: beats(daemon, "given") > 3)

    logs = run(daemon, systemd, look)
    said = [event for event in logs if event["event"] == "housekeeping_failed"]
    assert [event["mount"] for event in said] == [FIRST, FIRST], "once each time that it begins"
    assert said[0]["reason"] == str(error)
    assert said[0]["exc_info"] is (None if error is FULL else error), "a traceback is for bugs"
    assert beats(daemon, "withheld") == 0, "another start would not help"


def test_work_on_a_mount_that_has_ended_withholds_the_beats(
    daemon: Daemon, systemd: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = asyncio.Event()
    original = Keeper.run

    async def run_until_broken(keeper: Keeper) -> None:
        if keeper.policy.mountpoint == SECOND:
            await broken.wait()
            raise ValueError("a bug")
        await original(keeper)

    monkeypatch.setattr(Keeper, "run", run_until_broken)

    async def break_it(told: list[str]) -> None:
        await until(lambda: beats(daemon, "given") >= 2)
        assert beats(daemon, "withheld") == 0
        assert "WATCHDOG=1" in told
        broken.set()
        await until(lambda: beats(daemon, "withheld") >= 1)
        told.clear()
        given = beats(daemon, "given")
        await until(lambda: beats(daemon, "withheld") >= 4)
        assert beats(daemon, "given") == given
        assert "WATCHDOG=1" not in told

    logs = run(daemon, systemd, break_it)
    (failed,) = [event for event in logs if event["event"] == "mount_failed"]
    assert (failed["mount"], failed["reason"]) == (SECOND, "ValueError('a bug')")
    assert [event["event"] for event in logs].count("watchdog_withheld") == 1


def test_a_housekeeping_that_has_ended_withholds_the_beats(
    daemon: Daemon, systemd: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:

    async def housekeeping() -> None:
        await until(lambda: beats(daemon, "given") >= 2)

    monkeypatch.setattr(daemon, "_housekeeping", housekeeping)

    async def look(_told: list[str]) -> None:
        await until(lambda: beats(daemon, "withheld") >= 2)
        assert beats(daemon, "given") >= 2

    run(daemon, systemd, look)


def test_a_mount_that_policy_names_no_more_is_missed_by_nobody(daemon: Daemon, systemd: socket.socket) -> None:

    async def drop(_told: list[str]) -> None:
        await until(lambda: beats(daemon, "given") >= 2)
        daemon._configure(daemon.policy.model_copy(update={"mounts": daemon.policy.mounts[:1]}))
        given = beats(daemon, "given")
        await until(lambda: beats(daemon, "given") >= given + 4)

    logs = run(daemon, systemd, drop)
    assert beats(daemon, "withheld") == 0
    assert not [event for event in logs if event["event"] == "mount_failed"]
