"""``promoterd warm``: through the daemon, or without one."""

import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

from promoterd.cli import render_warm
from promoterd.cli.asking import Daemon
from promoterd.cli.direct import work_on
from promoterd.cli.listing import Cut
from promoterd.cli.output import say_json, say_rich, warn
from promoterd.cli.privilege import require_privilege
from promoterd.cli.progress import Advance, progress_bar
from promoterd.cli.promoting import activate_marked
from promoterd.cli.settings import policy_for_acting
from promoterd.control.protocol import MAX_REQUEST, Request, path_to_text, text_to_path
from promoterd.errors import Interrupted, MountNotFound, PromoterdError, Refused, UsageError
from promoterd.heatlist import HeatList, read_list, write_list
from promoterd.heatlist.files import check_writable
from promoterd.mounted import Mounted
from promoterd.paths import display, show
from promoterd.policy import MountPolicy
from promoterd.states import State
from promoterd.warming import FAILURES, Warmed, Warmth
from promoterd.warming import warm as warm_mount

_MOST_AT_ONCE: Final = 256
_ROOM: Final = MAX_REQUEST - 4096
"""Bytes of one request that its directories may take."""
_ESCAPED: Final = 6
"""Bytes that one byte of a path takes in JSON at most, and what stands around a path as well."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What was typed."""

    lists: list[str]
    retry: str | None
    failures: str | None
    mounts: list[str]
    cut: Cut
    dry_run: bool

    def read(self) -> HeatList:
        """What is to be warmed. Raises UsageError, HeatListError."""
        if bool(self.lists) == (self.retry is not None):
            raise UsageError("either lists or --retry", hint="`promoterd warm LIST`, or `promoterd warm --retry FILE`")
        if self.retry is not None and (self.failures or self.dry_run or self.mounts or self.cut != Cut()):
            raise UsageError(
                "--retry FILE goes with no other option about what to promote",
                hint="FILE itself has what fails again; it can be given as a LIST with any option, too",
            )
        if self.written is not None:
            check_writable(self.written)
        heat = self.cut.of(read_list(self.lists if self.retry is None else [self.retry]))
        if self.mounts:
            points = {os.path.realpath(os.fsencode(mount)) for mount in self.mounts}
            heat.mounts = {point: found for point, found in heat.mounts.items() if point in points}
        return heat

    @property
    def written(self) -> str | None:
        """Where what fails is written to."""
        return self.failures if self.retry is None else self.retry


@dataclass(slots=True)
class _Account:
    """What has come of the directories of one mount so far."""

    mountpoint: bytes
    wanted: list[bytes]
    done: dict[bytes, Warmed] = field(default_factory=dict)
    pinned: int = 0
    problem: PromoterdError | None = None
    """What kept it from being worked on, or stopped that."""

    def tell(self, warmed: Warmed) -> None:
        if warmed.warmth is not Warmth.LEFT:
            self.done[warmed.path] = warmed

    @property
    def left(self) -> list[bytes]:
        return [path for path in self.wanted if path not in self.done]

    def having(self, *warmths: Warmth) -> list[Warmed]:
        return [warmed for warmed in self.done.values() if warmed.warmth in warmths]

    def as_plain(self) -> dict[str, Any]:
        counts = Counter(warmed.warmth.value for warmed in self.done.values())
        return {
            "mountpoint": display(self.mountpoint),
            "directories": len(self.wanted),
            "left": len(self.left),
            "pinned": self.pinned,
            "entries": sum(warmed.entries for warmed in self.done.values()),
            **{warmth.value: counts[warmth.value] for warmth in Warmth if warmth is not Warmth.LEFT},
            "problem": None if self.problem is None else self.problem.message,
            "failures": [_with_reason(warmed) for warmed in self.having(*FAILURES)],
            "skipped": [_with_reason(warmed) for warmed in self.having(Warmth.FORBIDDEN)],
        }


_Work = Callable[[_Account, Advance], None]


def _with_reason(warmed: Warmed) -> dict[str, Any]:
    return {"path": show(warmed.path), "outcome": warmed.warmth.value, "reason": warmed.reason}


def warm_lists(daemon: Daemon, asked: Asked, *, as_json: bool) -> int:
    """Promote what policy allows of the lists; 0 if nothing failed. Raises PromoterdError."""
    heat = asked.read()
    accounts = [_Account(point, heat.hottest(point, asked.cut.by)) for point in sorted(heat.mounts)]
    if daemon.runs:
        work: _Work = partial(_through, daemon, dry_run=asked.dry_run)
    else:
        work = _directly(daemon.config, dry_run=asked.dry_run)
    broken_off = _work_through(accounts, work, show=not as_json)
    if asked.written is not None and not asked.dry_run:
        _write_failures(heat, accounts, asked.written, keep_left=asked.retry is not None)
    error = broken_off or _what_stopped(accounts)
    answer = {"mounts": [account.as_plain() for account in accounts]}
    if not as_json:
        say_rich(*render_warm.warmed(answer, dry_run=asked.dry_run, failures=asked.written))
    elif error is None:
        say_json(answer)
    if error is not None:
        raise error
    return Refused.exit_code if any(account.having(*FAILURES) for account in accounts) else 0


