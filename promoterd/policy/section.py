"""What all parts of a policy share."""

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """One mapping of the policy: no unknown keys, no changes after loading."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def empty_is_default(value: object) -> object:
    """A section whose keys are all commented out is a section of defaults."""
    return {} if value is None else value
