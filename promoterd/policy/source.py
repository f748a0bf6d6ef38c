"""YAML text as plain data, with the line of every value at hand.

All scalars stay text, and the models read numbers and booleans from it: so ``path: 2024.10`` and ``listen: off`` mean
what they look like, which YAML 1.1's own types would not give. Aliases and merge keys (``<<``) work; duplicate keys do
not.
"""

from typing import Final, TypeAlias

import yaml

from promoterd.paths import display
from promoterd.policy.problems import Location, Problem, dotted
from promoterd.units import shown

Data: TypeAlias = "str | list[Data] | dict[str, Data] | None"

_PREFIX: Final = "tag:yaml.org,2002:"
_TAGS: Final = frozenset(
    _PREFIX + kind for kind in ("str", "int", "float", "bool", "null", "timestamp", "value", "merge", "map", "seq")
)
_NULL: Final = _PREFIX + "null"
_MERGE: Final = _PREFIX + "merge"
_QUOTED: Final = 'quotes around a value that starts with one of * & ! [ { @ % or `, such as path: "**/lib"'


class SourceError(Exception):
    """The text is not YAML at all."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(str(problem))
        self.problem = problem


class Source:
    """A YAML document: its data, what is wrong with its form, and where its values stand.

    Raises SourceError for text that is not one YAML document.
    """

    def __init__(self, text: str) -> None:
        self.problems: list[Problem] = []
        self._done: dict[int, Data] = {}
        self._open: set[int] = set()
        try:
            self._root = _composed(text)
            self.data = self._plain(self._root, ()) if self._root is not None else None
        except RecursionError:
            raise SourceError(Problem(1, "", "values nested too deeply", "at most five levels")) from None

    def line(self, location: Location) -> int:
        """The line, from 1, of the key or list item at this location, or of the nearest thing around it."""
        node, line = self._root, 1
        for step in location:
            found = self._step(node, step)
            if found is None:
                break
            node, line = found
        return line

    def value(self, location: Location) -> Data:
        """What stands there, as it was written; None for nothing."""
        data = self.data
        for step in location:
            if isinstance(data, list) and isinstance(step, int):
                data = data[step]
            else:
                data = data.get(str(step)) if isinstance(data, dict) else None
        return data

    def _step(self, node: yaml.Node | None, step: str | int) -> tuple[yaml.Node, int] | None:
        if isinstance(node, yaml.SequenceNode) and isinstance(step, int) and step < len(node.value):
            item: yaml.Node = node.value[step]
            return item, item.start_mark.line + 1
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                if key.value == step:
                    return value, key.start_mark.line + 1
            merged = (self._step(source, step) for source in _merged(node))
            return next((found for found in merged if found), None)
        return None

    def _plain(self, node: yaml.Node, location: Location) -> Data:
        if id(node) in self._open:
            self._report(node, location, "an alias inside of what it stands for", "values that end")
            return None
        if id(node) in self._done:
            return self._done[id(node)]
        self._open.add(id(node))
        if node.tag not in _TAGS:
            own = node.tag.startswith("!")
            self._report(node, location, f"the tag {shown(node.tag)}", _QUOTED if own else "values without a tag")
        result: Data
        if isinstance(node, yaml.SequenceNode):
            result = [self._plain(item, (*location, at)) for at, item in enumerate(node.value)]
        elif isinstance(node, yaml.MappingNode):
            result = self._mapping(node, location)
        else:
            result = None if node.tag == _NULL else str(node.value)
        self._open.discard(id(node))
        self._done[id(node)] = result
        return result

    def _mapping(self, node: yaml.MappingNode, location: Location) -> dict[str, Data]:
        own: dict[str, Data] = {}
        lines: dict[str, int] = {}
        for key, value in node.value:
            if key.tag == _MERGE:
                continue
            name = key.value if isinstance(key, yaml.ScalarNode) else None
            if name is None or not name.isprintable():
                self._report(
                    key, location, f"the key {shown(name)}" if name else "a key that is no word", "a plain word"
                )
            elif name in own:
                found = f"the key {shown(name)} a second time (first in line {lines[name]})"
                self._report(key, (*location, name), found, "each key once")
            else:
                lines[name] = key.start_mark.line + 1
                own[name] = self._plain(value, (*location, name))
        merged: dict[str, Data] = {}
        for source in reversed(_merged(node)):
            data = self._plain(source, location)
            if isinstance(data, dict):
                merged |= data
            else:
                self._report(source, (*location, "<<"), shown(data), "an alias of a mapping")
        return merged | own

    def _report(self, node: yaml.Node, location: Location, found: str, allowed: str) -> None:
        self.problems.append(Problem(node.start_mark.line + 1, dotted(location), found, allowed))


def _merged(node: yaml.MappingNode) -> list[yaml.Node]:
    """What the merge keys of a mapping refer to; the first has precedence."""
    sources: list[yaml.Node] = []
    for key, value in node.value:
        if key.tag == _MERGE:
            sources += value.value if isinstance(value, yaml.SequenceNode) else [value]
    return sources


def _composed(text: str) -> yaml.Node | None:
    try:
        return yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        found = f"the character U+{error.character:04X}"
        raise SourceError(
            Problem(line, "", found, "printable characters, others as escapes in double quotes")
        ) from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        raise SourceError(_explained(error, line, text.split("\n")[line - 1 : line])) from None
    except (ValueError, OverflowError):  # PyYAML on "\UFFFFFFFF" and the like
        raise SourceError(Problem(1, "", "an escape that stands for no character", "characters of Unicode")) from None


def _explained(error: yaml.MarkedYAMLError, line: int, lines: list[str]) -> Problem:
    said = " ".join(", ".join(part for part in (error.context, error.problem) if part).split())
    found = f"no valid YAML ({display(said.encode('utf-8', 'backslashreplace'))})"
    if "'\\t'" in said:
        return Problem(line, "", "a tab", "spaces, tabs do not indent in YAML")
    if "alias" in said or "that cannot start any token" in said:
        return Problem(line, "", found, _QUOTED, _with_quotes(lines))
    if "mapping values are not allowed" in said:
        return Problem(
            line, "", found, "quotes around a value with a colon and a space; keys of one mapping in one column"
        )
    return Problem(line, "", found, "valid YAML")


def _with_quotes(lines: list[str]) -> str | None:
    """The line with its value quoted, where that is plainly what was meant."""
    key, colon, value = (lines[0] if lines else "").strip().partition(": ")
    value = value.partition(" #")[0].strip()
    plain = (
        key.lstrip("- ").isidentifier()
        and colon
        and value
        and not set(value) & set("\"'\\{},:#")
        and value.isprintable()
    )
    return f'{key.lstrip("- ")}: "{value}"' if plain and len(value) < 80 else None  # noqa: PLR2004 - fits a line
