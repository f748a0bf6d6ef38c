r"""Spelling of paths in names and files of systemd units, and in the fields of fstab.

Each of the two reads backslashes in its own way (systemd.unit(5), fstab(5)), and both only UTF-8.
"""

import re

from promoterd.errors import UsageError
from promoterd.paths import display

UNIT_NAME_MAX = 255
"""Bytes of a unit's name, the suffix included (UNIT_NAME_MAX in systemd counts the NUL)."""
_SAFE = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789:_.")
_IN_FSTAB = {ord(" "): b"\\040", ord("\t"): b"\\011", ord("\n"): b"\\012", ord("\\"): b"\\134"}
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


def escaped(path: bytes) -> str:
    r"""An absolute path as ``systemd-escape --path`` writes it: ``-`` for each slash, ``\x2d`` for a dash."""
    parts = path.strip(b"/")
    spelled = [
        "-" if byte == ord("/") else chr(byte) if byte in _SAFE and (byte != ord(".") or at) else f"\\x{byte:02x}"
        for at, byte in enumerate(parts)
    ]
    return "".join(spelled) or "-"


def mount_unit(path: bytes) -> str:
    """The name of the unit that mounts at a path. Raises UsageError where systemd takes no such name."""
    name = f"{escaped(path)}.mount"
    if len(name) > UNIT_NAME_MAX:
        raise UsageError(
            f"{display(path)}: a systemd unit for this mount point would have a name of {len(name)} bytes, and "
            f"{UNIT_NAME_MAX} are allowed",
            hint="choose a shorter path, or say --format fstab",
        )
    return name


def unit_value(value: bytes) -> str:
    """The value of a setting that takes a string: nothing but ``%`` means anything in it. Raises UsageError."""
    text = _text(value, "a systemd unit")
    if text.strip() != text or text.endswith("\\"):
        raise UsageError(
            f"{display(value)}: a value in a systemd unit can neither begin or end with a blank nor end with a "
            "backslash",
            hint="choose another path, or say --format commands",
        )
    return text.replace("%", "%%")


def unit_word(path: bytes) -> str:
    """One of several paths in a setting that takes a list. Raises UsageError."""
    plain = _text(path, "a systemd unit").replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return f'"{plain}"' if re.search(r"[\s'\"\\]", plain) else plain


def fstab_field(value: bytes) -> str:
    """One field of fstab. Raises UsageError."""
    _text(value, "fstab")
    return b"".join(_IN_FSTAB.get(byte, bytes((byte,))) for byte in value).decode("utf-8")


def _text(value: bytes, where: str) -> str:
    try:
        text = value.decode("utf-8")
    except UnicodeDecodeError:
        text = None
    if text is None or _CONTROL.search(text):
        raise UsageError(
            f"{display(value)}: {where} can hold neither bytes that are not UTF-8 nor control characters",
            hint="choose another path, or say --format commands",
        )
    return text
