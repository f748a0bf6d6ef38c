"""Paths in a heat list: text in UTF-8 on one line, each other byte (and the percent sign) as %XX (pure).

Not the lone surrogates that a policy knows: lists are made, sorted and merged by other programs too, and few YAML
readers take those.
"""

import re
from typing import Final
from urllib.parse import unquote_to_bytes

ROOT: Final = "/"
"""How the mount's own directory is written."""
LONGEST: Final = 4096
"""No path has so many bytes (PATH_MAX, limits.h)."""
_STRAY: Final = re.compile(r"%(?![0-9A-Fa-f]{2})")


def encode(path: bytes) -> str:
    """The text for a path."""
    if path.isascii():
        text = path.decode("ascii")
        if text.isprintable() and "%" not in text:
            return text
    text = path.decode("utf-8", "surrogateescape")
    return "".join(char if char.isprintable() and char != "%" else _escaped(char) for char in text)


def _escaped(char: str) -> str:
    return "".join(f"%{byte:02X}" for byte in char.encode("utf-8", "surrogateescape"))


def decode(text: str) -> bytes:
    """The bytes that a text stands for. Raises ValueError with what is wrong and what is allowed."""
    if "%" in text and _STRAY.search(text):
        raise ValueError("a percent sign that begins no %XX; a percent sign itself is written %25")
    try:
        raw = unquote_to_bytes(text) if "%" in text else text.encode()
    except UnicodeEncodeError:
        raise ValueError("a character that is not Unicode; bytes that are not UTF-8 are written %XX") from None
    if len(raw) >= LONGEST:
        raise ValueError(f"a path of {len(raw)} bytes; the kernel takes none of {LONGEST} or more")
    if b"\0" in raw:
        raise ValueError("a NUL, which no path has")
    if b".." in raw.split(b"/"):
        raise ValueError("'..' in a path; give the direct path")
    return raw


def path_of(text: str) -> bytes:
    """A path inside a mount; slashes at its ends say nothing. Raises ValueError."""
    raw = decode(text)
    if raw[:1] not in (b"/", b"."):
        plain = raw.rstrip(b"/")
        if b"//" not in plain and b"/." not in plain:
            return plain
    return b"/".join(part for part in raw.split(b"/") if part not in (b"", b"."))


def mountpoint_of(text: str) -> bytes:
    """A mount point. Raises ValueError."""
    raw = decode(text)
    if not raw.startswith(b"/"):
        raise ValueError("a mount point that is not an absolute path")
    return b"/" + b"/".join(part for part in raw.split(b"/") if part not in (b"", b"."))
