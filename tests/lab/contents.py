"""What the directories of the share hold, by path relative to wherever it stands; and how it is written out.

Directories are implied by what is in them. A library tells its own name, a module has it as NAME, and a plugin's first
line is it, so that whoever finds one can see that it is the right one.
"""

import itertools
import marshal
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.util import MAGIC_NUMBER, source_hash
from typing import TypeAlias

from lab.errors import LabError

STAMP = 1_600_000_000
"""When everything was last changed, in seconds."""

_MARK = "@" * 31
_SOURCE = f'const char *share_name(void) {{ static const char name[] = "{_MARK}"; return name; }}\n'
_CC = (
    *("cc", "-shared", "-nostdlib", "-fPIC", "-O1", "-s", "-Wl,--build-id=none"),
    *("-Wl,-z,noseparate-code", "-Wl,-z,norelro", "-x", "c", "-"),
)
_UNCHECKED = 0b01
"""The flags of hash-based bytecode that is never compared with its source (PEP 552)."""


@dataclass(frozen=True)
class Symlink:
    target: str


Contents: TypeAlias = dict[str, bytes | Symlink]


def parents(contents: Mapping[str, object]) -> set[str]:
    """All directories that the paths imply."""
    found = set()
    for path in contents:
        directory = os.path.dirname(path)
        while directory and directory not in found:
            found.add(directory)
            directory = os.path.dirname(directory)
    return found


def count(contents: Mapping[str, object]) -> int:
    """How many entries there are, at any depth, directories included."""
    return len(contents) + len(parents(contents))


def library(name: str, number: int = 0) -> Contents:
    """A shared object without a SONAME, ``name.so.1.2.3``, and the symlinks ``name.so`` and ``name.so.1`` to it."""
    real = f"{name}.so.1.{number % 4}.{number % 7}"
    return {real: _elf(name), f"{name}.so.1": Symlink(real), f"{name}.so": Symlink(f"{name}.so.1")}


def module(path: str, name: str) -> Contents:
    """A module, ``path`` without suffix, and its bytecode."""
    directory, stem = os.path.split(path)
    source = f'"""A part of the share."""\n\nNAME = "{name}"\n\n\ndef answer():\n    return NAME\n'.encode()
    bytecode = os.path.join(directory, "__pycache__", f"{stem}.{sys.implementation.cache_tag}.pyc")
    return {f"{path}.py": source, bytecode: _bytecode(source, f"{path}.py")}


def package(name: str, *parts: str) -> Contents:
    """A package with these modules in it."""
    contents = module(f"{name}/__init__", name)
    for part in parts:
        contents |= module(f"{name}/{part}", f"{name}.{part}")
    return contents


def plugin(name: str, suffix: str) -> Contents:
    return {name + suffix: text(name)}


def text(line: str, size: int = 500) -> bytes:
    """The line again and again."""
    return (f"{line}\n".encode() * size)[:size]


def more_libraries(tag: str) -> Iterator[Contents]:
    """What else a library directory holds, piece by piece, without end."""
    for number in itertools.count():
        if number % 4 == 3:
            yield {f"pkgconfig/{tag}_{number:02}.pc": text(f"Name: {tag}_{number}", 200)}
        else:
            yield library(f"lib{tag}_more{number:02}", number)


def more_modules(tag: str) -> Iterator[Contents]:
    """As :func:`more_libraries`, for a Python directory."""
    yield {f"{tag}-1.0.dist-info/{name}": text(f"Name: {tag}") for name in ("METADATA", "RECORD", "WHEEL")}
    for number in itertools.count():
        name = f"more_{tag}_{number:02}"
        yield package(name, "a", "b") if number % 3 == 2 else module(name, name)


def more_plugins(tag: str) -> Iterator[Contents]:
    """As :func:`more_libraries`, for a plugin directory."""
    for number in itertools.count():
        yield (
            {f"icons/{tag}_{number:02}.png": text(tag, 200)}
            if number % 4 == 3
            else plugin(f"{tag}_{number:02}", ".json")
        )


def fill(contents: Contents, size: int, more: Iterator[Contents]) -> None:
    """Add whole pieces while they fit, and then plain files, until there are exactly ``size`` entries."""
    for piece in more:
        if count(contents | piece) > size:
            break
        contents |= piece
    contents |= {f"notes_{number:02}.txt": text("notes") for number in range(size - count(contents))}


def write(root: str, contents: Contents, modes: Mapping[str, int]) -> None:
    """Write everything below ``root``; files of mode 0644 and directories of 0755 unless ``modes`` says otherwise."""
    directories = sorted(parents(contents))
    for directory in directories:
        os.makedirs(f"{root}/{directory}")
    for path, content in contents.items():
        place = f"{root}/{path}"
        if isinstance(content, Symlink):
            os.symlink(content.target, place)
        else:
            with open(place, "wb") as file:
                file.write(content)
            os.chmod(place, modes.get(path, 0o644))
        os.utime(place, (STAMP, STAMP), follow_symlinks=False)
    for directory in (*reversed(directories), ""):
        os.chmod(f"{root}/{directory}", modes.get(directory, 0o755))
        os.utime(f"{root}/{directory}", (STAMP, STAMP))


def _elf(name: str) -> bytes:
    return _elf_template().replace(_MARK.encode(), name.encode().ljust(len(_MARK), b"\0"))


@cache
def _elf_template() -> bytes:
    with tempfile.TemporaryDirectory() as place:
        output = f"{place}/template.so"
        try:
            subprocess.run([*_CC, "-o", output], input=_SOURCE.encode(), capture_output=True, check=True)
        except FileNotFoundError:
            raise LabError("the share's libraries need a C compiler: install gcc") from None
        except subprocess.CalledProcessError as error:
            raise LabError(f"cc makes no shared object: {error.stderr.decode(errors='replace').strip()}") from None
        with open(output, "rb") as file:
            return file.read()


def _bytecode(source: bytes, shown: str) -> bytes:
    code = compile(source, shown, "exec", dont_inherit=True, optimize=0)
    # Version 2 has no back references, which depend on who else in this process holds a string.
    return MAGIC_NUMBER + _UNCHECKED.to_bytes(4, "little") + source_hash(source) + marshal.dumps(code, 2)
