"""A policy file as a checked policy, and a checked policy as text again."""

import os
from collections.abc import Collection
from typing import Any, Final

import yaml
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from promoterd.policy import schema
from promoterd.policy.doubts import doubts
from promoterd.policy.models import Policy
from promoterd.policy.near import nearest
from promoterd.policy.problems import Location, Problem, dotted, failure, place
from promoterd.policy.source import Source, SourceError
from promoterd.units import InvalidValueError, shown

_LARGEST_BYTES: Final = 1 << 20
_READABLE: Final = "a readable YAML file"


def load_policy(
    path: str | os.PathLike[str],
    *,
    known_backends: Collection[str] | None = None,
    known_heat_sources: Collection[str] | None = None,
) -> Policy:
    """The policy in a YAML file; ``warnings`` on it name what is allowed but probably not meant.

    Names of backends and heat sources are checked where the known ones are given; ``auto`` always passes.
    Raises PolicyError, which lists all that is wrong as ``FILE:LINE: KEY: found X; allowed Y; did you mean Z?``.
    """
    file = os.fspath(path)
    try:
        return parse_policy(_text(file), file, known_backends=known_backends, known_heat_sources=known_heat_sources)
    except SourceError as error:
        raise failure(file, [error.problem]) from None


def parse_policy(
    text: str,
    file: str = "<policy>",
    *,
    known_backends: Collection[str] | None = None,
    known_heat_sources: Collection[str] | None = None,
) -> Policy:
    """As :func:`load_policy`, from text that came from elsewhere; ``file`` is what errors call it."""
    try:
        source = Source(text)
    except SourceError as error:
        raise failure(file, [error.problem]) from None
    problems = list(source.problems)
    context = {"backends": known_backends, "heat_sources": known_heat_sources, "mountpoints": {}}
    try:
        policy = Policy.model_validate(source.data, context=context)
    except ValidationError as error:
        problems += [_problem(details, source) for details in error.errors(include_url=False)]
    else:
        found = [f"{place(file, source.line(where))}: {dotted(where)}: {text}" for where, text in doubts(policy)]
        policy._warnings = tuple(found)  # noqa: SLF001 - the models' own slot for it
    if problems:
        raise failure(file, problems)
    return policy


def effective_policy(policy: Policy) -> dict[str, Any]:
    """The policy with all defaults filled in, in the units and the order in which people write it."""
    plain = policy.model_dump(mode="json")
    for mount in plain["mounts"]:
        for rule in mount["rules"]:
            if rule["threshold"] is None:
                rule["threshold"] = mount["heat"]["threshold"]
    return plain


def dump_policy(policy: Policy) -> str:
    """The effective policy as YAML, which :func:`load_policy` reads back to the same effect."""
    return yaml.safe_dump(effective_policy(policy), sort_keys=False, allow_unicode=True, width=120)


def _text(file: str) -> str:
    try:
        with open(file, "rb") as stream:
            content = stream.read(_LARGEST_BYTES + 1)
    except FileNotFoundError:
        raise SourceError(Problem(None, "", "no such file", _READABLE)) from None
    except IsADirectoryError:
        raise SourceError(Problem(None, "", "a directory", _READABLE)) from None
    except PermissionError:
        raise SourceError(Problem(None, "", "a file that this user may not read", _READABLE)) from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise SourceError(Problem(None, "", f"an error ({reason})", _READABLE)) from None
    if len(content) > _LARGEST_BYTES:
        raise SourceError(Problem(None, "", "more than 1 MiB", "a policy, not some other file"))
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        found = f"the byte 0x{content[error.start]:02x}, which is not UTF-8"
        raise SourceError(Problem(line, "", found, "text in UTF-8")) from None


def _problem(details: ErrorDetails, source: Source) -> Problem:
    location: Location = details["loc"]
    model, field = schema.find(location)
    key, line = dotted(location), source.line(location)
    if details["type"] == "extra_forbidden":
        name = str(location[-1])
        better = schema.elsewhere(name) or nearest(name, model.model_fields)
        return Problem(line, key, f"the unknown key {shown(name)}", schema.keys(model), better)
    if not location or field is None:
        found = "nothing" if details["input"] is None else shown(details["input"])
        return Problem(line, key, found, "a mapping with " + schema.keys(Policy))
    allowed = schema.allowed(field, item=isinstance(location[-1], int))
    cause = details.get("ctx", {}).get("error")
    if isinstance(cause, InvalidValueError):
        return Problem(line, key, cause.found, cause.allowed, cause.suggestion)
    if details["type"] == "missing":
        return Problem(line, key, "nothing", allowed)
    written = source.value(location)
    better = nearest(written, schema.words_of(field)) if isinstance(written, str) else None
    return Problem(line, key, shown(written), allowed, better)
