"""What tells this machine from others."""

import os
from functools import lru_cache

_MACHINE_ID = "/etc/machine-id"


@lru_cache(maxsize=1)
def identity() -> bytes:
    """The same at every start, and another on every machine: an image may have been copied with its machine-id."""
    try:
        with open(_MACHINE_ID, "rb") as file:
            machine = file.read().strip()
    except OSError:
        machine = b""
    return machine + b" " + os.fsencode(os.uname().nodename)
