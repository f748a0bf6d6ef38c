"""Daemons for tests; see :mod:`support.daemons`."""

from collections.abc import Callable, Iterator

import pytest

from support.daemons import RunningDaemon, daemons


@pytest.fixture
def make_daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., RunningDaemon]]:
    """:func:`support.daemons.daemons` in temporary directories."""
    with daemons(lambda: bytes(tmp_path_factory.mktemp("daemon"))) as make:
        yield make
