"""What is done to one directory of 500 files, each a kind of lookup of its own."""

import os
from collections.abc import Callable, Mapping

FILES = 500


def _names(prefix: str) -> list[str]:
    return [f"{prefix}{number:04}" for number in range(FILES)]


def stat_existing(directory: str) -> None:
    for name in _names("f"):
        os.lstat(f"{directory}/{name}")


def stat_missing(directory: str) -> None:
    for name in _names("no"):
        if os.path.lexists(f"{directory}/{name}"):
            raise FileExistsError(name)


def access(directory: str) -> None:
    for name in _names("f"):
        if not os.access(f"{directory}/{name}", os.R_OK):
            raise PermissionError(name)


def readdir(directory: str) -> None:
    if len(os.listdir(directory)) < FILES:
        raise FileNotFoundError(directory)


def list_long(directory: str) -> None:
    """What `ls -l` does: each name is looked at as soon as it is listed."""
    with os.scandir(directory) as entries:
        for entry in entries:
            os.lstat(entry.path)


def open_and_read(directory: str) -> None:
    for name in _names("f"):
        with open(f"{directory}/{name}", "rb") as file:
            file.read()


WORKLOADS: Mapping[str, Callable[[str], None]] = {
    "stat existing": stat_existing,
    "stat missing": stat_missing,
    "access": access,
    "readdir": readdir,
    "ls -l": list_long,
    "open+read": open_and_read,
}
"""Each raises OSError where the directory is not as it should be."""
