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
_WHERE_FROM: Final = "`promoterd record` and `promoterd heat merge` write lists"
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
            entries = [os.path.join(name, entry) for entry in sorted(os.listdir(name)) if entry.endswith(_ENDINGS)]
        except OSError as error:
            raise _unreadable(name, error.strerror) from error
        found = [entry for entry in entries if os.path.isfile(entry) or not os.path.exists(entry)]  # no pipes
        if not found:
            raise HeatListError(f"{_shown(name)}: no list in this directory", hint="lists are named *.yaml or *.yml")
        return found
    found = sorted(glob.glob(name, recursive=True)) if glob.has_magic(name) else [name]
    if not found:
        raise HeatListError(f"{_shown(name)}: no list has such a name", hint=_WHERE_FROM)
    return found


def _text(file: str) -> str:
    try:
        if file == STANDARD and sys.stdin is None:  # it was closed when the program began
            raise HeatListError("there is no standard input to read a list from")
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
    """Write a list in place of what the file was, or what it leads to: all of it, or nothing. Raises HeatListError."""
    try:
        if _is_stream(file):
            with open(file, "w", encoding="utf-8") as stream:
                stream.write(dumps(heat, notes))
        else:
            _replace(os.path.realpath(file), dumps(heat, notes))
    except OSError as error:
        raise HeatListError(f"{_shown(file)} cannot be written: {error.strerror}") from error


def _replace(file: str, text: str) -> None:
    descriptor, written = tempfile.mkstemp(prefix=".promoterd-", dir=os.path.dirname(file))
    try:
        with open(descriptor, "w", encoding="utf-8") as stream:
            stream.write(text)
            os.fchmod(descriptor, 0o666 & ~_umask())
        os.replace(written, file)
    except BaseException:
        with suppress(OSError):
            os.unlink(written)
        raise


def _is_stream(file: str) -> bool:
    """Whether it is a pipe, a terminal, or a name for something that is open, such as /dev/stdout."""
    if os.path.exists(file) and not os.path.isfile(file):
        return True
    directory = os.path.realpath(os.path.dirname(os.path.abspath(file)))
    return directory == "/dev" or directory.startswith("/proc/")


def check_writable(file: str) -> None:
    """Raise HeatListError where a list could not be written later, after the work that it is about."""
    if os.path.isdir(file):
        raise HeatListError(f"{_shown(file)} cannot be written: it is a directory")
    if _is_stream(file):
        return
    directory = os.path.dirname(os.path.realpath(file))
    if not os.path.isdir(directory):
        raise HeatListError(f"{_shown(file)} cannot be written: there is no directory {_shown(directory)}")
    if not os.access(directory, os.W_OK):
        raise HeatListError(f"{_shown(file)} cannot be written: this user may not write to {_shown(directory)}")


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _unreadable(file: str, reason: str | None) -> HeatListError:
    return HeatListError(f"{_shown(file)} cannot be read: {reason}", hint=_WHERE_FROM)


def _shown(file: str) -> str:
    return display(os.fsencode(file))
