"""Classes that other packages may bring: found by entry point, checked, and refused with a reason."""

from importlib.metadata import entry_points
from typing import TypeVar

from promoterd.errors import UsageError

Kind = TypeVar("Kind")


def names(group: str) -> list[str]:
    """Names of everything registered in an entry point group, without importing it."""
    return sorted({point.name for point in entry_points(group=group)})


def load(group: str, name: str, kind: type[Kind], word: str) -> type[Kind]:
    """The class registered under ``name``, which has to be a ``kind``; ``word`` is what messages call it.

    Raises UsageError with the known names, or with the failure of the import.
    """
    for point in entry_points(group=group, name=name):
        try:
            found = point.load()
        except Exception as error:  # another package's module may raise anything
            raise UsageError(
                f"the {word} {name} ({point.value}) cannot be loaded: {error}",
                hint="reinstall the package that provides it",
            ) from error
        if not (isinstance(found, type) and issubclass(found, kind)):
            raise UsageError(f"{point.value}, registered as {word} {name}, is not a subclass of {kind.__name__}")
        return found
    raise UsageError(f"there is no {word} {name}", hint=f"known {word}s: {', '.join(names(group))}")
