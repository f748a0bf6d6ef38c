"""Heat lists in files: one, or as many as a directory or a glob names."""

import glob
import os
import sys
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from typing import Final

from promoterd.errors import HeatListError
from promoterd.heatlist.model import HeatList
from promoterd.heatlist.text import Notes, dumps, loads
from promoterd.paths import display

STANDARD: Final = "-"
"""Standard input, or output."""
_LARGEST: Final = 256 * 1024 * 1024
_ENDINGS: Final = (".yaml", ".yml")


def read_list(named: Iterable[str]) -> HeatList:
    """The merged list of files, directories of lists, globs, and ``-``; each file once. Raises HeatListError."""
    merged = HeatList()
    for file in dict.fromkeys(file for name in named for file in lists_of(name)):
        merged.merge(loads(_text(file), file))
    return merged


def lists_of(name: str) -> list[str]:
    """The files that a name stands for. Raises HeatListError where there is none."""
    if name == STANDARD or os.path.isfile(name):
        return [name]
    if os.path.isdir(name):
        try:
            found = [os.path.join(name, entry) for entry in sorted(os.listdir(name)) if entry.endswith(_ENDINGS)]
        except OSError as error:
            raise _unreadable(name, error.strerror) from error
        if not found:
            raise HeatListError(f"{_shown(name)}: no list in this directory", hint="lists are named *.yaml or *.yml")
        return found
    found = sorted(glob.glob(name, recursive=True)) if glob.has_magic(name) else [name]
    if not found:
        raise HeatListError(f"{_shown(name)}: no list has such a name")
    return found


def _text(file: str) -> str:
    try:
        if file == STANDARD:
            content = sys.stdin.buffer.read(_LARGEST + 1)
        else:
            with open(file, "rb") as stream:
                content = stream.read(_LARGEST + 1)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise _unreadable(file, error.strerror if isinstance(error, OSError) else str(error)) from error
    if len(content) > _LARGEST:
        raise HeatListError(f"{_shown(file)}: more than {_LARGEST // 1024**2} MiB")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        wrong = f"the byte 0x{content[error.start]:02x}, which is not UTF-8; in a path it is written %XX"
        raise HeatListError(f"{_shown(file)}:{line}: {wrong}") from None


def write_list(heat: HeatList, file: str, notes: Notes | None = None) -> None:
    """Write a list in place of what the file was: all of it, or nothing. Raises HeatListError."""
    directory = os.path.dirname(os.path.abspath(file))
    written = None
    try:
        if os.path.exists(file) and not os.path.isfile(file):  # a pipe, or /dev/stderr
            with open(file, "w", encoding="utf-8") as stream:
                stream.write(dumps(heat, notes))
            return
        descriptor, written = tempfile.mkstemp(prefix=".promoterd-", dir=directory)
        with open(descriptor, "w", encoding="utf-8") as stream:
            stream.write(dumps(heat, notes))
            os.fchmod(descriptor, 0o666 & ~_umask())
        os.replace(written, os.path.realpath(file))
    except OSError as error:
        if written is not None:
            with suppress(OSError):
                os.unlink(written)
        raise HeatListError(f"{_shown(file)} cannot be written: {error.strerror}") from error


def check_writable(file: str) -> None:
    """Raise HeatListError where a list could not be written later, after the work that it is about."""
    directory = os.path.dirname(os.path.abspath(file))
    if os.path.isdir(file) or not os.path.isdir(directory):
        what = "it is a directory" if os.path.isdir(file) else f"there is no directory {_shown(directory)}"
        raise HeatListError(f"{_shown(file)} cannot be written: {what}")
    if not os.access(directory, os.W_OK):
        raise HeatListError(f"{_shown(file)} cannot be written: this user may not write to {_shown(directory)}")


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _unreadable(file: str, reason: str | None) -> HeatListError:
    return HeatListError(f"{_shown(file)} cannot be read: {reason}")


def _shown(file: str) -> str:
    return display(os.fsencode(file))
