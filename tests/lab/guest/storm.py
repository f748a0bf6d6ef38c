"""The application: each phase of its start searches one path, in a process of its own.

``python3 -m lab.guest.storm PHASE ROOT MANIFEST`` prints one JSON object: ``found``, and ``missed`` where the phase
does the searching itself instead of ld.so or the importers. It exits with 1, and says why, if something that must be
there is not, or is not what it should be. :mod:`lab.guest.launch` sets the environment that each phase needs.

It imports little, because each import is searched for as well, in all of PYTHONPATH. That is why the manifest stays
what JSON makes of it here: :mod:`dataclasses` would bring as many modules as all the rest.
"""

import importlib
import json
import os
import sys
from collections.abc import Callable

Fields = dict[str, list[str]]
"""The fields of a :class:`lab.manifest.Manifest`, of which only lists are used."""

SUFFIXES = (".so", ".py", ".json")
"""What a plugin host tries for each name in each directory, in this order."""


class Failed(Exception):
    """Something is missing, or is not what it should be."""


def libraries(root: str, fields: Fields) -> dict[str, int]:
    """Load each library by its bare name, so that ld.so searches LD_LIBRARY_PATH for it."""
    import ctypes  # noqa: PLC0415 - no other phase needs it

    del root
    for name in fields["libraries"]:
        library = ctypes.CDLL(name)
        library.share_name.restype = ctypes.c_char_p
        own = library.share_name().decode("ascii")
        if own != name.partition(".so")[0]:
            raise Failed(f"{name} is {own}")
    return {"found": len(fields["libraries"])}


def modules(root: str, fields: Fields) -> dict[str, int]:
    """Import each module by its name, from PYTHONPATH."""
    for name in fields["modules"]:
        try:
            module = importlib.import_module(name)
        except ImportError as error:
            raise Failed(str(error)) from None
        if not hasattr(module, "NAME"):  # a package without the file that makes it one, for a moment at least
            raise Failed(f"{name} is empty: {module!r}, {[_seen(path) for path in getattr(module, '__path__', ())]}")
        if name != module.NAME or not str(module.__file__).startswith(root + "/"):
            raise Failed(f"{name} is {module.NAME}, from {module.__file__}")
    return {"found": len(fields["modules"])}


def _seen(directory: str) -> str:
    """What a package's directory and its file look like now."""
    try:
        return f"{sorted(os.listdir(directory))}, {os.stat(f'{directory}/__init__.py')}"
    except OSError as error:
        return str(error)


def plugins(root: str, fields: Fields) -> dict[str, int]:
    """Search the plugin path for each plugin, and read it."""
    missed = 0
    for name in fields["plugins"]:
        path, tried = _search(root, fields["plugin_path"], name)
        missed += tried
        if path is None:
            raise Failed(f"no plugin {name}")
        with open(path, encoding="ascii") as file:
            own = file.readline().strip()
        if own != name:
            raise Failed(f"{path} is {own}")
    return {"found": len(fields["plugins"]), "missed": missed}


def absent(root: str, fields: Fields) -> dict[str, int]:
    """Search directories that do not exist for plugins that nobody has."""
    missed = 0
    for name in fields["optional"]:
        path, tried = _search(root, fields["absent_path"], name)
        missed += tried
        if path is not None:
            raise Failed(f"{path} should not exist")
    return {"found": 0, "missed": missed}


def _search(root: str, directories: list[str], name: str) -> tuple[str | None, int]:
    """Where the plugin is, or None; and how many names were not there."""
    missed = 0
    for directory in directories:
        for suffix in SUFFIXES:
            path = f"{root}/{directory}/{name}{suffix}"
            try:
                os.stat(path)
            except FileNotFoundError:
                missed += 1
            else:
                return path, missed
    return None, missed


PHASES: dict[str, Callable[[str, Fields], dict[str, int]]] = {
    "libraries": libraries,
    "modules": modules,
    "plugins": plugins,
    "absent": absent,
}


def main(arguments: list[str]) -> int:
    phase, root, manifest = arguments
    with open(manifest, encoding="ascii") as file:
        fields = json.load(file)
    try:
        counts = PHASES[phase](root, fields)
    except (Failed, OSError) as error:
        sys.stderr.write(f"storm: {phase}: {error}\n")
        return 1
    json.dump(counts, sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
