"""The daemon: one policy, many mounts, wired in asyncio."""

import asyncio
import os
import signal
import time
from functools import partial

import structlog

from promoterd import __version__
from promoterd.backends import base as backends
from promoterd.control import ControlServer
from promoterd.errors import PolicyError, PromoterdError
from promoterd.handlers import Handlers
from promoterd.heat import base as heat
from promoterd.heat import tracefs
from promoterd.keeper import CLOSE_PATIENCE, Keeper, Phase
from promoterd.ledger import Ledger
from promoterd.metrics import Metrics
from promoterd.notify import Notifier
from promoterd.overlay.mountinfo import MountWatch
from promoterd.policy import MountPolicy, Policy, load_policy
from promoterd.turns import Turns

HOUSEKEEPING = 2.0
"""Seconds between two looks at free space and stuck calls."""
READY_PATIENCE = 20.0
"""Seconds after which systemd is told READY even if a mount is still opening: a dead server must not fail the start."""


class Daemon:
    """Runs until SIGTERM or SIGINT; SIGHUP reloads the policy and keeps the old one if the new one is bad."""

    def __init__(self, policy_file: str, policy: Policy, log: structlog.typing.FilteringBoundLogger) -> None:
        self.policy_file = policy_file
        self.policy = policy
        self.log = log
        self.started = time.time()
        self.metrics = Metrics()
        self.keepers: dict[str, Keeper] = {}
        self.turns = Turns()
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._ending: set[asyncio.Task[None]] = set()
        self._stop = asyncio.Event()
        self._notifier = Notifier()
        self._housekeeper: asyncio.Task[None] | None = None
        self._uncounted: set[str] = set()
        """Mount points of which no stock could be taken the last time."""

    async def run(self) -> None:
        """Start everything, wait for the end, stop everything. Raises PromoterdError where it cannot start."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        with Ledger(self.policy.state_dir) as ledger, MountWatch() as watch:
            self._ledger = ledger
            if ledger.was_rebuilt:
                self.log.error("ledger_rebuilt", reason="it was damaged and moved aside; disk is asked instead")
            tracefs.remove_leftovers()  # of a daemon that was killed, also where the policy names another source by now
            server = self._metrics_server = self.metrics.serve(self.policy.metrics.address)
            control = ControlServer(self.policy.control.socket, self.policy.control.group, Handlers(self).table())
            try:
                await control.start()
                loop.add_reader(watch.fileno(), self._mounts_changed, watch)
                loop.add_signal_handler(signal.SIGHUP, self._reload_quietly)
                self._configure(self.policy)
                await self._serve()
            finally:
                loop.remove_reader(watch.fileno())
                self._notifier.stopping()
                self.log.info("stopping")
                await self._shut_down()
                await control.stop()
                server.close()
                self._notifier.close()

    def stop(self) -> None:
        """Ask for the end."""
        self._stop.set()

    @property
    def is_stopping(self) -> bool:
        """Whether the end was asked for."""
        return self._stop.is_set()

    async def _serve(self) -> None:
        self._housekeeper = asyncio.create_task(self._housekeeping())
        background = [self._housekeeper, asyncio.create_task(self._tell_ready())]
        try:
            await self._stop.wait()
        finally:
            for task in background:
                task.cancel()

    async def _tell_ready(self) -> None:
        deadline = time.monotonic() + READY_PATIENCE
        await asyncio.sleep(0)
        while time.monotonic() < deadline and self._are_opening():  # noqa: ASYNC110 - several keepers, seldom, for a moment
            await asyncio.sleep(0.05)
        self._notifier.ready(self._summary())
        host, port = self._metrics_server.address or (None, None)
        self.log.info(
            "ready",
            version=__version__,
            mounts=len(self.keepers),
            pid=os.getpid(),
            metrics_host=host,
            metrics_port=port,
        )
        # a beat is given by the event loop itself: one that hangs gives none
        await self._notifier.watchdog(self._is_healthy, self.metrics.beat)

    def _is_healthy(self) -> bool:
        """Whether everything that runs until the end still does: the housekeeping, and the work on every mount."""
        running = [self._housekeeper, *self._tasks.values()]
        return not any(task is None or task.done() for task in running)

    def _are_opening(self) -> bool:
        return any(keeper.phase is Phase.OPENING for keeper in self.keepers.values())

    def _summary(self) -> str:
        working = sum(keeper.phase is Phase.WORKING for keeper in self.keepers.values())
        return f"working on {working} of {len(self.keepers)} mounts"

    def _mounts_changed(self, watch: MountWatch) -> None:
        watch.wait(0)
        for keeper in self.keepers.values():
            keeper.mounts_changed()

    async def _housekeeping(self) -> None:
        while True:
            self._take_stock()
            self._notifier.status(self._summary())
            await asyncio.sleep(HOUSEKEEPING)

    def _take_stock(self) -> None:
        """Of every mount; where one's cannot be taken, that is said once, and the others' is."""
        for mountpoint, keeper in self.keepers.items():
            try:
                keeper.take_stock()
            except Exception as error:
                if mountpoint not in self._uncounted:
                    foreseen = isinstance(error, PromoterdError)
                    self.log.error(  # noqa: TRY400 - with a traceback where it is a bug
                        "housekeeping_failed", mount=mountpoint, reason=str(error), exc_info=None if foreseen else error
                    )
                self._uncounted.add(mountpoint)
            else:
                self._uncounted.discard(mountpoint)

    # Policy

    def reload(self) -> None:
        """Read the policy again. Raises PolicyError and keeps the old one if the new one is bad."""
        self._notifier.reloading()
        try:
            fresh = load_policy(
                self.policy_file, known_backends=["auto", *backends.names()], known_heat_sources=["auto", *heat.names()]
            )
        except PolicyError as error:
            self.metrics.reloaded(ok=False)
            self.log.error("reload_failed", reason=str(error))  # noqa: TRY400 - for users, who need no traceback
            raise
        else:
            for name in ("state_dir", "control", "metrics", "log"):
                if getattr(fresh, name) != getattr(self.policy, name):
                    self.log.warning("needs_restart", key=name, reason="this change takes effect at the next start")
            self._configure(fresh)
            self.metrics.reloaded(ok=True)
            self.log.info("reloaded", mounts=len(self.keepers))
        finally:
            self._notifier.ready(self._summary())

    def _reload_quietly(self) -> None:
        try:
            self.reload()
        except PromoterdError:
            return

    def _configure(self, policy: Policy) -> None:
        """Start, stop and restart keepers, so that they are those of the policy; unchanged ones are left in peace."""
        self.policy = policy
        self.turns.places = policy.limits.promotions
        wanted = {mount.mountpoint: mount for mount in policy.mounts}
        for mountpoint, keeper in list(self.keepers.items()):
            if wanted.get(mountpoint) != keeper.policy:
                self._end(mountpoint)
            else:
                keeper.try_again()
        for mountpoint, mount in wanted.items():
            if mountpoint not in self.keepers:
                self._start(mount)

    def _start(self, policy: MountPolicy) -> None:
        keeper = Keeper(policy, ledger=self._ledger, metrics=self.metrics, log=self.log, turns=self.turns)
        self.keepers[policy.mountpoint] = keeper
        task = self._tasks[policy.mountpoint] = asyncio.create_task(self._keep(keeper, list(self._ending)))
        task.add_done_callback(partial(self._has_ended, policy.mountpoint))

    def _has_ended(self, mountpoint: str, task: asyncio.Task[None]) -> None:
        """Say so where nobody ended it; the watchdog's beats stop then."""
        if not task.cancelled():
            error = task.exception()
            self.log.error("mount_failed", mount=mountpoint, reason=repr(error), exc_info=error)

    def _end(self, mountpoint: str) -> None:
        del self.keepers[mountpoint]
        self._uncounted.discard(mountpoint)
        task = self._tasks.pop(mountpoint)
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)
        task.cancel()

    async def _keep(self, keeper: Keeper, before: list[asyncio.Task[None]]) -> None:
        """Run a keeper, when those that may still hold its upper layer have ended."""
        if before:
            await asyncio.wait(before)
        await keeper.run()

    async def _shut_down(self) -> None:
        for keeper in self.keepers.values():
            if keeper.mount is not None:
                keeper.mount.stop()
        for task in self._tasks.values():
            task.cancel()
        tasks = {*self._tasks.values(), *self._ending}
        if tasks:
            await asyncio.wait(tasks, timeout=2 * CLOSE_PATIENCE)
