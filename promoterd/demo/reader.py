"""Somebody who works on the share all the time, and notices if anything is not as it should be."""

import os
import random
import stat
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from promoterd.paths import join, show

_MOST_ERRORS = 1000


@dataclass(frozen=True)
class Known:
    """What is on the share: the content of every regular file, the names of every directory, and what is not there."""

    contents: dict[bytes, bytes]
    listings: dict[bytes, frozenset[bytes]]
    absent: tuple[bytes, ...]

    @classmethod
    def of(cls, source: bytes, absent: Sequence[bytes]) -> Self:
        """Learn a tree from the server's own side; ``absent`` are relative paths that must never appear."""
        contents: dict[bytes, bytes] = {}
        listings: dict[bytes, frozenset[bytes]] = {}
        for directory, below, names in os.walk(source):
            relative = os.path.relpath(directory, source) if directory != source else b""
            listings[relative] = frozenset([*below, *names])
            for name in names:
                if stat.S_ISREG(os.lstat(join(directory, name)).st_mode):
                    with open(join(directory, name), "rb") as file:
                        contents[join(relative, name)] = file.read()
        return cls(contents, listings, tuple(absent))


class Reader:
    """A thread that reads, lists and asks at random, with ``think`` seconds (changeable) between two requests.

    An error is any OSError, a wrong size or content, a listing with a name too few or too many (at the root, where a
    daemon may have its scratch directory: too few), and a name that must not be there.
    """

    def __init__(self, root: bytes, known: Known, *, think: float = 0.0015, seed: int = 1) -> None:
        self.think = think
        self.requests = 0
        self._root = root
        self._known = known
        self._files = sorted(known.contents)
        self._directories = sorted(known.listings)
        self._random = random.Random(seed)  # noqa: S311 - to repeat a run, not to keep a secret
        self._errors: list[str] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="reader", daemon=True)

    def start(self) -> Self:
        """Begin."""
        self._thread.start()
        return self

    def stop(self, timeout: float = 10.0) -> list[str]:
        """End, and tell every error that was met. A reader that cannot end, because the mount hangs, is an error."""
        self._stop.set()
        self._thread.join(timeout)
        if self._thread.is_alive():
            return [*self._errors, f"the reader has been stuck for more than {timeout:g} s"]
        return list(self._errors)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _run(self) -> None:
        checks = [self._read, self._read, self._ask, self._ask, self._list]
        if self._known.absent:
            checks.append(self._miss)
        while not self._stop.is_set() and len(self._errors) < _MOST_ERRORS:
            check = self._random.choice(checks)
            try:
                check()
            except OSError as error:
                self._errors.append(f"{check.__name__.removeprefix('_')}: {error}")
            self.requests += 1
            time.sleep(self.think)

    def _complain(self, path: bytes, what: str) -> None:
        self._errors.append(f"{show(path)}: {what}")

    def _read(self) -> None:
        path = self._random.choice(self._files)
        with open(join(self._root, path), "rb") as file:
            if file.read() != self._known.contents[path]:
                self._complain(path, "wrong content")

    def _ask(self) -> None:
        path = self._random.choice(self._files)
        size = os.lstat(join(self._root, path)).st_size
        if size != len(self._known.contents[path]):
            self._complain(path, f"size {size} instead of {len(self._known.contents[path])}")

    def _list(self) -> None:
        path = self._random.choice(self._directories)
        expected, listed = self._known.listings[path], set(os.listdir(join(self._root, path)))
        if lacking := expected - listed:
            self._complain(path, f"{len(lacking)} names are missing from the listing, such as {show(min(lacking))}")
        if path and (added := listed - expected):
            self._complain(path, f"{len(added)} names too many in the listing, such as {show(min(added))}")

    def _miss(self) -> None:
        path = self._random.choice(self._known.absent)
        if os.path.lexists(join(self._root, path)):
            self._complain(path, "exists, but should not")
