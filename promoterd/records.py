"""What we write into an extended attribute: a JSON object that names the version of its form."""

import json
from collections.abc import Callable
from typing import Any, TypeVar

FORMAT = 1
Record = TypeVar("Record")


def encode(**fields: object) -> bytes:
    """The attribute's value."""
    return json.dumps({"v": FORMAT, **fields}, separators=(",", ":")).encode()


def decode(value: bytes | None, make: Callable[[dict[str, Any]], Record]) -> Record | None:
    """What ``make`` makes of the fields in an attribute's value; None where this version can read none there.

    ``make`` may raise KeyError, TypeError and ValueError for fields that are missing or wrong.
    """
    if value is None:
        return None
    try:
        fields = json.loads(value)
        return make(fields) if fields["v"] == FORMAT else None
    except (ValueError, KeyError, TypeError):
        return None
