"""What is wrong with a policy, said so that the next edit is right: line, key, found, allowed, probably meant."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeAlias

from promoterd.errors import PolicyError
from promoterd.paths import display
from promoterd.units import shown

Location: TypeAlias = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong; ``line`` counts from 1 and is None where the file could not be read at all."""

    line: int | None
    key: str
    found: str
    allowed: str
    suggestion: str | None = None

    def __str__(self) -> str:
        text = f"{self.key}: " if self.key else ""
        text += f"found {self.found}; allowed {self.allowed}"
        return f"{text}; did you mean {self.suggestion}?" if self.suggestion else text


def failure(file: str, problems: Iterable[Problem]) -> PolicyError:
    """One error that names all the problems, by line; they are in its ``fields`` too, under ``problems``."""
    ordered = sorted(set(problems), key=lambda problem: (problem.line or 0, problem.key))
    message = "\n".join(f"{place(file, problem.line)}: {problem}" for problem in ordered)
    return PolicyError(message, problems=tuple(ordered))


def place(file: str, line: int | None) -> str:
    """``FILE:LINE``, as compilers write it, so that editors can jump there."""
    name = display(file.encode("utf-8", "surrogateescape"))
    return name if line is None else f"{name}:{line}"


def dotted(location: Location) -> str:
    """``mounts[0].rules[2].path``."""
    text = ""
    for step in location:
        if isinstance(step, int):
            text += f"[{step}]"
        else:
            plain = step if re.fullmatch(r"[\w.-]{1,60}", step, re.ASCII) else shown(step)
            text += f".{plain}" if text else plain
    return text
