"""What a keeper does with the work on its mount, where that and the mount end together."""

import asyncio
import gc
import os
import time
from collections.abc import Callable
from typing import Any

import pytest
import structlog

from promoterd.errors import MountGone
from promoterd.keeper import Keeper
from promoterd.ledger import Ledger
from promoterd.metrics import Metrics
from promoterd.overlay.mounts import overlay_at
from promoterd.policy import MountPolicy
from support.daemons import mount_policy
from support.overlays import MountedOverlay

MakeOverlay = Callable[..., MountedOverlay]


class Breaking:
    """Work that fails as soon as the mount is gone, as calls in a worker's threads do."""

    async def run(self, source: object, *, rebuild: bool) -> None:
        del source, rebuild
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            raise MountGone(mountpoint="/mnt") from None

    class mount:  # noqa: N801 - stands for the worker's attribute
        class book:  # noqa: N801
            @staticmethod
            def counts() -> dict[str, int]:
                return {"active": 1}


@pytest.mark.parametrize("end", ["its mount goes", "it is cancelled"])
def test_work_that_breaks_off_is_no_lost_error(make_overlay: MakeOverlay, end: str) -> None:
    mounted = make_overlay({"lib": {}})
    overlay = overlay_at(mounted.mountpoint)
    lost: list[dict[str, Any]] = []

    async def until_it_goes(keeper: Keeper) -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: lost.append(context))
        waiting = asyncio.create_task(keeper._until_it_goes(Breaking(), None, overlay))  # type: ignore[arg-type]
        await asyncio.sleep(0.05)
        if end == "it is cancelled":
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
        else:
            mounted.umount()
            keeper.mounts_changed()
            with pytest.raises(MountGone):
                await waiting
        del waiting
        gc.collect()
        await asyncio.sleep(0.05)
        others = asyncio.all_tasks() - {asyncio.current_task()}
        assert not others, "nothing goes on by itself"

    policy = MountPolicy.model_validate(mount_policy(mounted))
    with Ledger(os.fsdecode(mounted.base) + "/state") as ledger:
        begun = time.monotonic()
        asyncio.run(until_it_goes(Keeper(policy, ledger=ledger, metrics=Metrics(), log=structlog.get_logger())))
    assert lost == []
    assert time.monotonic() - begun < 5
