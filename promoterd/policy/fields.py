"""Types of policy values that are more than a number or a word: each says what is allowed, and refuses the rest."""

import ipaddress
import os.path
import re
from typing import Annotated, Final

from pydantic import AfterValidator, BeforeValidator, PlainSerializer, StringConstraints

from promoterd.policy import globs
from promoterd.units import Allowed, InvalidValueError, shown

ABSOLUTE: Final = "an absolute path without '..'"
SOCKET: Final = "an absolute path of at most 107 bytes"
LISTEN: Final = "an address and a port, such as 127.0.0.1:9909 or [::1]:9909, or off"
COMPONENT: Final = "one name, without slashes"
RATE: Final = "unlimited, or a whole number"

_SUN_PATH: Final = 107  # sizeof(sockaddr_un.sun_path) - 1, unix(7)
_NAME_MAX: Final = 255
_LAST_PORT: Final = 65_535
_HOST_AND_PORT: Final = re.compile(r"(\[[^]\[]+\]|[^:\[\]]+):(\d{1,5})", re.ASCII)
_HOST_NAME: Final = re.compile(r"(?!-)[A-Za-z0-9-]{1,63}(?<!-)(?:\.(?!-)[A-Za-z0-9-]{1,63}(?<!-))*", re.ASCII)


def absolute(text: str) -> str:
    """The path without double slashes, ``.`` and a trailing slash."""
    if not text.startswith("/") or ".." in text.split("/") or not _is_a_path(text):
        suggestion = f"/{text}" if text and not text.startswith(("/", ".", "~", "$")) and _is_a_path(text) else None
        raise InvalidValueError(shown(text), ABSOLUTE, suggestion)
    return os.path.normpath("/" + text.lstrip("/"))


def _socket(text: str) -> str:
    path = absolute(text)
    if path == "/" or len(path.encode("utf-8", "surrogateescape")) > _SUN_PATH:
        raise InvalidValueError(shown(text), SOCKET)
    return path


def _component(text: str) -> str:
    if text in ("", ".", "..") or "/" in text or not _is_a_path(text):
        raise InvalidValueError(shown(text), COMPONENT)
    if len(text.encode("utf-8", "surrogateescape")) > _NAME_MAX:
        raise InvalidValueError(shown(text), f"a name of at most {_NAME_MAX} bytes")
    return text


def _is_a_path(text: str) -> bool:
    try:
        return b"\0" not in text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return False


def _listen(value: object) -> object:
    if value in (False, None, "off"):
        return None
    text = value if isinstance(value, str) else ""
    if (match := _HOST_AND_PORT.fullmatch(text)) and int(match[2]) <= _LAST_PORT and _is_a_host(match[1]):
        return text
    suggestion = None
    if re.fullmatch(r":?\d{1,5}", text, re.ASCII) and int(text.lstrip(":")) <= _LAST_PORT:
        suggestion = f"127.0.0.1:{text.lstrip(':')}"
    elif text.lower() in ("off", "no", "none", "false", "never", "disabled"):
        suggestion = "off"
    raise InvalidValueError(shown(value), LISTEN, suggestion)


def _is_a_host(text: str) -> bool:
    try:
        ipaddress.ip_address(text.strip("[]"))
    except ValueError:
        digits_and_dots = not text.strip("0123456789.")
        return not digits_and_dots and _HOST_NAME.fullmatch(text) is not None
    return text.startswith("[") == (":" in text)


def host_and_port(listen: str) -> tuple[str, int]:
    """The two halves of a valid ``listen`` value; an IPv6 address without its brackets."""
    host, _, port = listen.rpartition(":")
    return host.strip("[]"), int(port)


def _rate(value: object) -> object:
    return None if value in ("unlimited", "0", 0) and value is not False else value


Name = Annotated[str, StringConstraints(min_length=1, max_length=255), Allowed("a name")]
AbsolutePath = Annotated[str, AfterValidator(absolute), Allowed(ABSOLUTE)]
SocketPath = Annotated[str, AfterValidator(_socket), Allowed(SOCKET)]
Component = Annotated[str, AfterValidator(_component), Allowed(COMPONENT)]
GlobText = Annotated[str, AfterValidator(globs.normalise), Allowed(globs.ALLOWED)]
Listen = Annotated[
    str | None,
    BeforeValidator(_listen),
    PlainSerializer(lambda value: value or "off", return_type=str, when_used="json"),
    Allowed(LISTEN),
]
Rate = Annotated[
    int | None,
    BeforeValidator(_rate),
    PlainSerializer(lambda value: value or "unlimited", return_type=int | str, when_used="json"),
    Allowed(RATE),
]
