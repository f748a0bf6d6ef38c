"""On which mount a path lies."""

from collections.abc import Collection, Iterable

from promoterd.errors import MountNotFound
from promoterd.overlay import mountinfo
from promoterd.paths import display


class Places:
    """Splits absolute paths, free of symlinks, into one of the ``wanted`` mount points and the path inside it."""

    def __init__(self, wanted: Collection[bytes], mounted: Iterable[bytes]) -> None:
        self.wanted = frozenset(wanted)
        self._mounted = frozenset(mounted)

    def of(self, path: bytes) -> tuple[bytes, bytes] | None:
        """None for what lies on another mount, also where that is mounted inside of a wanted one."""
        point = path
        while point not in self._mounted and point != b"/":
            point = point.rpartition(b"/")[0] or b"/"
        if point not in self.wanted:
            return None
        return point, path[len(point) :].lstrip(b"/")


def places_of(wanted: Iterable[bytes]) -> Places:
    """Those of the wanted mount points at which something is mounted. Raises MountNotFound where there is none."""
    asked = list(wanted)
    mounted = [entry.mountpoint for entry in mountinfo.read()]
    found = [point for point in asked if point in mounted]
    if not found:
        names = ", ".join(display(point) for point in asked)
        raise MountNotFound(f"nothing is mounted at {names}", hint="mount it first; findmnt(8) lists what is mounted")
    return Places(found, mounted)
