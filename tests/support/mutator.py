"""A user who never rests: works at random on names of its own in shared directories, and knows what it should find.

``python mutator.py SPEC.json``: until standard input ends, then prints its operations and every surprise as JSON. It
uses nothing of the code under test.
"""

import errno
import json
import os
import random
import shutil
import sys
import threading
import time
from collections.abc import Callable  # noqa: TC003 - the program stands alone
from dataclasses import dataclass, field
from typing import Any

FILES, DIRECTORIES, INSIDE = 12, 2, 2
MOST_SURPRISES = 20


def content_of(directory: str, name: str) -> str:
    """What the server has in a file."""
    return f"{directory}/{name} " * 20


def lower_files(who: int) -> list[str]:
    return [f"w{who}_{number}" for number in range(FILES)]


def lower_directories(who: int) -> list[str]:
    return [f"w{who}_d{number}" for number in range(DIRECTORIES)]


@dataclass
class Model:
    """What one directory should hold of ours."""

    files: dict[str, str]
    directories: dict[str, dict[str, str]]
    gone: set[str] = field(default_factory=set)


class Mutator:
    """Works in all directories below ``root``; ``think`` is the longest pause between two operations, in seconds."""

    def __init__(self, root: str, directories: list[str], who: int, seed: int, think: float) -> None:
        self._root, self._who, self._think = root, who, think
        self._random = random.Random(seed * 1000 + who)
        self._models = {
            directory: Model(
                {name: content_of(directory, name) for name in lower_files(who)},
                {
                    name: {f"g{number}": content_of(directory, f"{name}/g{number}") for number in range(INSIDE)}
                    for name in lower_directories(who)
                },
            )
            for directory in directories
        }
        self._serial = 0
        self.operations: dict[str, int] = {}
        self.surprises: list[str] = []

    def run(self, stop: threading.Event) -> None:
        weights: dict[Callable[[str, Model], None], int] = {
            self.stat: 4,
            self.read: 4,
            self.miss: 4,
            self.look_inside: 3,
            self.rename: 3,
            self.listing: 2,
            self.create: 2,
            self.unlink: 2,
            self.recreate: 1,
            self.rename_over: 1,
            self.write: 1,
            self.chmod: 1,
            self.link: 1,
            self.move_out_and_in: 1,
            self.rename_directory: 1,
            self.replace_directory: 1,
        }
        operations, shares = list(weights), list(weights.values())
        while not stop.is_set() and len(self.surprises) < MOST_SURPRISES:
            directory = self._random.choice(list(self._models))
            operation = self._random.choices(operations, shares)[0]
            try:
                operation(directory, self._models[directory])
            except OSError as error:
                code = errno.errorcode.get(error.errno or 0)
                self._complain(operation.__name__, f"{code} {error.filename} {error.filename2 or ''}")
            self.operations[operation.__name__] = self.operations.get(operation.__name__, 0) + 1
            time.sleep(self._random.random() * self._think)

    def _complain(self, operation: str, what: str) -> None:
        self.surprises.append(f"{operation}: {what}")

    def _at(self, directory: str, name: str = "") -> str:
        return f"{self._root}/{directory}/{name}" if name else f"{self._root}/{directory}"

    def _new_name(self) -> str:
        self._serial += 1
        return f"w{self._who}_n{self._serial}"

    def _pick(self, names: Any) -> str | None:
        return self._random.choice(sorted(names)) if names else None

    def stat(self, directory: str, model: Model) -> None:
        if name := self._pick(model.files):
            size = os.stat(self._at(directory, name)).st_size
            if size != len(model.files[name]):
                self._complain("stat", f"{directory}/{name} has size {size}, not {len(model.files[name])}")

    def read(self, directory: str, model: Model) -> None:
        if name := self._pick(model.files):
            with open(self._at(directory, name)) as file:
                if (found := file.read()) != model.files[name]:
                    self._complain("read", f"{directory}/{name} holds {found[:40]!r}")

    def miss(self, directory: str, model: Model) -> None:
        for name in [*sorted(model.gone)[:3], f"w{self._who}_none{self._random.random()}"]:
            if os.path.lexists(self._at(directory, name)):
                self._complain("miss", f"{directory}/{name} came back")

    def listing(self, directory: str, model: Model) -> None:
        seen = {name for name in os.listdir(self._at(directory)) if name.startswith(f"w{self._who}_")}
        if seen != model.files.keys() | model.directories.keys():
            odd = sorted(seen ^ (model.files.keys() | model.directories.keys()))
            self._complain("listing", f"{directory} differs in {odd[:4]}")

    def look_inside(self, directory: str, model: Model) -> None:
        if name := self._pick(model.directories):
            inside = model.directories[name]
            seen = sorted(os.listdir(self._at(directory, name)))
            if seen != sorted(inside):
                self._complain("look_inside", f"{directory}/{name} holds {seen}, not {sorted(inside)}")
            for child, content in inside.items():
                with open(self._at(directory, f"{name}/{child}")) as file:
                    if file.read() != content:
                        self._complain("look_inside", f"{directory}/{name}/{child} has another content")

    def create(self, directory: str, model: Model) -> None:
        name = self._new_name()
        self._write_new(directory, model, name)

    def recreate(self, directory: str, model: Model) -> None:
        if name := self._pick(model.gone):
            self._write_new(directory, model, name)

    def _write_new(self, directory: str, model: Model, name: str) -> None:
        with open(self._at(directory, name), "x") as file:
            file.write("new")
        model.files[name] = "new"
        model.gone.discard(name)

    def unlink(self, directory: str, model: Model) -> None:
        if len(model.files) > FILES // 2 and (name := self._pick(model.files)):
            os.unlink(self._at(directory, name))
            del model.files[name]
            model.gone.add(name)

    def rename(self, directory: str, model: Model) -> None:
        if name := self._pick(model.files):
            new = self._new_name()
            os.rename(self._at(directory, name), self._at(directory, new))
            model.files[new] = model.files.pop(name)
            model.gone.add(name)

    def rename_over(self, directory: str, model: Model) -> None:
        if len(model.files) > FILES // 2:
            name, over = self._random.sample(sorted(model.files), 2)
            os.rename(self._at(directory, name), self._at(directory, over))
            model.files[over] = model.files.pop(name)
            model.gone.add(name)

    def link(self, directory: str, model: Model) -> None:
        if name := self._pick(model.files):
            new = self._new_name()
            os.link(self._at(directory, name), self._at(directory, new))
            os.unlink(self._at(directory, name))
            model.files[new] = model.files.pop(name)
            model.gone.add(name)

    def write(self, directory: str, model: Model) -> None:
        if name := self._pick(model.files):
            content = f"written {self._random.random()} " * self._random.randint(1, 100)
            with open(self._at(directory, name), "w") as file:
                file.write(content)
            model.files[name] = content

    def chmod(self, directory: str, model: Model) -> None:
        if name := self._pick(model.files):
            os.chmod(self._at(directory, name), self._random.choice([0o600, 0o644]))

    def move_out_and_in(self, directory: str, model: Model) -> None:
        if name := self._pick(model.files):
            outside = f"{self._root}/outside_{self._who}"
            os.rename(self._at(directory, name), outside)
            other = self._random.choice(list(self._models))
            target = self._new_name()
            os.rename(outside, self._at(other, target))
            self._models[other].files[target] = model.files.pop(name)
            model.gone.add(name)

    def rename_directory(self, directory: str, model: Model) -> None:
        if self._random.random() < 0.1 and (name := self._pick(model.directories)):
            new = self._new_name()
            os.rename(self._at(directory, name), self._at(directory, new))
            model.directories[new] = model.directories.pop(name)
            model.gone.add(name)

    def replace_directory(self, directory: str, model: Model) -> None:
        if name := self._pick(model.directories):
            shutil.rmtree(self._at(directory, name))
            os.mkdir(self._at(directory, name))
            with open(self._at(directory, f"{name}/z"), "x") as file:
                file.write("z")
            model.directories[name] = {"z": "z"}

    def check_all(self) -> None:
        """A last look at everything."""
        for directory, model in self._models.items():
            self.listing(directory, model)
            for name, content in model.files.items():
                try:
                    with open(self._at(directory, name)) as file:
                        if file.read() != content:
                            self._complain("check", f"{directory}/{name} has another content")
                except OSError as error:
                    self._complain("check", f"{error}")
            for name in model.gone:
                if os.path.lexists(self._at(directory, name)):
                    self._complain("check", f"{directory}/{name} came back")


def main() -> int:
    with open(sys.argv[1]) as file:
        spec = json.load(file)
    mutator = Mutator(spec["root"], spec["directories"], spec["who"], spec["seed"], spec["think"])
    stop = threading.Event()
    thread = threading.Thread(target=mutator.run, args=(stop,))
    thread.start()
    sys.stdin.read()
    stop.set()
    thread.join()
    mutator.check_all()
    json.dump({"operations": mutator.operations, "surprises": mutator.surprises}, sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
