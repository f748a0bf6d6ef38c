"""The time before a reopening in which nobody may write (R6)."""

import os
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Self

from promoterd.backends.base import Busy
from promoterd.overlay import beneath
from promoterd.overlay.gate import UpperGate
from promoterd.overlay.mounts import Overlay
from promoterd.paths import show


class QuietPeriod:
    """Hears who changes names in upper directories, from :meth:`begin` to :meth:`close`; or as a context manager.

    It may last long, so it holds inotify watches on upper inodes and no descriptor of any layer (R16). ``seconds`` is
    how long it is meant to last; waiting is the caller's. Directories that upper does not have are left out.
    """

    def __init__(self, overlay: Overlay, paths: Sequence[bytes], seconds: float) -> None:
        self._overlay = overlay
        self._paths = paths
        self._seconds = seconds
        self._lock = threading.Lock()
        self._stack = ExitStack()
        self._gate: UpperGate | None = None
        self._is_over = False
        self._changed: set[bytes] = set()

    def begin(self) -> None:
        """Hear from now on; nothing where it was closed meanwhile. Raises OSError, WatchLimitReached."""
        assert self._overlay.upper is not None  # noqa: S101 - something was marked there
        with ExitStack() as stack:
            upper = beneath.open_root(self._overlay.upper)
            try:
                present = [path for path in self._paths if _is_directory(upper, path)]
                gate = stack.enter_context(UpperGate(upper, present))
            finally:
                os.close(upper)
            with self._lock:
                if not self._is_over:
                    self._gate, self._stack = gate, stack.pop_all()

    def close(self) -> None:
        """Hear no more. May be called from another thread, and while :meth:`begin` is under way."""
        with self._lock:
            self._is_over, self._gate = True, None
            self._stack.close()

    def __enter__(self) -> Self:
        self.begin()
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def check(self, paths: Sequence[bytes]) -> None:
        """Raise Busy where somebody changed a name in one of these since the beginning, or that is not known."""
        with self._lock:
            if self._gate is None:
                raise Busy(path=show(paths[0]), reason="nobody watches it any more")
            self._changed |= self._gate.changes()
            if not self._changed.isdisjoint(paths):
                raise Busy(path=show(paths[0]), reason=f"somebody wrote there in the last {self._seconds:g} s")


def _is_directory(upper: int, path: bytes) -> bool:
    try:
        with beneath.opened(upper, path):
            return True
    except (FileNotFoundError, NotADirectoryError):
        return False
