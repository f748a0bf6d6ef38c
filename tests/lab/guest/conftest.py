"""Fixtures for tests in the guest: overlays on real NFS, and the real daemon on them."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from itertools import count
from pathlib import Path

import pytest

from lab.guest import server
from lab.guest.stack import Nfs, layered_on, mounted_nfs, need_data_only_layers, overlay_on, upper_home
from support.daemons import RunningDaemon, daemons
from support.overlays import MountedOverlay
from support.trees import Tree, build

_NUMBERS = count(1)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--part", default="1/1", metavar="N/ALL", help="only every ALLth file of tests, from the Nth on")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    first, step = map(int, config.getoption("--part").split("/"))
    ours = sorted({item.path for item in items})[first - 1 :: step]
    items[:] = [item for item in items if item.path in ours]


@pytest.fixture(scope="session", autouse=True)
def _nfs_server() -> None:
    server.start("/dev/vdb")


@pytest.fixture(autouse=True)
def _keeps_its_name() -> Iterator[None]:
    """A heat source in this process gives it the daemon's name, and the next test may be an application."""
    before = Path("/proc/self/comm").read_text()
    yield
    for thread in Path("/proc/self/task").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):
            (thread / "comm").write_text(before)


@pytest.fixture
def make_overlay() -> Iterator[Callable[..., MountedOverlay]]:
    """A tree on the server, a mount of it, and an overlay on that; all but the tree is undone after the test.

    The result's ``on_server`` is the server's own side. ``squashed`` exports it with ``root_squash``; ``layered`` puts
    a metadata layer above it, and skips the test where the kernel cannot have one.
    """
    with ExitStack() as stack:

        def make(
            tree: Tree,
            nfs: Nfs = Nfs(),  # noqa: B008
            upper_fs: str = "tmpfs",
            *,
            squashed: bool = False,
            layered: bool = False,
        ) -> MountedOverlay:
            if layered:
                need_data_only_layers()
            base = b"/mnt/test%d" % next(_NUMBERS)
            place = (server.SQUASHED if squashed else server.EXPORT) + base
            build(place, tree)
            if layered:
                home = stack.enter_context(upper_home(upper_fs, base + b"/local"))
                return stack.enter_context(layered_on(nfs, home, directories=[place], at=base))
            layer = stack.enter_context(mounted_nfs(nfs, place, base + b"/nfs"))
            home = stack.enter_context(upper_home(upper_fs, base + b"/local"))
            return stack.enter_context(overlay_on([layer], home, on_server=[place], at=base))

        yield make


@pytest.fixture
def make_daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., RunningDaemon]]:
    """:func:`support.daemons.daemons` in temporary directories."""
    with daemons(lambda: bytes(tmp_path_factory.mktemp("daemon"))) as make:
        yield make
