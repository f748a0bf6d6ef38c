"""The tables of keys in ``docs/policy.md``, made from the models.

``python -m promoterd.policy.reference docs/policy.md`` brings them up to date.

A table stands between ``<!-- keys: Rule -->`` and ``<!-- end -->``, for each of the models in TABLES.
"""

import re
import sys
from typing import Any, Final, get_origin

from pydantic.fields import FieldInfo

from promoterd.policy import schema
from promoterd.policy.load import parse_policy
from promoterd.policy.models import (
    ControlPolicy,
    CopyData,
    DaemonLimits,
    Expected,
    HeatPolicy,
    Limits,
    LogPolicy,
    MetricsPolicy,
    MountPolicy,
    Policy,
    RequestBudget,
    Rule,
    WarmPolicy,
)
from promoterd.policy.section import Section
from promoterd.units import DURATION, SHARE_OR_COUNT, SHARE_OR_SIZE, SIZE

TABLES: Final[dict[str, type[Section]]] = {
    model.__name__: model
    for model in (
        Policy,
        ControlPolicy,
        MetricsPolicy,
        LogPolicy,
        DaemonLimits,
        MountPolicy,
        HeatPolicy,
        Expected,
        Limits,
        RequestBudget,
        CopyData,
        WarmPolicy,
        Rule,
    )
}

_BLOCK: Final = re.compile(r"(<!-- keys: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
_LINKS: Final = {
    DURATION: "a [duration](#units)",
    SHARE_OR_SIZE: "a [share or a size](#units)",
    SIZE: "a [size](#units)",
    SHARE_OR_COUNT: "a [share](#units) or a whole number",
}
_SMALLEST: Final = "mounts: [{mountpoint: /x, rules: [{path: x}]}]"


def updated(text: str) -> str:
    """The document with its tables as the models have them now; KeyError for a table of no model."""
    return _BLOCK.sub(lambda block: f"{block[1]}{table(TABLES[block[2]])}{block[3]}", text)


def table(model: type[Section]) -> str:
    """One model's keys: what is allowed, the default, and what it means."""
    lines = ["| key | allowed | default | meaning |", "|---|---|---|---|"]
    defaults = _defaults(model)
    for name, field in model.model_fields.items():
        default = "*required*" if field.is_required() else _cell(defaults[name])
        cells = (f"`{name}`", _allowed(field), default, _escaped(field.description or ""))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _defaults(model: type[Section]) -> dict[str, Any]:
    def search(part: Section) -> Section | None:
        inner = [value for _, value in part for value in (value if isinstance(value, list) else [value])]
        found = (search(value) for value in inner if isinstance(value, Section))
        return part if isinstance(part, model) else next((match for match in found if match), None)

    smallest = parse_policy(_SMALLEST)
    part = search(smallest) or model.model_construct()  # without what is required
    return part.model_dump(mode="json")


def _allowed(field: FieldInfo) -> str:
    if schema.section_of(field.annotation):
        return "a list of mappings, below" if get_origin(field.annotation) is list else "a mapping, below"
    text = schema.allowed(field)
    return next((text.replace(long, link) for long, link in _LINKS.items() if long in text), _escaped(text))


def _cell(default: object) -> str:
    if default is None:
        return "nothing"
    if isinstance(default, dict):
        return "*its defaults*"
    if isinstance(default, list):
        return ", ".join(map(_cell, default)) or "nothing"
    if isinstance(default, bool):
        return f"`{str(default).lower()}`"
    return f"`{default:g}`" if isinstance(default, float) else f"`{default}`"


def _escaped(text: str) -> str:
    """For a cell: no column separators, and no asterisks outside code that would start emphasis."""
    parts = text.replace("|", r"\|").split("`")
    parts[::2] = [part.replace("*", r"\*") for part in parts[::2]]
    return "`".join(parts)


def main(documents: list[str]) -> None:
    """Rewrite the documents in place."""
    for document in documents:
        with open(document, encoding="utf-8") as stream:
            text = updated(stream.read())
        with open(document, "w", encoding="utf-8") as stream:
            stream.write(text)


if __name__ == "__main__":
    main(sys.argv[1:])
