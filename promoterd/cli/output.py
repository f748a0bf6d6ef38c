"""What the command line writes, and how: whole texts, so that a closed pipe or a full disk is met in one place."""

import io
import json
import shutil
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from promoterd.errors import PromoterdError

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

_WIDTH_OF_A_PIPE = 160


class OutputClosed(Exception):
    """Whoever read our output has gone, as ``head`` does."""


def say(text: str) -> None:
    """Write text to standard output. Raises OutputClosed, PromoterdError."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError as error:
        raise OutputClosed from error
    except OSError as error:
        raise PromoterdError(f"the output cannot be written: {error.strerror}") from error


def say_json(value: Any, *, on_one_line: bool = False) -> None:
    """Write one JSON object; ASCII only, so that no terminal or pipe can spoil it."""
    say(json.dumps(value, indent=None if on_one_line else 2) + "\n")


def warn(text: str) -> None:
    """Write a line to standard error; nobody there to read it is no reason to fail."""
    try:
        sys.stderr.write(text + "\n")
        sys.stderr.flush()
    except OSError:
        return


def say_rich(*renderables: "RenderableType") -> None:
    """Write tables and the like, as wide and as coloured as standard output allows."""
    say(rendered(renderables))


def rendered(renderables: Iterable["RenderableType"]) -> str:
    """As :func:`say_rich` writes them."""
    console = console_for_stdout()
    for renderable in renderables:
        console.print(renderable)
    return text_of(console)


def console_for_stdout() -> "Console":
    """A console that collects what :func:`text_of` then gives, laid out for standard output."""
    from rich.console import Console

    return Console(
        file=io.TextIOWrapper(io.BytesIO(), encoding=sys.stdout.encoding, errors="backslashreplace"),
        force_terminal=sys.stdout.isatty(),
        width=shutil.get_terminal_size((_WIDTH_OF_A_PIPE, 24)).columns,
        markup=False,
        emoji=False,
        highlight=False,
    )


def text_of(console: "Console") -> str:
    """What was printed to a console of ours."""
    file = console.file
    file.seek(0)
    return "\n".join(line.rstrip() for line in file.read().split("\n"))
