"""What is promoted from the start on, because other runs are known to need it."""

from typing import Annotated, Final

from pydantic import AfterValidator, Field

from promoterd.policy.fields import absolute
from promoterd.policy.section import Section
from promoterd.units import Allowed, InvalidValueError

LISTS: Final = "absolute paths of heat lists, directories of them, or globs"


def _absolute(text: str) -> str:
    try:
        return absolute(text)
    except InvalidValueError as error:
        raise InvalidValueError(error.found, LISTS, error.suggestion) from None


ListName = Annotated[str, AfterValidator(_absolute), Allowed(LISTS)]


class WarmPolicy(Section):
    """Heat lists whose directories are promoted before anybody waits for them."""

    lists: Annotated[list[ListName], Allowed(f"a list of {LISTS}")] = Field(
        min_length=1,
        description="The heat lists, as `promoterd record` and `heat merge` write them. They are read at the start, at "
        "a reload, and when they change or appear; a bad one is named in `promoterd status` and stops nothing.",
    )
    min_count: int = Field(default=0, ge=0, description="Leave out directories that were used less often than this.")


def lists_alone(value: object) -> object:
    """A list, or several, without anything else said about them."""
    if isinstance(value, str):
        return {"lists": [value]}
    return {"lists": value} if isinstance(value, list) else value
