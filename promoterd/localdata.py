"""Copies of small files' data on one mount, within the budget that policy gives: made, evicted, and followed up."""

from collections.abc import AsyncIterator, Callable, Collection, Iterable
from contextlib import asynccontextmanager, suppress
from functools import partial

from promoterd.backends.base import Busy, Plan
from promoterd.backends.data import DataStore
from promoterd.errors import MountGone, PromoterdError, Refused
from promoterd.mounted import Mounted
from promoterd.paths import show
from promoterd.pool import PoolClosed
from promoterd.queueing import overlaps
from promoterd.states import MARKED, State
from promoterd.terms import NANOSECONDS, terms_for

FILLED_AT_ONCE = 100
"""Directories that are looked at between two rechecks, the hottest first."""
FILL_AGAIN = 3600.0
"""Seconds until a directory is given another chance in which something kept files from being copied."""
_FILLED = frozenset({State.COMPLETE, State.ACTIVE, State.PINNED})


async def begin(mount: Mounted) -> None:
    """Count what there is, once, and let go of what policy does not want any more, or not so much of.

    Raises MountGone, OSError.
    """
    store = mount.backend.data
    if store is None or mount.budget.is_counted:
        return
    if mount.policy.copy_data is None and not await mount.with_layers(store.was_used):
        mount.budget.is_counted = True
        return
    for record in mount.book.in_states(MARKED):
        await mount.with_layers(partial(store.mend, path=record.path))
    await _count(mount, store, [record.path for record in mount.book.in_states(MARKED)])
    for path in mount.budget.unwanted():
        await _evict(mount, store, path, 0, "policy does not want it any more")
    tried: set[bytes] = set()
    while (victim := mount.budget.coldest(mount.heat_of, _untouched(mount, tried))) is not None:
        tried.add(victim.path)
        await _evict(mount, store, victim.path, victim.size, "the budget is smaller now")
    if mount.policy.copy_data is None and not mount.budget.files:
        await mount.with_layers(store.forget_use)
    mount.budget.is_counted = True


@asynccontextmanager
async def room_for(mount: Mounted, plan: Plan) -> AsyncIterator[None]:
    """Within the block a plan is shadowed and completed, with as much data as there is room for. Raises MountGone."""
    store = mount.backend.data
    if store is None:
        yield
        return
    await begin(mount)
    wanted = await mount.run(store.wanted, plan)
    try:
        for path in sorted(wanted, key=lambda path: (-mount.heat_of(path), path)):
            await _make_room(mount, store, path, wanted[path], plan)
            plan.data_room[path] = mount.budget.reserve(path, wanted[path])
        yield
    finally:
        mount.budget.release(plan.paths)
        with suppress(PromoterdError, PoolClosed, OSError):
            await _count(mount, store, [path for path in plan.paths if path in wanted or mount.budget.of(path).held])


async def refill(mount: Mounted) -> None:
    """Give complete directories the copies that they want and lack, the hottest first. Raises MountGone, OSError."""
    store, policy, budget = mount.backend.data, mount.policy.copy_data, mount.budget
    if store is None:
        return
    await begin(mount)
    budget.keep_only(lambda path: mount.book.is_marked(path) or overlaps(path, mount.busy))
    mount.metrics.data_held(budget.held)
    if policy is None or mount.paused is not None or mount.hold is not None:
        return
    now = mount.clock()
    due = [path for path in budget.lacking() if now >= budget.fill_again.get(path, 0.0)]
    for path in sorted(due, key=lambda path: (-mount.heat_of(path), path))[:FILLED_AT_ONCE]:
        if mount.stopping or await mount.run(mount.free_space_lack) is not None:
            return
        if mount.book.state(path) not in _FILLED or overlaps(path, mount.busy):
            continue
        holding = budget.of(path)
        await _make_room(mount, store, path, holding.held + holding.missing)
        room = budget.reserve(path, budget.limit)
        try:
            if room >= holding.smallest:
                await _fill(mount, store, path, room)
        finally:
            budget.release([path])


def status(mount: Mounted) -> dict[str, int] | None:
    """Bytes held and allowed, for people; None where nothing is copied and nothing was."""
    if mount.policy.copy_data is None and not mount.budget.held:
        return None
    return {"held": mount.budget.held, "budget": mount.budget.limit}


async def _fill(mount: Mounted, store: DataStore, path: bytes, room: int) -> None:
    """Copy what a complete directory lacks. What keeps it from that is tried again later. Raises MountGone."""
    policy = mount.policy.copy_data
    assert policy is not None  # noqa: S101 - refill() looked
    before = mount.budget.of(path)
    terms = terms_for(mount.policy, path, round(mount.clock() * NANOSECONDS), mount.book.is_restless)
    steps = store.fill(path, policy.wants, oldest_allowed_ns=terms.of(path).oldest_allowed_ns, room=room)
    mount.busy.add(path)
    try:
        while (size := await mount.run(next, steps, None)) is not None:
            if mount.stopping or mount.paused is not None or await mount.run(mount.free_space_lack) is not None:
                break
            mount.metrics.throttled(await mount.pace.settle())
            mount.metrics.throttled(await mount.throttle.take(size))
        await _count(mount, store, [path])
    except (MountGone, PoolClosed):
        raise
    except (PromoterdError, OSError) as error:
        mount.log.warning("data_not_copied", path=show(path), reason=str(error))
    finally:
        mount.busy.discard(path)
    gained = mount.budget.of(path).held - before.held
    if mount.budget.of(path).lacking >= before.lacking:
        mount.budget.fill_again[path] = mount.clock() + FILL_AGAIN
    else:
        mount.unsettled = True  # the overlay remembers where it found the data before
        mount.log.info("data_copied", path=show(path), bytes=gained)


async def _make_room(mount: Mounted, store: DataStore, path: bytes, wanted: int, plan: Plan | None = None) -> None:
    """Evict data of colder directories, the coldest first, until so many bytes fit into ``path``."""
    tried = {path} if plan is None else set(plan.paths)
    own = () if plan is None else (plan.path,)
    while (victim := mount.budget.victim(path, wanted, mount.heat_of, _untouched(mount, tried, own))) is not None:
        tried.add(victim.path)
        await _evict(mount, store, victim.path, victim.size, f"{show(path)} is hotter")


async def _evict(mount: Mounted, store: DataStore, path: bytes, at_least: int, why: str) -> None:
    """Have files of a directory fetch their data from the server again, or say what is in the way. Raises MountGone."""
    policy = mount.policy.copy_data
    mount.busy.add(path)
    try:
        freed = await mount.run(store.evict, path, None if policy is None else policy.wants, at_least)
        await _count(mount, store, [path])
    except (Busy, Refused, OSError) as error:
        mount.log.warning("data_not_evicted", path=show(path), reason=str(error))
        return
    finally:
        mount.busy.discard(path)
    if freed:
        mount.unsettled = True
        mount.metrics.data_evicted(freed)
        mount.log.info("data_evicted", path=show(path), bytes=freed, reason=why)


async def _count(mount: Mounted, store: DataStore, paths: Iterable[bytes]) -> None:
    policy = mount.policy.copy_data
    for path in paths:
        wants = None if policy is None else policy.wants
        mount.budget.note(path, await mount.with_layers(partial(store.holding, path=path, wants=wants)))
    mount.metrics.data_held(mount.budget.held)


def _untouched(mount: Mounted, tried: Collection[bytes], own: Collection[bytes] = ()) -> Callable[[bytes], bool]:
    """Whether nobody else works on a directory, and it was not tried yet."""
    return lambda path: path not in tried and not overlaps(path, mount.busy.difference(own))
