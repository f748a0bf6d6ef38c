"""Which paths a rule's glob matches: ``*``, ``?``, ``[...]`` within a name, ``**`` for any number of directories.

Matching is of characters, not bytes: a path is decoded as UTF-8 with ``surrogateescape``, so that ``?`` is one letter
of any script, or one byte that is not UTF-8. Names with a leading dot and names with newlines are names like any other.
``a/**`` is everything below ``a``, without ``a`` itself (as in gitignore).
"""

import re
from collections.abc import Iterable
from functools import cached_property, lru_cache
from typing import Final

from wcmatch import glob

from promoterd.units import InvalidValueError, shown

ALLOWED: Final = "a glob relative to the mount, such as apps/*/lib or **/site-packages; / alone is the mount's root"

_FLAGS: Final = glob.GLOBSTAR | glob.DOTGLOB | glob.FORCEUNIX
_LONGEST_PATH: Final = 4096  # PATH_MAX
_DEEPEST: Final = 256
_ODD_BACKSLASHES: Final = re.compile(r"(?<!\\)(?:\\\\)*\\$")


def normalise(text: str) -> str:
    """The glob without leading, trailing and double slashes and without ``.``; ``/`` is the mount's root.

    Raises InvalidValueError for ``..``, NUL, no text at all, and what is no glob.
    """
    parts = [part for part in text.split("/") if part not in ("", ".")]
    parts = [part for at, part in enumerate(parts) if part != "**" or parts[at - 1 : at] != ["**"]]
    plain = "/".join(parts) or "/"
    if not text:
        raise InvalidValueError("empty text", ALLOWED, "/")
    if ".." in parts or "\0" in text:
        raise InvalidValueError(shown(text), f"no '..' and no NUL in {ALLOWED}")
    if len(text) > _LONGEST_PATH or len(parts) > _DEEPEST:
        raise InvalidValueError(shown(text), f"at most {_LONGEST_PATH} characters and {_DEEPEST} levels")
    if any(_ODD_BACKSLASHES.search(part) for part in parts):
        raise InvalidValueError(shown(text), "a backslash only before the character that it makes ordinary")
    try:
        text.encode("utf-8", "surrogateescape")
        compiled([plain])
    except (re.error, UnicodeEncodeError) as error:
        raise InvalidValueError(shown(text), f"{ALLOWED} ({error})") from None
    return plain


def compiled(patterns: Iterable[str]) -> re.Pattern[str]:
    """One regular expression for ``fullmatch`` over decoded paths that matches where any of the globs does."""
    expressions, _ = glob.translate(list(patterns), flags=_FLAGS, limit=0)
    return re.compile("|".join(expressions))


def decoded(path: bytes) -> str:
    """The form of a path that :class:`Glob` matches; loses nothing."""
    return path.decode("utf-8", "surrogateescape")


def levels(glob_text: str) -> list[str]:
    """The parts of a normalised glob between its slashes; none for the mount's root."""
    return glob_text.split("/") if glob_text != "/" else []


class Glob:
    """One normalised glob; with ``whole_trees`` it also matches everything below what it matches."""

    def __init__(self, text: str, *, whole_trees: bool = False) -> None:
        self._parts = levels(text)
        self._whole_trees = whole_trees

    def matches(self, path: str) -> bool:
        """Whether the glob matches this decoded path."""
        if not path:
            return not self._parts  # ** means what is below, so it never means the root
        return self._itself.fullmatch(path) is not None

    def can_reach(self, path: str) -> bool:
        """Whether it matches ``path``, or could match a path below it."""
        return not path or self._on_the_way.fullmatch(path) is not None

    def covers_below(self, path: str) -> bool:
        """Whether it matches every path below ``path``, whatever the names."""
        return self._tops is not None and self._tops.fullmatch(path) is not None

    @cached_property
    def _itself(self) -> re.Pattern[str]:
        text = "/".join(self._parts)
        below = "/".join([*self._parts, "**"])
        return compiled([text, below] if self._whole_trees else [text])

    @cached_property
    def _on_the_way(self) -> re.Pattern[str]:
        """From the first ``**`` on, every path can still be continued to a match."""
        fixed = self._parts.index("**") if "**" in self._parts else len(self._parts)
        ways = ["/".join(self._parts[:length]) for length in range(1, fixed + 1)]
        if fixed < len(self._parts) or self._whole_trees:
            ways.append("/".join([*self._parts[:fixed], "**"]))
        return compiled(ways or [""])

    @cached_property
    def _tops(self) -> re.Pattern[str] | None:
        if self._parts[-1:] == ["**"]:
            stem = "/".join(self._parts[:-1])
            return compiled([stem, "/".join(self._parts)])
        return self._itself if self._whole_trees else None


@lru_cache(maxsize=4096)
def compiled_glob(text: str, *, whole_trees: bool) -> Glob:
    """A Glob that is compiled once, however often it is asked for."""
    return Glob(text, whole_trees=whole_trees)
