"""The command line: text for people, ``--json`` for programs, an exit code for both."""

import signal
from typing import NoReturn


def main() -> NoReturn:
    """The program. Ctrl-C while it is still being loaded ends it as any program without a handler."""
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)
    from promoterd.cli.entry import enter

    signal.signal(signal.SIGINT, before)
    enter()
