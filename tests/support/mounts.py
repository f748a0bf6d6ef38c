"""A mount taken into work in this process, as the daemon does it, without the daemon's loops."""

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import structlog

from promoterd.ledger import Ledger
from promoterd.metrics import Metrics
from promoterd.mounted import Mounted
from promoterd.opening import OpenedMount
from promoterd.overlay.mounts import overlay_at
from promoterd.policy import MountPolicy
from support.daemons import mount_policy
from support.overlays import MountedOverlay


@contextmanager
def taken(
    mounted: MountedOverlay,
    rules: Sequence[Mapping[str, Any]] = ({"path": "**"},),
    *,
    metrics: Metrics | None = None,
    **keys: Any,
) -> Iterator[Mounted]:
    """In work under these rules, with a ledger beside the overlay that lasts from one time to the next."""
    policy = MountPolicy.model_validate(mount_policy(mounted, rules, **keys))
    with (
        Ledger(os.fsdecode(mounted.base) + "/state") as ledger,
        OpenedMount(
            overlay_at(mounted.mountpoint),
            policy,
            ledger=ledger,
            metrics=metrics or Metrics(),
            log=structlog.get_logger(),
            clock=time.time,
        ) as mount,
    ):
        yield mount
