"""What is to be known of a built share: search paths, what a launch loads, and which rules govern it."""

import json
from dataclasses import asdict, dataclass
from typing import Any, Self


@dataclass(frozen=True)
class Manifest:
    """Paths are relative to the share; search paths are in the order of the search."""

    library_path: tuple[str, ...]
    python_path: tuple[str, ...]
    plugin_path: tuple[str, ...]
    absent_path: tuple[str, ...]
    """As many as there are existing search directories. None of these exists; what they are missing from grows."""
    libraries: tuple[str, ...]
    """Names to dlopen, each in one directory of ``library_path``."""
    modules: tuple[str, ...]
    """Names to import; a package's name comes before those of its parts."""
    plugins: tuple[str, ...]
    """Names, without suffix, of what stands in one directory of ``plugin_path``."""
    optional: tuple[str, ...]
    """Names of plugins that nobody has; ``absent_path`` is searched for them."""
    only_missed: tuple[str, ...]
    """Search directories in which a launch never finds, lists or opens anything."""
    growing: tuple[str, ...]
    """Policy globs of the directories in which new entries appear."""
    releases: tuple[str, ...]
    """Policy globs of the directories that never change, and may be promoted."""
    entries: int
    """Names in the search directories and in all directories below them, the search directories not counted."""
    missing: int
    """A launch asks for at least so many different names, in existing search directories, that are not there."""
    found: int
    """A launch asks for at least so many different names, in or below search directories, that are there."""
    workload: str
    """A directory of 500 files ``f0000`` …, 5 directories and 2 symlinks, on no search path."""

    @property
    def search_path(self) -> tuple[str, ...]:
        """All existing search directories."""
        return self.library_path + self.python_path + self.plugin_path

    def dump(self, path: str) -> None:
        """Write it to a file as one JSON object, which has a key for each field."""
        with open(path, "w", encoding="ascii") as file:
            json.dump(asdict(self), file, indent=1)

    @classmethod
    def load(cls, path: str) -> Self:
        """Read what :meth:`dump` wrote. Raises TypeError if a field is missing or unknown."""
        with open(path, encoding="ascii") as file:
            fields: dict[str, Any] = json.load(file)
        for name, value in fields.items():
            if isinstance(value, list):
                fields[name] = tuple(value)
        return cls(**fields)
