"""Words to choose from, and the one that somebody who mistyped it probably meant."""

from collections.abc import Collection
from difflib import get_close_matches


def nearest(found: str, words: Collection[str]) -> str | None:
    """The word that looks most like ``found``, if any does; case, ``-`` and ``_`` do not count."""
    plain = {_plain(word): word for word in words}
    close = get_close_matches(_plain(found[:100]), plain, n=1)
    return plain[close[0]] if close else None


def either(words: Collection[str]) -> str:
    """``hot, always or never``."""
    *most, last = words
    return f"{', '.join(most)} or {last}" if most else last


def _plain(word: str) -> str:
    return word.strip().casefold().replace("-", "_").replace(" ", "_")