def _work_through(accounts: list[_Account], work: _Work, *, show: bool) -> Interrupted | None:
    """One mount after the other; what stops the work on one does not keep it from the next. Ctrl-C does."""
    for account in accounts:
        title = f"warming {display(account.mountpoint)}"
        with progress_bar(title, wanted=show, unit="directories") as advance:
            try:
                work(account, advance)
            except (Interrupted, KeyboardInterrupt):
                left = sum(len(account.left) for account in accounts)
                hint = "no reader sees a difference; the same command goes on from here"
                return Interrupted(what=f"{left} directories are left", hint=hint)
            except PromoterdError as error:
                account.problem = error
    return None


def _what_stopped(accounts: list[_Account]) -> PromoterdError | None:
    """The first thing that must not be passed over; that another host has more mounts may be, if not all are such."""
    problems = [account.problem for account in accounts if account.problem is not None]
    serious = [problem for problem in problems if not isinstance(problem, MountNotFound)]
    if len(problems) == len(accounts):
        serious += problems
    return serious[0] if serious else None


def _write_failures(heat: HeatList, accounts: list[_Account], file: str, *, keep_left: bool) -> None:
    """What failed, with the reasons; with ``keep_left`` also what was not come to."""
    notes = {
        (account.mountpoint, warmed.path): f"{warmed.warmth.value}: {warmed.reason}"
        for account in accounts
        for warmed in account.having(*FAILURES)
    }
    left = [(account.mountpoint, path) for account in accounts for path in account.left] if keep_left else []
    write_list(heat.only([*notes, *left]), file, notes)


# Through the daemon


def _through(daemon: Daemon, account: _Account, advance: Advance, *, dry_run: bool) -> None:
    waiting, before, has_said = account.wanted, 0, False

    def show_progress(said: dict[str, Any]) -> None:
        advance(before + int(said.get("done", 0)), len(account.wanted))

    advance(0, len(account.wanted))
    while waiting:
        directories = _batch(waiting)
        asked = Request(command="warm", path=account.mountpoint, directories=directories, dry_run=dry_run)
        answer = daemon.ask(asked, show_progress)
        if answer["waits"] and not has_said:
            warn(f"promoterd: {answer['waits']}; what is left waits for that, or for Ctrl-C")
            has_said = True
        for one in answer["directories"]:
            account.tell(
                Warmed(text_to_path(one["path"]), Warmth(one["warmth"]), one["reason"], int(one.get("entries", 0)))
            )
        before = len(account.done)
        waiting = account.left


def _batch(waiting: Sequence[bytes]) -> tuple[bytes, ...]:
    """As many as fit into a request, at least one."""
    batch: list[bytes] = []
    room = _ROOM
    for path in waiting[:_MOST_AT_ONCE]:
        room -= len(path_to_text(path)) * _ESCAPED + _ESCAPED
        if batch and room < 0:
            break
        batch.append(path)
    return tuple(batch)


# Without one


def _directly(config: str | None, *, dry_run: bool) -> _Work:
    require_privilege()
    policy = policy_for_acting(config)
    policies = {mount.mountpoint_bytes: mount for mount in policy.mounts}
    os.chdir("/")  # our own working directory must not be what pins anything

    def work(account: _Account, advance: Advance) -> None:
        work_on(policy, _policy_of(account.mountpoint, policies), partial(_warm, account, advance, dry_run=dry_run))

    return work


def _policy_of(mountpoint: bytes, policies: dict[bytes, MountPolicy]) -> MountPolicy:
    found = policies.get(mountpoint)
    if found is None:
        names = ", ".join(map(display, policies))
        raise MountNotFound(f"the policy names no mount {display(mountpoint)}", hint=f"the policy names {names}")
    return found


async def _warm(account: _Account, advance: Advance, mount: Mounted, *, dry_run: bool) -> None:
    def tell(warmed: Warmed) -> None:
        account.tell(warmed)
        advance(len(account.done), len(account.wanted))

    advance(0, len(account.wanted))
    await warm_mount(mount, account.wanted, tell, dry_run=dry_run)
    waiting = [record.path for record in mount.book.in_states({State.COMPLETE, State.PINNED})]
    if waiting and not dry_run and mount.backend.marks:  # from a run that was broken off, too
        account.pinned = len((await activate_marked(mount, waiting))["pinned"])
    if account.left:
        raise Interrupted(what="stopped by the user")
