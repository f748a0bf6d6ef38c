"""When which machine does what all machines do: each at a time of its own, the same at every start (pure).

Machines that boot together, or are given the same policy together, would otherwise ask the server for the same things
at the same moment. Whatever begins work on a server at the start of the daemon, or at a fixed hour, waits for
:func:`delay` first; a purpose is a name such as ``b"recheck"`` or ``b"warm"``.
"""

import hashlib

_AROUND = 0.1


def share(*what: bytes) -> float:
    """A number from 0 to 1, 1 left out: always the same for the same things, and evenly spread over different ones."""
    digest = hashlib.blake2b(digest_size=8)
    for part in what:
        digest.update(len(part).to_bytes(4, "big") + part)
    return int.from_bytes(digest.digest(), "big") / (1 << 64)


def delay(host: bytes, purpose: bytes, within: float) -> float:
    """The seconds that this machine waits before it begins with something that all begin with ``within`` this time."""
    return within * share(host, purpose)


def around(host: bytes, path: bytes, interval: float) -> float:
    """The interval ±10 %, by machine and path: neither all directories nor all machines come due at once."""
    return interval * (1 - _AROUND + 2 * _AROUND * share(host, b"interval", path))
