"""Which events of the NFS client say what of lookups, and the histogram triggers that count them; no I/O.

``nfs_lookup_exit`` comes once for each LOOKUP that went to the server because a name was not in the client's cache
(nfs_lookup(), fs/nfs/dir.c), with the directory's device and inode. It reports ENOENT as no error; where it has a
field ``fileid`` (Linux 6.12), that is 0 then. Where it has none (6.1), the reply itself is asked: ``nfs4_lookup`` and,
for v3, ``nfs_xdr_status`` tell the error in the same thread just before, and a synthetic event joins both.

overlayfs looks up with ``flags`` 0 (lookup_one_unlocked(), fs/namei.c). Who uses the NFS mount itself has others,
unless it is the last name of an lstat(2): that cannot be told from the overlay's lookups.

Our own lookups are known by the name of the thread in which the event happens (``comm``, see
:mod:`promoterd.threads`): it is compared only where everything else fits.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from promoterd.heat.histograms import condition_on
from promoterd.threads import NAME

EXIT = "nfs/nfs_lookup_exit"
MISS_FIELDS = "u32 dev; u64 dir; u64 flags; u64 missed"
"""Of the synthetic event."""
_ENOENT = 2
_NOT_OURS = f'!(comm ~ "{NAME}*")'
_KEYS = "hist:keys=dev,dir,error"
_SOURCES = {
    3: ("nfs/nfs_xdr_status", f'version == 3 && procedure == "LOOKUP" && error == {_ENOENT} && {_NOT_OURS}'),
    4: ("nfs4/nfs4_lookup", f"error == {_ENOENT} && {_NOT_OURS}"),
}


class Meaning(StrEnum):
    """What a histogram counts."""

    MISSED = "missed"
    """Lookups of names that do not exist, or that failed, by device, directory and error."""
    FOUND = "found"
    """Lookups of names that exist, in the same way."""
    BOTH = "both"
    """All lookups; those that are counted as missed are among them."""
    ELSEWHERE = "elsewhere"
    """Lookups by those who use the NFS mount itself, by device."""
    JOIN = "join"
    """It only hands on what others count; its rows are threads."""


@dataclass(frozen=True, slots=True)
class Trigger:
    """A histogram trigger: the event that it is attached to, as a path below ``events``, and its command."""

    event: str
    what: str
    size: int
    meaning: Meaning
    condition: str = ""

    @property
    def command(self) -> str:
        """What is written to the event's file ``trigger``."""
        condition = f" if {self.condition}" if self.condition else ""
        return f"{self.what}:size={self.size}{condition}"

    def is_in(self, shown: str) -> bool:
        """Whether the kernel's description of a trigger is of this one."""
        what, _, condition = shown.partition(" if ")
        return condition == self.condition and what.split(":")[1] == self.what.split(":")[1]


def told_apart(devices: Sequence[int], size: int) -> list[Trigger]:
    """The triggers where the event tells whether the name was found."""
    ours = f"{condition_on('dev', devices)} && flags == 0"
    return [
        Trigger(EXIT, _KEYS, size, Meaning.MISSED, f"{ours} && fileid == 0 && {_NOT_OURS}"),
        Trigger(EXIT, _KEYS, size, Meaning.FOUND, f"{ours} && fileid != 0 && {_NOT_OURS}"),
        _elsewhere(devices),
    ]


def together(devices: Sequence[int], size: int) -> list[Trigger]:
    """The triggers where the event does not tell."""
    condition = f"{condition_on('dev', devices)} && flags == 0 && {_NOT_OURS}"
    return [Trigger(EXIT, _KEYS, size, Meaning.BOTH, condition), _elsewhere(devices)]


def joined(devices: Sequence[int], versions: Sequence[int], size: int, synthetic: str) -> list[Trigger]:
    """The triggers that count the misses among those, in the order in which they refer to one another.

    ``synthetic`` is the synthetic event that they make, one for each instance: it goes to all of them.
    A thread's variable is read once: by an expression, not by a bare name (parse_expr(), kernel/trace). It is read at
    every lookup, on whichever mount, so that it never lasts until another one.
    """
    triggers = []
    for version in sorted(set(versions)):
        event, condition = _SOURCES[version]
        triggers.append(Trigger(event, f"hist:keys=common_pid:v{version}=error", size, Meaning.JOIN, condition))
    for version in sorted(set(versions)):
        event = _SOURCES[version][0].replace("/", ".")
        variables = f"m{version}=$v{version}+0,d{version}=dev,i{version}=dir,f{version}=flags"
        fields = ",".join(f"${letter}{version}" for letter in "difm")
        action = f"onmatch({event}).trace({synthetic},{fields})"
        triggers.append(_Joining(EXIT, f"hist:keys=common_pid:{variables}", size, Meaning.JOIN, action=action))
    condition = f"{condition_on('dev', devices)} && flags == 0"
    return [*triggers, Trigger(miss_event(synthetic), "hist:keys=dev,dir,missed", size, Meaning.MISSED, condition)]


def miss_event(synthetic: str) -> str:
    """The path of a synthetic event below ``events``."""
    return f"synthetic/{synthetic}"


@dataclass(frozen=True, slots=True)
class _Joining(Trigger):
    """A trigger with an action."""

    action: str = ""

    @property
    def command(self) -> str:
        return f"{self.what}:{self.action}:size={self.size}"


def _elsewhere(devices: Sequence[int]) -> Trigger:
    condition = f"{condition_on('dev', devices)} && flags != 0 && {_NOT_OURS}"
    return Trigger(EXIT, "hist:keys=dev", 128, Meaning.ELSEWHERE, condition)


def has_field(layout: str, name: str) -> bool:
    """Whether an event has a field: ``layout`` is its file ``format``."""
    fields = (line.strip().partition(";")[0] for line in layout.splitlines())
    return any(field.startswith("field:") and field.split()[-1] == name for field in fields)


def kernel_device(device: tuple[int, int]) -> int:
    """A device number as the kernel keeps it (MKDEV(), include/linux/kdev_t.h)."""
    major, minor = device
    return (major << 20) | minor
