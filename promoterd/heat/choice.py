"""Which heat sources work on a mount, told from what each of them says; no I/O.

Two things are to be heard: names that are looked up on the server, found or missing, which only the NFS client's
tracepoints tell; and opens and listings, which inotify and fanotify tell equally well, at different prices.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

AUTO: Final = "auto"
INOTIFY: Final = "inotify"
FANOTIFY: Final = "fanotify"
NFS_TRACE: Final = "nfs-trace"


class Lower(StrEnum):
    """Where the lower layers of an overlay lie."""

    NFS4 = "nfs4"
    """Where a client opens every file on the server, and closes it there."""
    NETWORK = "network"
    """On another server, or on FUSE, of which the worst is assumed."""
    NFS3 = "nfs3"
    """Which knows no opens: its client asks for the attributes when a name is opened."""
    LOCAL = "local"

    @property
    def is_nfs(self) -> bool:
        """Whether there are tracepoints of its client."""
        return self in (Lower.NFS4, Lower.NFS3)

    @property
    def opens_cost(self) -> bool:
        """Whether opening an open file once more, as fanotify does, asks the server."""
        return self in (Lower.NFS4, Lower.NETWORK)


@dataclass(frozen=True, slots=True)
class Choice:
    """The sources that are taken, and those that are left, each with the reason. What was preferred comes first."""

    taken: dict[str, str] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)


def choose(wanted: str, lacks: Mapping[str, str | None], lower: Lower) -> Choice:
    """Choose for a policy's ``heat: source``. ``lacks``: why each source cannot be had, None where it can.

    A source that ``lacks`` does not name is not installed. Nothing may be taken.
    """
    choice = Choice()
    if wanted == AUTO:
        _lookups(choice, lacks, lower)
    preferred = _preferred(wanted, lower)
    for name in preferred:
        lack = lacks.get(name, "it is not installed")
        if lack is not None:
            choice.left[name] = lack
        elif any(name in choice.taken for name in preferred):
            choice.left[name] = _WORSE[name, lower.opens_cost]
        elif name == preferred[0]:
            choice.taken[name] = _BETTER[name, lower.opens_cost] if wanted == AUTO else "the policy names it"
        else:
            choice.taken[name] = f"instead of {preferred[0]}: {choice.left[preferred[0]]}"
    return choice


def _lookups(choice: Choice, lacks: Mapping[str, str | None], lower: Lower) -> None:
    lack = lacks.get(NFS_TRACE, "it is not installed")
    if not lower.is_nfs:
        lack = "no lower layer lies on NFS"
    if lack is None:
        choice.taken[NFS_TRACE] = "it alone hears which names are looked up on the server, found or missing"
    else:
        choice.left[NFS_TRACE] = lack


def _preferred(wanted: str, lower: Lower) -> tuple[str, ...]:
    if wanted == AUTO:
        return (INOTIFY, FANOTIFY) if lower.opens_cost else (FANOTIFY, INOTIFY)
    return (FANOTIFY, INOTIFY) if wanted == FANOTIFY else (wanted,)


_BETTER: Final = {
    (INOTIFY, True): "for opens and listings; hearing them costs the server nothing, which fanotify cannot say here",
    (FANOTIFY, False): "for opens and listings; one mark, no watches, and it costs no server anything here",
}
_WORSE: Final = {
    (FANOTIFY, True): "it would open each file on the server once more that is heard being opened",
    (INOTIFY, True): "fanotify hears the same",
    (INOTIFY, False): "fanotify hears the same without a watch for each directory",
}
