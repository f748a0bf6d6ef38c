"""A reader who never rests: looks at directories as fast as it can, and knows what it has to find at any instant.

``python reader.py SPEC.json``: so many operations, then it prints their number and every surprise as JSON. Besides it
makes, renames and deletes files of its own. It uses nothing of the code under test. Names that begin with ``s`` are the
server's to change, and only looked at for errors that nobody explains.
"""

import json
import os
import random
import sys
from typing import Any

FILES, INSIDE, MISSING = 24, 3, 6
MOST_SURPRISES = 20


def content_of(directory: str, name: str) -> bytes:
    """What the server has in a file."""
    return f"{directory}/{name} ".encode() * (10 + len(name))


def lower_files() -> list[str]:
    return [f"f{number:02}" for number in range(FILES)]


def lower_tree(directory: str) -> dict[str | bytes, Any]:
    """A directory of the server, as :mod:`support.trees` writes it."""
    inside = {f"g{number}": content_of(directory, f"sub/g{number}") for number in range(INSIDE)}
    return {**{name: content_of(directory, name) for name in lower_files()}, "sub": inside}


class Reader:
    """Works in the directories below ``root`` until it has done so many operations."""

    def __init__(self, root: str, directories: list[str], who: int, seed: int) -> None:
        self._root, self._directories, self._who = root, directories, who
        self._random = random.Random(seed * 1000 + who)
        self._own: dict[str, set[str]] = {directory: set() for directory in directories}
        self._serial = 0
        self.operations = 0
        self.surprises: list[str] = []

    def run(self, operations: int) -> None:
        while self.operations < operations and len(self.surprises) < MOST_SURPRISES:
            directory = self._random.choice(self._directories)
            try:
                self._look_at(directory)
                self._work_in(directory)
            except OSError as error:
                self.surprises.append(f"{directory}: {error}")

    def _look_at(self, directory: str) -> None:
        here = f"{self._root}/{directory}"
        for _ in range(3):
            for name in lower_files():
                size = os.stat(f"{here}/{name}").st_size
                if size != len(content_of(directory, name)):
                    self.surprises.append(f"{directory}/{name} has size {size}")
            for number in range(MISSING):
                try:
                    os.stat(f"{here}/x{number}")
                except FileNotFoundError:
                    continue
                self.surprises.append(f"{directory}/x{number} is there")
        self.operations += 3 * (FILES + MISSING)
        self._list(directory, here)
        for name in [*self._random.sample(lower_files(), 2), f"sub/g{self._random.randrange(INSIDE)}"]:
            with open(f"{here}/{name}", "rb") as file:
                found = file.read()
            if found != content_of(directory, name):
                self.surprises.append(f"{directory}/{name} holds {found[:40]!r}")
        self.operations += 3

    def _list(self, directory: str, here: str) -> None:
        names = os.listdir(here)
        seen = {name for name in names if name.startswith(("f", f"u{self._who}_"))} | ({"sub"} & set(names))
        expected = {*lower_files(), "sub"} | self._own[directory]
        if seen != expected or len(names) != len(set(names)):
            self.surprises.append(f"{directory} differs in {sorted(seen ^ expected)[:4]}")
        if sorted(os.listdir(f"{here}/sub")) != [f"g{number}" for number in range(INSIDE)]:
            self.surprises.append(f"{directory}/sub differs")
        self.operations += 2

    def _work_in(self, directory: str) -> None:
        """One file of its own more, or another name for one, or one less."""
        here, own = f"{self._root}/{directory}", self._own[directory]
        self._serial += 1
        name = f"u{self._who}_{self._serial}"
        if len(own) < 2:
            with open(f"{here}/{name}", "x") as file:
                file.write(name)
            own.add(name)
        elif self._serial % 2:
            old = own.pop()
            os.rename(f"{here}/{old}", f"{here}/{name}")
            own.add(name)
        else:
            os.unlink(f"{here}/{own.pop()}")
        self.operations += 1


def main() -> int:
    with open(sys.argv[1]) as file:
        spec = json.load(file)
    reader = Reader(spec["root"], spec["directories"], spec["who"], spec["seed"])
    reader.run(spec["operations"])
    json.dump({"operations": reader.operations, "surprises": reader.surprises}, sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
