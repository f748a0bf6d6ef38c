"""What the models allow at a key, in words: for error messages and for the policy reference."""

import types
from collections.abc import Iterable
from typing import Annotated, Final, Literal, Union, get_args, get_origin

import annotated_types
from pydantic.fields import FieldInfo

from promoterd.policy.models import Policy
from promoterd.policy.near import either
from promoterd.policy.problems import Location
from promoterd.policy.section import Section
from promoterd.units import DURATION, Allowed, format_duration

_BOUNDS: Final = (
    (annotated_types.Gt, "gt", "more than"),
    (annotated_types.Ge, "ge", "at least"),
    (annotated_types.Le, "le", "at most"),
)


def section_of(annotation: object) -> type[Section] | None:
    """The model inside ``Model``, ``Model | None``, ``list[Model]`` or an annotated one; None for plain values."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    if get_origin(annotation) in (list, Annotated):
        return section_of(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return next((found for found in map(section_of, get_args(annotation)) if found), None)
    return None


def find(location: Location) -> tuple[type[Section], FieldInfo | None]:
    """The innermost model at a location, and the key of it that the location ends with; None for an unknown key."""
    model: type[Section] = Policy
    field: FieldInfo | None = None
    for step in location:
        if isinstance(step, int):
            continue
        if field is not None:
            inner = section_of(field.annotation)
            if inner is None:
                break
            model = inner
        field = model.model_fields.get(step)
        if field is None:
            break
    return model, field


def allowed(field: FieldInfo, *, item: bool = False) -> str:
    """What may stand at a key, in words; with ``item``, what may stand in its list."""
    special = _said(field.metadata)
    text = special or _in_words(field.annotation, item=item)
    for kind, attribute, words in _BOUNDS:
        for extra in field.metadata:
            if isinstance(extra, kind):
                bound = getattr(extra, attribute)
                text += f", {words} {format_duration(bound) if special == DURATION else bound}"
    optional = not special and type(None) in get_args(field.annotation)
    return f"{text}, or nothing" if optional else text


def keys(model: type[Section]) -> str:
    """The keys of a mapping, in the order of the reference."""
    return "the keys " + ", ".join(model.model_fields)


def words_of(field: FieldInfo) -> tuple[str, ...]:
    """The words that a key chooses from, if it is that kind of key."""
    if field.annotation is bool:
        return ("true", "false")
    return get_args(field.annotation) if get_origin(field.annotation) is Literal else ()


def elsewhere(key: str) -> str | None:
    """Where in the policy a key of this name belongs, such as ``mounts[].limits.concurrency``."""
    places = [place for place in _places(Policy, "") if place.rpartition(".")[2] == key]
    return " or ".join(places) or None


def _places(model: type[Section], prefix: str) -> list[str]:
    places = []
    for name, field in model.model_fields.items():
        places.append(prefix + name)
        inner = section_of(field.annotation)
        if inner:
            many = "[]" if get_origin(field.annotation) is list else ""
            places += _places(inner, f"{prefix}{name}{many}.")
    return places


def _in_words(annotation: object, *, item: bool) -> str:
    arguments = get_args(annotation)
    if get_origin(annotation) is Annotated:
        return _said(arguments[1:]) or _in_words(arguments[0], item=item)
    if get_origin(annotation) is Literal:
        return either(arguments)
    if get_origin(annotation) in (Union, types.UnionType):
        return _in_words(next(argument for argument in arguments if argument is not type(None)), item=item)
    model = section_of(annotation)
    if model:
        many = get_origin(annotation) is list and not item
        return ("a list of one or more mappings with " if many else "a mapping with ") + keys(model)
    return {bool: "true or false", int: "a whole number", float: "a number"}.get(annotation, "text")  # type: ignore[call-overload, no-any-return]


def _said(metadata: Iterable[object]) -> str | None:
    return next((extra.text for extra in metadata if isinstance(extra, Allowed)), None)
