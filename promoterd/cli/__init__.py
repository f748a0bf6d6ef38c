"""The command line: text for people, ``--json`` for programs, an exit code for both."""

from promoterd.cli.entry import main

__all__ = ["main"]
