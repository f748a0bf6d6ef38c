"""Fixtures for all tests, and the rules that they stand under.

``@pytest.mark.needs("root", "fuse", "overlay")``: the test is skipped on a machine that lacks one of these, and *fails*
there when the environment variable CI is set: a test that nobody runs proves nothing. The overlay fixtures ask for what
they need by themselves.

Tests that need something, or an overlay, carry the marker `system`: `-m "not system"` runs anywhere.

A test that leaves a mount below its directory or a child process behind fails, and the thing is removed.
"""

import logging
import signal
from collections.abc import Callable, Generator, Iterator
from typing import Any

import pytest
import structlog

from support import leftovers, overlays
from support.needs import need
from support.overlays import MountedOverlay

_SLOW = ("daemon", "cli")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "needs(*what): root, fuse, overlay, loop or a program; see tests/support/needs.py"
    )
    config.addinivalue_line("markers", "stress: takes so long that only `make stress` runs it")
    config.addinivalue_line("markers", "system: needs root, FUSE, an overlay or the like; set by itself")
    leftovers.adopt_orphans()
    # a shell starts what runs in its background with SIGINT ignored, and so would be the commands that tests interrupt
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        fixtures: list[str] = getattr(item, "fixturenames", [])
        if "make_overlay" in fixtures or item.get_closest_marker("needs") is not None:
            item.add_marker("system")
    items.sort(key=lambda item: item.path.parent.name not in _SLOW)  # lest one worker is left with them at the end


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """What tests of odd names print is not always text, and a worker has to send it (pytest-xdist)."""
    report = yield
    report.sections = [(title, _as_text(content)) for title, content in report.sections]
    if report.failed and report.longrepr is not None and not _is_text(str(report.longrepr)):
        report.longrepr = _as_text(str(report.longrepr))
    return report


def _as_text(content: str) -> str:
    return content.encode("utf-8", "backslashreplace").decode()


def _is_text(content: str) -> bool:
    return _as_text(content) == content


def pytest_runtest_setup(item: pytest.Item) -> None:
    for marker in item.iter_markers("needs"):
        need(*marker.args)


@pytest.fixture(autouse=True, scope="session")
def _no_mounts_after_all(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    base = str(tmp_path_factory.getbasetemp())
    yield
    left = leftovers.mounts_below(base)
    leftovers.detach(left)
    assert not left, f"mounts left behind at the end: {left}"


@pytest.fixture(autouse=True)
def _logging_as_it_was() -> Iterator[None]:
    """What a command says about its log when it runs in this process holds for no other test."""
    root, others = logging.getLogger(), logging.getLogger("pyinotify")
    handlers, level, own = list(root.handlers), root.level, list(others.handlers)
    yield
    root.handlers[:], others.handlers[:] = handlers, own
    root.setLevel(level)
    logging.captureWarnings(capture=False)
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


@pytest.fixture(autouse=True)
def _nothing_left_behind(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    base = str(tmp_path_factory.getbasetemp())
    mounted, running = set(leftovers.mounts_below(base)), leftovers.children()
    yield
    mounts = [point for point in leftovers.mounts_below(base) if point not in mounted]
    processes = leftovers.new_children(running)
    leftovers.kill(processes)
    leftovers.detach(mounts)
    assert not mounts, f"mounts left behind: {mounts}"
    assert not processes, f"processes left behind: {processes}"


@pytest.fixture
def make_overlay(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., MountedOverlay]]:
    """:func:`support.overlays.make_overlay` without its first argument; everything made is undone after the test."""
    made: list[MountedOverlay] = []

    def make(*lowers: Any, **options: Any) -> MountedOverlay:
        base = bytes(tmp_path_factory.mktemp("overlay"))
        made.append(overlays.make_overlay(base, *lowers, **options))
        return made[-1]

    try:
        yield make
    finally:
        for overlay in reversed(made):
            overlay.close()
