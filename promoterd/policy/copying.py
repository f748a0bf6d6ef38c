"""Which files of complete directories carry their data in the metadata layer."""

import re
from functools import lru_cache
from typing import Annotated, Final

from pydantic import Field

from promoterd.policy import globs
from promoterd.policy.fields import GlobText
from promoterd.policy.section import Section
from promoterd.units import Allowed, Size

_EVERYTHING: Final = "**"
_PATTERNS: Final = "a list of globs, each like a rule's path"


class CopyData(Section):
    """Small files of which a copy of the data is kept, so that opening and reading them asks nobody."""

    max_size: Size = Field(default=64 * 1024, ge=1, description="The largest file that is copied.")
    patterns: Annotated[list[GlobText], Allowed(_PATTERNS)] = Field(
        default=[_EVERYTHING],
        min_length=1,
        description="Which files: globs relative to the mount, as those of rules, but matched with files. One that "
        "matches is enough.",
    )
    budget: Size = Field(
        default=1024**3,
        ge=1,
        description="How many bytes of data the layer may hold. When they are used up, those of the coldest "
        "directories make room for hotter ones.",
    )

    def wants(self, path: bytes, size: int) -> bool:
        """Whether the file at this path inside the mount, of so many bytes, is to carry its data."""
        return size <= self.max_size and _expression(tuple(self.patterns)).fullmatch(globs.decoded(path)) is not None


@lru_cache(maxsize=256)
def _expression(patterns: tuple[str, ...]) -> re.Pattern[str]:
    return globs.compiled(patterns)
