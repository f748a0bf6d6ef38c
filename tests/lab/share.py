"""The software share that the lab's server exports.

``packages/<name>/<version>/{lib,python,plugins}`` and ``vendor/<name>/<version>/{lib,site-packages}`` hold the
search directories of a launch, in one version of each name. Other versions stand beside them, and ``apps``, on no
search path. The top levels and the names in them grow; a version never changes. The tree is the same every time, for
one interpreter and one compiler.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate, cycle, islice, pairwise

from lab.contents import (
    Contents,
    Symlink,
    count,
    fill,
    library,
    module,
    more_libraries,
    more_modules,
    more_plugins,
    package,
    plugin,
    text,
    write,
)
from lab.guest.storm import SUFFIXES
from lab.manifest import Manifest

_WEIGHTS = (1, 3, 2, 8, 1, 5, 2, 4)
"""How search directories share what a launch does not ask for: many small ones, few large ones."""
_OPTIONAL = 19
_PRIVATE = "apps/private/1.0/secret"


@dataclass(frozen=True)
class Scale:
    """How large a share and its launch are."""

    packages: int
    """Packages that the launch uses; each has a library and a Python search directory."""
    vendored: int
    """What others made, in ``vendor``, likewise."""
    plugin_packages: int
    """How many of the packages have a plugin search directory besides."""
    entries: int
    """Names in the search directories and in all directories below them."""
    libraries: int
    """How many a launch loads."""
    plugins: int
    """How many a launch loads."""


FULL = Scale(packages=70, vendored=10, plugin_packages=40, entries=10_000, libraries=120, plugins=115)
SHORT = Scale(packages=11, vendored=2, plugin_packages=7, entries=1_667, libraries=90, plugins=105)
"""About a sixth: of the directories, of the entries, of the names that a launch does not find."""


@dataclass(frozen=True)
class _Search:
    """A search directory. What only it has has ``tag`` in its name."""

    path: str
    tag: str
    more: Callable[[str], Iterator[Contents]]
    """What such a directory holds besides, given its tag."""
    missed: bool = False
    contents: Contents = field(default_factory=dict)


@dataclass
class _Load:
    """What a launch loads along one search path, and the lookups that it costs at the least."""

    names: list[str] = field(default_factory=list)
    missing: int = 0
    found: int = 0


def build(root: str, scale: Scale) -> Manifest:
    """Make the share in the directory ``root``, which must be empty or absent; the caller owns all of it.

    Raises LabError where there is no C compiler.
    """
    libraries, pythons, plugins = _search_directories(scale)
    searches = [*libraries, *pythons, *plugins]
    loads = (
        _place_libraries(libraries, scale.libraries),
        _place_modules(pythons),
        _place_plugins(plugins, scale.plugins),
    )
    _fill_up(searches, scale.entries)
    contents = _packages_beside(scale) | _apps() | _workload("bench/workload/lib")
    for search in searches:
        contents |= _below(search.path, search.contents)
    modes = {path: 0o755 for path in contents if "/bin/" in path}
    modes |= {path: 0o600 for path in contents if path.startswith(f"{_PRIVATE}/")} | {_PRIVATE: 0o700}
    write(root, contents, modes)
    return Manifest(
        library_path=tuple(search.path for search in libraries),
        python_path=tuple(search.path for search in pythons),
        plugin_path=tuple(search.path for search in plugins),
        absent_path=tuple(_absent(search.path, number) for number, search in enumerate(searches)),
        libraries=tuple(loads[0].names),
        modules=tuple(loads[1].names),
        plugins=tuple(loads[2].names),
        optional=tuple(f"site_override_{number:02}" for number in range(_OPTIONAL)),
        only_missed=tuple(search.path for search in searches if search.missed),
        growing=("/", "apps", "apps/*", "packages", "packages/*", "vendor", "vendor/*", "bench"),
        releases=tuple(
            release + inside
            for release in ("apps/*/*", "packages/*/*", "vendor/*/*", "bench/*")
            for inside in ("", "/**")
        ),
        entries=sum(count(search.contents) for search in searches),
        missing=sum(load.missing for load in loads),
        found=sum(load.found for load in loads),
        workload="bench/workload/lib",
    )


def _search_directories(scale: Scale) -> tuple[list[_Search], list[_Search], list[_Search]]:
    """Library, Python and plugin directories, still empty.

    A third of all is only ever missed in. None of these is a Python directory: Python lists each of its directories.
    """
    packages = [(f"packages/p{number:03}/{_version(number)}", f"p{number:03}") for number in range(scale.packages)]
    vendored = [(f"vendor/v{number:02}/{_version(number)}", f"v{number:02}") for number in range(scale.vendored)]
    pythons = [_Search(f"{release}/python", tag, more_modules) for release, tag in packages]
    pythons += [_Search(f"{release}/site-packages", tag, more_modules) for release, tag in vendored]
    with_plugins = [packages[number] for number in _spread(scale.plugin_packages, scale.packages)]
    libraries = [_Search(f"{release}/lib", tag, more_libraries) for release, tag in packages + vendored]
    plugins = [_Search(f"{release}/plugins", tag, more_plugins) for release, tag in with_plugins]
    only_missed = (len(libraries) + len(pythons) + len(plugins)) / 3 / (len(libraries) + len(plugins))
    for path in (libraries, plugins):
        for number in _spread(int(only_missed * len(path)), len(path)):
            path[number] = replace(path[number], missed=True)
    return libraries, pythons, plugins


def _version(number: int) -> str:
    return f"{number % 3 + 1}.{number % 5}"


def _spread(some: int, among: int) -> list[int]:
    """So many of the numbers below ``among``, at even distances: the first always, and never the last unless all."""
    return [
        number for number in range(among) if (among - number) * some // among > (among - number - 1) * some // among
    ]


def _homes(searches: Sequence[_Search], amount: int) -> Iterator[tuple[int, _Search]]:
    """Where each of so many names is found: the place on the search path, and the directory."""
    return islice(cycle([(place, search) for place, search in enumerate(searches) if not search.missed]), amount)


def _place_libraries(searches: Sequence[_Search], amount: int) -> _Load:
    load = _Load()
    for number, (place, search) in enumerate(_homes(searches, amount)):
        name = f"lib{search.tag}_{number:03}"
        search.contents.update(library(name, number))
        by_link = number % 3 == 0
        load.names.append(f"{name}.so" if by_link else f"{name}.so.1")
        load.missing += place
        load.found += 3 if by_link else 2
    return load


def _place_modules(searches: Sequence[_Search]) -> _Load:
    load = _Load()
    for number, search in enumerate(searches):
        parts = ("core",) if number % 2 else ()
        search.contents.update(module(f"mod_{search.tag}", f"mod_{search.tag}") | package(f"pkg_{search.tag}", *parts))
        load.names += [f"mod_{search.tag}", f"pkg_{search.tag}", *(f"pkg_{search.tag}.{part}" for part in parts)]
        load.found += count(search.contents)
    return load


def _place_plugins(searches: Sequence[_Search], amount: int) -> _Load:
    load = _Load()
    for number, (place, search) in enumerate(_homes(searches, amount)):
        which = number % len(SUFFIXES)
        load.names.append(f"plugin_{number:03}")
        search.contents.update(plugin(load.names[-1], SUFFIXES[which]))
        load.missing += place * len(SUFFIXES) + which
        load.found += 1
    return load


def _fill_up(searches: Sequence[_Search], entries: int) -> None:
    """Give the search directories so many entries in all, by adding what the launch does not ask for."""
    spare = entries - sum(count(search.contents) for search in searches)
    weights = list(islice(cycle(_WEIGHTS), len(searches)))
    bounds = [spare * weight // sum(weights) for weight in accumulate(weights, initial=0)]
    for search, (begin, end) in zip(searches, pairwise(bounds), strict=True):
        fill(search.contents, count(search.contents) + end - begin, search.more(search.tag))


def _absent(path: str, number: int) -> str:
    """The same place in a version that there is not, or in a package that there is not."""
    top, name, version, kind = path.split("/")
    return f"{top}/absent-{name}/{version}/{kind}" if number % 4 == 3 else f"{top}/{name}/9.9/{kind}"


def _packages_beside(scale: Scale) -> Contents:
    """Smaller versions, which nobody uses, of what the launch uses."""
    contents: Contents = {}
    for number in range(scale.packages):
        for old in range(number % 3):
            release = f"packages/p{number:03}/0.{old}"
            contents |= _below(f"{release}/lib", library(f"libp{number:03}_old", old))
            contents |= _below(f"{release}/python", module("old", "old"))
    for number in range(scale.vendored):
        contents |= _below(f"vendor/v{number:02}/0.9/site-packages", package("old", "part"))
    return contents


def _apps() -> Contents:
    """Releases of 24 to 30 entries a directory for tests to work on, and some more names."""
    contents: Contents = {}
    for directory, libraries in (("tool/1.0", 8), ("other/1.0", 9), ("other/1.1", 10), ("private/1.0", 8)):
        for number in range(libraries):
            contents |= _below(f"apps/{directory}/lib", library(f"lib{directory.partition('/')[0]}_{number}", number))
    contents |= {f"apps/tool/1.0/bin/run{number:02}": text("#!/bin/true") for number in range(24)}
    for number in range(12):
        contents |= _below("apps/tool/1.0/python", module(f"tool_{number:02}", f"tool_{number:02}"))
    contents |= {f"{_PRIVATE}/key{number}": text(f"key {number}") for number in range(8)}
    contents |= {
        f"apps/a{number:02}/{version}/bin/start": text("#!/bin/true")
        for number in range(12)
        for version in ("1.0", "1.1")
    }
    return contents


def _workload(place: str) -> Contents:
    contents: Contents = {f"{place}/f{number:04}": text(f"f{number:04}", 4096) for number in range(500)}
    contents |= {f"{place}/s{which}/g{number}": text(f"g{number}") for which in range(5) for number in range(4)}
    return contents | {f"{place}/first": Symlink("f0000"), f"{place}/last": Symlink("f0499")}


def _below(place: str, contents: Contents) -> Contents:
    return {f"{place}/{path}": content for path, content in contents.items()}
