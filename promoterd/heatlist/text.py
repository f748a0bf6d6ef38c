"""Heat lists as YAML text, both ways (pure).

A list is one document, or several: what ``cat`` makes of many lists is the merged list. Directories stand one to a
line, sorted, so that lists can be compared and kept in version control. Lines that are just as :func:`dumps` writes
them, which is nearly always all of them, are read without a YAML parser: that is forty times as fast.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Annotated, Any, Final, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from promoterd.errors import HeatListError
from promoterd.heatlist import names
from promoterd.heatlist.model import KINDS, HeatList, Uses
from promoterd.paths import display
from promoterd.policy.near import nearest
from promoterd.units import shown

VERSION: Final = 1
_MARK: Final = "promoterd-heat"
_MOST_PROBLEMS: Final = 10
_MOST_COUNT: Final = 2**53  # what every reader of YAML and JSON holds exactly
_LOADER: Final[Any] = getattr(yaml, "CBaseLoader", yaml.BaseLoader)
_HEAD: Final = re.compile(rf"{_MARK}: {VERSION}\nruns: (\d{{1,15}})\nmounts:(?: \[\]\n|\n)")
_MOUNT: Final = re.compile(r'  - mountpoint: ("(?:[^"\\]|\\.)*")\n    directories:(?: \[\]\n|\n)')
_LINE: Final = re.compile(
    r'      - \{path: ("(?:[^"\\]|\\.)*")' + "".join(rf"(?:, {kind}: (\d{{1,15}}))?" for kind in KINDS) + r"\}\n"
)

Notes = Mapping[tuple[bytes, bytes], str]
"""What is to be said of directories, in comments."""


def dumps(heat: HeatList, notes: Notes | None = None) -> str:
    """The text of a list; equal lists have the same text."""
    return "".join(_lines(heat, notes or {}))


def _lines(heat: HeatList, notes: Notes) -> Iterator[str]:
    yield f"---\n{_MARK}: {VERSION}\nruns: {heat.runs}\nmounts:{'' if heat.mounts else ' []'}\n"
    for mountpoint, directories in sorted(heat.mounts.items()):
        empty = "" if directories else " []"
        yield f"  - mountpoint: {_quoted(names.encode(mountpoint))}\n    directories:{empty}\n"
        for path, uses in sorted(directories.items()):
            counts = "".join(f", {kind}: {count}" for kind, count in zip(KINDS, uses, strict=True) if count)
            note = notes.get((mountpoint, path))
            said = "" if note is None else f"  # {display(note.encode('utf-8', 'backslashreplace'))}"
            yield f"      - {{path: {_quoted(names.encode(path) or names.ROOT)}{counts}}}{said}\n"


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)  # of printable characters: a double-quoted scalar of YAML as well


def loads(text: str, file: str = "<list>") -> HeatList:
    """The list in a text, all its documents merged. Raises HeatListError, which names ``file``, the lines and why."""
    merged = HeatList()
    if not _read_as_written(text, merged):
        merged = HeatList()
        _read_as_yaml(text, file, merged)
    return merged


def _read_as_written(text: str, into: HeatList) -> bool:
    """Read what :func:`dumps` wrote; False, with some of it done, for anything else."""
    at = 0
    try:
        while text.startswith("---\n", at):
            head = _HEAD.match(text, at + 4)
            if head is None:
                return False
            into.runs += int(head[1])
            at = head.end()
            while mount := _MOUNT.match(text, at):
                mountpoint = names.mountpoint_of(json.loads(mount[1]))
                into.mounts.setdefault(mountpoint, {})
                at = mount.end()
                while line := _LINE.match(text, at):
                    quoted, *counts = line.groups()
                    path = quoted[1:-1] if "\\" not in quoted else json.loads(quoted)
                    into.add(mountpoint, names.path_of(path), Uses(*(int(count or 0) for count in counts)))
                    at = line.end()
    except ValueError:
        return False
    return bool(text) and at == len(text)


def _empty_is_nothing(value: object) -> object:
    return [] if value == "" else value


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


Count = Annotated[int, Field(ge=0, le=_MOST_COUNT)]


class _Directory(_Part):
    path: Annotated[bytes, BeforeValidator(lambda value: _named(value, names.path_of))]
    open: Count = 0
    list: Count = 0
    miss: Count = 0
    found: Count = 0


class _Mount(_Part):
    mountpoint: Annotated[bytes, BeforeValidator(lambda value: _named(value, names.mountpoint_of))]
    # not the builtin's name, which the class above has for a count
    directories: Annotated["tuple[_Directory, ...]", BeforeValidator(_empty_is_nothing)]


class _Document(_Part):
    version: Literal["1"] = Field(alias=_MARK)
    runs: Count = 1
    mounts: Annotated[tuple[_Mount, ...], BeforeValidator(_empty_is_nothing)] = ()


def _named(value: object, meaning: Callable[[str], bytes]) -> bytes:
    if not isinstance(value, str):
        raise ValueError("a path that is no text")  # noqa: TRY004 - pydantic reports ValueError
    return meaning(value)


def _read_as_yaml(text: str, file: str, into: HeatList) -> None:
    documents = _parsed(text, file)
    if not documents:
        raise _failure(file, [(1, "nothing in it")])
    if _directories_in(documents) > len(text):
        raise _failure(file, [(1, "aliases by which it has more directories than characters")])
    for number, data in enumerate(documents):
        try:
            document = _Document.model_validate(data)
        except ValidationError as error:
            nodes = list(yaml.compose_all(text, Loader=_LOADER))
            raise _failure(file, _problems(nodes[number], data, error)) from None
        into.runs += document.runs
        for mount in document.mounts:
            into.mounts.setdefault(mount.mountpoint, {})
            for directory in mount.directories:
                uses = Uses(directory.open, directory.list, directory.miss, directory.found)
                into.add(mount.mountpoint, directory.path, uses)


def _directories_in(documents: Iterable[object]) -> int:
    """How many there will be, whatever else is wrong; an alias costs nothing until it is looked at."""
    lists = [data.get("mounts") for data in documents if isinstance(data, dict)]
    mounts = [mount for found in lists if isinstance(found, list) for mount in found if isinstance(mount, dict)]
    return sum(len(found) for mount in mounts if isinstance(found := mount.get("directories"), list))


def _parsed(text: str, file: str) -> list[object]:
    try:
        return [data for data in yaml.load_all(text, Loader=_LOADER) if data not in ("", None)]
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        said = " ".join(", ".join(part for part in (error.context, error.problem) if part).split())
        raise _failure(file, [(mark.line + 1 if mark else 1, f"no valid YAML ({said})")]) from None
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        raise _failure(file, [(1, f"no YAML that a list can be ({' '.join(str(error).split())[:200]})")]) from None


def _problems(node: yaml.Node | None, data: object, error: ValidationError) -> list[tuple[int, str]]:
    if not isinstance(data, dict) or _MARK not in data:
        return [(1, f"no heat list: it has no key {_MARK}")]
    found = []
    for details in error.errors(include_url=False)[:_MOST_PROBLEMS]:
        place = tuple("open" if step == "open_" else step for step in details["loc"])
        found.append((_line(node, place), _said(place, details)))
    return found


def _said(place: tuple[str | int, ...], details: Any) -> str:
    key = str(place[-1]) if place else ""
    cause = details.get("ctx", {}).get("error")
    if cause is not None:
        return f"{key}: {shown(details['input'])}: {cause}"
    if details["type"] == "extra_forbidden":
        known = {1: (_MARK, "runs", "mounts"), 3: ("mountpoint", "directories")}.get(len(place), ("path", *KINDS))
        better = nearest(key, known)
        text = f"the unknown key {shown(key)}; allowed {', '.join(known)}"
        return f"{text}; did you mean {better}?" if better else text
    if details["type"] == "missing":
        return f"no {key}"
    if key == _MARK:
        return f"{_MARK}: version {shown(details['input'])}; this promoterd reads version {VERSION}"
    allowed = {"mounts": "a list of mounts", "directories": "a list of directories"}.get(key, "a whole number")
    if isinstance(place[-1], int):
        allowed = "a mapping with a path and counts"
    return f"{key}: found {shown(details['input'])}; allowed {allowed}"


def _line(node: yaml.Node | None, place: Iterable[str | int]) -> int:
    """The line of what stands there, or of the nearest thing around it."""
    line = 1
    for step in place:
        if isinstance(node, yaml.SequenceNode) and isinstance(step, int) and step < len(node.value):
            node = node.value[step]
            line = node.start_mark.line + 1 if node is not None else line
        elif isinstance(node, yaml.MappingNode):
            found = next(((key, value) for key, value in node.value if key.value == step), None)
            if found is None:
                return line
            line, node = found[0].start_mark.line + 1, found[1]
    return line


def _failure(file: str, problems: list[tuple[int, str]]) -> HeatListError:
    name = display(file.encode("utf-8", "surrogateescape"))
    return HeatListError("\n".join(f"{name}:{line}: {text}" for line, text in problems))
