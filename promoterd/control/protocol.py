r"""What goes over the control socket: one request, one JSON object to a line, and the lines that answer it.

The request is ``{"version": 1, "command": "promote", "path": "/mnt/app/lib", "recursive": true}``. The answer is any
number of ``{"progress": {…}}``, then one ``{"result": {…}}`` or
``{"error": {"class", "message", "hint", "exit_code"}}``; empty lines between them only say that the daemon is alive.

Paths are absolute. In JSON they are text: UTF-8 is decoded, and each byte that is not UTF-8 stands as the lone
surrogate that PEP 383 gives it (U+DC80 to U+DCFF), always escaped (``"\udcff"``), so that every line is ASCII.
"""

import json
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from promoterd.errors import PromoterdError, UsageError

VERSION = 1
MAX_REQUEST = 64 * 1024
"""Bytes of a request's line; a path of PATH_MAX bytes, all of them escaped, takes 24 KiB."""
_PATH_MAX = 4096  # linux/limits.h


def path_to_text(path: bytes) -> str:
    """A path as it stands in JSON."""
    return path.decode("utf-8", "surrogateescape")


def text_to_path(text: str) -> bytes:
    """The path that a text in JSON stands for. Raises ValueError where it stands for none."""
    return text.encode("utf-8", "surrogateescape")


def _to_bytes(value: object) -> object:
    return text_to_path(value) if isinstance(value, str) else value


def _to_tuple(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


def _absolute(path: bytes) -> bytes:
    if not path.startswith(b"/") or b"\0" in path or len(path) >= _PATH_MAX:
        raise ValueError("a path must be absolute, shorter than 4096 bytes, and without NUL")
    return path


def _inside(path: bytes) -> bytes:
    if path.startswith(b"/") or b".." in path.split(b"/") or b"\0" in path or len(path) >= _PATH_MAX:
        raise ValueError("a directory must be relative to its mount, shorter than 4096 bytes, and without '..' and NUL")
    return path


Path = Annotated[bytes, BeforeValidator(_to_bytes), AfterValidator(_absolute)]
Inside = Annotated[bytes, BeforeValidator(_to_bytes), AfterValidator(_inside)]

Command = Literal[
    "status", "top", "promote", "reopen", "explain", "pause", "resume", "retire", "reload", "warm", "heat"
]

_OPTIONS: dict[Command, frozenset[str]] = {
    "status": frozenset({"path"}),
    "top": frozenset({"path", "limit"}),
    "promote": frozenset({"path", "recursive"}),
    "reopen": frozenset({"path", "all"}),
    "explain": frozenset({"path"}),
    "pause": frozenset({"path"}),
    "resume": frozenset({"path"}),
    "retire": frozenset({"path"}),
    "reload": frozenset(),
    "warm": frozenset({"path", "directories", "dry_run"}),
    "heat": frozenset({"path"}),
}
_ABOUT_A_PATH = frozenset({"promote", "explain", "retire", "warm"})


class Request(BaseModel):
    """One request. ``path`` is a mount, or something on it; without one it is about all mounts."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    command: Command
    path: Path | None = None
    recursive: bool = False
    """promote: with every directory below that policy allows."""
    all: bool = False
    """reopen: every directory of the mount; without it, the one at ``path``."""
    limit: int = Field(default=20, ge=1, le=10_000)
    """top: so many directories."""
    directories: Annotated[tuple[Inside, ...], BeforeValidator(_to_tuple)] = ()
    """warm: directories of the mount at ``path``, the most urgent first."""
    dry_run: bool = False
    """warm: only say what would be done."""

    @model_validator(mode="after")
    def _only_what_the_command_knows(self) -> Self:
        unknown = self.model_fields_set - _OPTIONS[self.command] - {"command"}
        if unknown:
            raise ValueError(f"{self.command} has no {' or '.join(sorted(unknown))}")
        if self.path is None and (self.command in _ABOUT_A_PATH or (self.command == "reopen" and not self.all)):
            raise ValueError(f"{self.command} needs a path")
        return self


def to_line(message: dict[str, Any]) -> bytes:
    """A message as one line. Bytes in it are paths. Raises TypeError or ValueError for what JSON cannot hold."""
    return json.dumps(message, default=_to_text).encode("ascii") + b"\n"


def _to_text(value: object) -> str:
    if isinstance(value, bytes):
        return path_to_text(value)
    raise TypeError(f"{type(value).__name__} cannot be sent")


def request_to_line(request: Request) -> bytes:
    """The line that asks for it."""
    return to_line({"version": VERSION, **request.model_dump(exclude_unset=True)})


def line_to_request(line: bytes) -> Request:
    """The request on a line. Raises UsageError."""
    try:
        message = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UsageError("the request is not a line of JSON") from error
    if not isinstance(message, dict):
        raise UsageError("the request is not a JSON object")
    version = message.pop("version", None)
    if version != VERSION:
        raise UsageError(
            f"this daemon speaks version {VERSION} of the control protocol, the request has {version!r}",
            hint="restart promoterd after an upgrade",
        )
    try:
        return Request.model_validate(message)
    except ValidationError as error:
        raise UsageError(f"the request is not valid: {'; '.join(_findings(error))}") from error


def _findings(error: ValidationError) -> Iterator[str]:
    for finding in error.errors(include_input=False, include_url=False):
        where = ".".join(ascii(part).strip("'") for part in finding["loc"])
        yield f"{where}: {finding['msg']}" if where else finding["msg"]


def error_to_message(error: PromoterdError) -> dict[str, Any]:
    """An error for the one who asked."""
    return {
        "class": type(error).__name__,
        "message": error.message,
        "hint": error.hint,
        "exit_code": error.exit_code,
    }


def message_to_error(message: dict[str, Any]) -> PromoterdError:
    """The error that the daemon met, of the same class; of a class with the same name if this program has none such."""
    name, text, code = str(message.get("class")), str(message.get("message")), int(message.get("exit_code", 1))
    known = {error.__name__: error for error in _all_errors(PromoterdError)}.get(name)
    if known is None or known.exit_code != code:
        known = type(name, (PromoterdError,), {"__doc__": "{message}", "exit_code": code})
    return known(text, hint=message.get("hint") or "")


def _all_errors(base: type[PromoterdError]) -> Iterator[type[PromoterdError]]:
    yield base
    for error in base.__subclasses__():
        yield from _all_errors(error)
