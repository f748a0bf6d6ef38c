"""Lookups of so many names in a directory, for tests that count them."""

import os


def miss(directory: bytes, names: int) -> None:
    """Ask for names that do not exist. Raises FileExistsError."""
    for number in range(names):
        if os.path.lexists(directory + b"/no%d" % number):
            raise FileExistsError(number)


def find(directory: bytes, names: int) -> None:
    """Look at files that :func:`support.trees.files` made. Raises FileNotFoundError."""
    for number in range(names):
        os.lstat(directory + b"/f%04d" % number)
