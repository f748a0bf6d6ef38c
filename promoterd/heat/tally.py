"""Uses of directories, summed up until somebody asks, and no more of one directory than is worth hearing; no I/O."""

from collections import defaultdict

from promoterd.heat.base import Kind


class Tally:
    """Counts uses. Of one directory at most ``enough`` are wanted in a period, of at most ``most`` directories at once.

    Whoever pays for every use that he hears can stop to listen at a directory that has had enough.
    """

    def __init__(self, enough: int, most: int) -> None:
        self.enough = enough
        self.most = most
        self.sampled = 0
        """Uses, ever, that stand for more of the same period."""
        self._touched: dict[tuple[bytes, Kind], float] = {}
        self._in_period: defaultdict[bytes, int] = defaultdict(int)
        self._lost = False

    def add(self, path: bytes, kind: Kind) -> bool:
        """Count a use; whether that was enough of this directory for the period."""
        key = (path, kind)
        if key in self._touched or len(self._touched) < self.most:
            self._touched[key] = self._touched.get(key, 0.0) + 1.0
        else:
            self._lost = True
        if kind is not Kind.OPEN:
            return False
        if len(self._in_period) >= self.most and path not in self._in_period:
            self._in_period.clear()
        self._in_period[path] += 1
        if self._in_period[path] % self.enough:
            return False
        self.sampled += self.enough
        return True

    def take(self) -> tuple[dict[tuple[bytes, Kind], float], bool]:
        """What came together since the last time, and whether something was left out for want of room."""
        taken, self._touched = self._touched, {}
        lost, self._lost = self._lost, False
        return taken, lost

    def new_period(self) -> None:
        """All directories are worth hearing again."""
        self._in_period.clear()
