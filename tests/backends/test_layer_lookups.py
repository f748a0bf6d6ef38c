"""Lookups that are under way while a directory comes into the layer are waited for."""

import os
import signal
import subprocess
import threading
from collections.abc import Callable

import pytest

from promoterd.backends.layer.placing import wait_for_lookups
from promoterd.overlay import beneath
from support.overlays import MountedOverlay
from support.trees import files

MakeOverlay = Callable[..., MountedOverlay]


@pytest.mark.parametrize("read_only", [False, True], ids=["writable", "read-only"])
def test_one_that_hangs_is_waited_for(make_overlay: MakeOverlay, read_only: bool) -> None:
    mounted = make_overlay({"lib": files(2)}, counting=True)
    if read_only:
        subprocess.run(["mount", "-o", "remount,ro", mounted.mountpoint], check=True)
    pid = mounted.counted.pid
    assert pid is not None
    missing = mounted.at(b"never-there")
    root = beneath.open_root(mounted.mountpoint)
    os.kill(pid, signal.SIGSTOP)
    try:
        looking = threading.Thread(target=os.path.lexists, args=(missing,))
        looking.start()
        looking.join(0.3)
        assert looking.is_alive(), "the server does not answer"
        waiting = threading.Thread(target=wait_for_lookups, args=(root, b""))
        waiting.start()
        waiting.join(0.5)
        assert waiting.is_alive()
    finally:
        os.kill(pid, signal.SIGCONT)
    looking.join(10)
    waiting.join(10)
    os.close(root)
    assert not waiting.is_alive()


def test_it_asks_the_server_nothing(make_overlay: MakeOverlay) -> None:
    mounted = make_overlay({"lib": files(2)}, counting=True)
    root = beneath.open_root(mounted.mountpoint)
    mounted.reset()
    wait_for_lookups(root, b"")
    os.close(root)
    assert mounted.counted.counts()["LOOKUP"] == 0
    assert os.listdir(mounted.upper) == []
