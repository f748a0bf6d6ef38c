"""Daemons for tests; see :mod:`support.daemons`."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from support.daemons import RunningDaemon


@pytest.fixture
def make_daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., RunningDaemon]]:
    """:class:`support.daemons.RunningDaemon` without its first argument, not started yet; killed after the test."""
    with ExitStack() as stack:

        def make(*mounts: Any, **policy: Any) -> RunningDaemon:
            base = bytes(tmp_path_factory.mktemp("daemon"))
            return stack.enter_context(RunningDaemon(base, *mounts, **policy))

        yield make
