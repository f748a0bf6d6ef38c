"""A directory under check, open on both sides at once."""

from abc import ABC, abstractmethod
from contextlib import ExitStack
from dataclasses import dataclass, field
from types import TracebackType
from typing import ClassVar, Self

from promoterd.fsck.findings import Area, Finding
from promoterd.fsck.judging import Problem
from promoterd.fsck.reading import LowerDirectory
from promoterd.overlay.listing import Layers
from promoterd.provenance import Provenance, decode


@dataclass(slots=True)
class View(ABC):
    """A directory here and on the server, open for the length of a ``with`` block.

    ``lower`` is None where the server has none. Entering raises Refused where the server's cannot be looked at as a
    whole, and OSError.
    """

    area: ClassVar[Area]
    layers: Layers
    path: bytes
    identities: tuple[str, ...]
    lower: LowerDirectory | None = None
    mark: bytes | None = None
    record: bytes | None = None
    _stack: ExitStack = field(default_factory=ExitStack)

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._open(stack)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    @abstractmethod
    def _open(self, stack: ExitStack) -> None:
        """Open both sides, and read what stands at the directory."""

    @abstractmethod
    def state(self) -> tuple[object, ...]:
        """Differs if anybody changed the directory, here or on the server."""

    @property
    def provenance(self) -> Provenance | None:
        """What stands beside the mark, if it can be read."""
        return decode(self.record)

    def finding(self, problem: Problem, name: str | None = None) -> Finding:
        """A problem, with where it was found."""
        return Finding(self.area, self.path, problem[0], problem[1], name)
