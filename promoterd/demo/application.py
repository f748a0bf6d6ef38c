"""An application that starts: it searches its paths as ld.so, Python's importers and plugin hosts do.

``python -m promoterd.demo.application SPEC.json`` does one launch and prints its own counts as JSON. Nearly all that it
asks for is not there, and every directory that it searches is also listed, or has a file opened in it: misses alone
raise no inotify event.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Self

from promoterd.demo.tree import Share
from promoterd.errors import DemoFailed

_THREADS = 8
_ELF_HEADER = 832
"""What ld.so reads of a library before it maps it (glibc, elf/dl-load.c: struct filebuf)."""
_SUFFIXES = ("", ".cpython-311-x86_64-linux-gnu.so", ".abi3.so", ".so", ".py")
"""What an importer without a listing tries for each module, in this order; "" is the package directory."""


@dataclass(frozen=True)
class Spec:
    """What to search where. Names are strings with surrogate escapes, so that JSON can hold any of them."""

    root: str
    library_path: list[str]
    python_path: list[str]
    plugin_path: list[str]
    libraries: list[str]
    optional_libraries: list[str]
    modules: list[str]
    optional_modules: list[str]
    configs: list[str]
    threads: int = _THREADS

    @classmethod
    def of(cls, share: Share, root: bytes) -> Self:
        """The launch that searches all of a share, as it is seen below ``root``."""

        def names(values: tuple[bytes, ...]) -> list[str]:
            return [os.fsdecode(value) for value in values]

        return cls(
            os.fsdecode(root),
            library_path=names(share.library_path),
            python_path=names(share.python_path),
            plugin_path=names(share.plugin_path),
            libraries=names(share.libraries),
            optional_libraries=names(share.absent_libraries),
            modules=names(share.modules),
            optional_modules=names(share.absent_modules),
            configs=names(share.configs),
        )


@dataclass
class Report:
    """What a launch met: names found, names that were not where it looked, listings, and what should not happen."""

    found: int = 0
    missed: int = 0
    listed: int = 0
    seconds: float = 0.0
    errors: list[str] = field(default_factory=list)

    def add(self, other: "Report") -> None:
        """Count another part of the launch in."""
        self.found += other.found
        self.missed += other.missed
        self.listed += other.listed
        self.errors += other.errors


def launch(spec: Spec, timeout: float = 120.0) -> Report:
    """Launch the application in a process of its own. Raises DemoFailed if it does not end well."""
    try:
        ran = subprocess.run(
            [sys.executable, "-m", "promoterd.demo.application", "/dev/stdin"],
            input=json.dumps(asdict(spec)).encode("ascii"),
            capture_output=True,
            check=True,
            timeout=timeout,
        )
        return Report(**json.loads(ran.stdout))
    except subprocess.TimeoutExpired:
        raise DemoFailed(f"the application did not start within {timeout:.0f} s") from None
    except subprocess.CalledProcessError as error:
        raise DemoFailed(f"the application failed: {error.stderr.decode(errors='replace').strip()}") from None


def run(spec: Spec) -> Report:
    """One launch in this process: independent parts side by side, each in the order that it has to keep."""
    parts: list[Callable[[], Report]] = [
        partial(_import_by_listing, spec),
        *(partial(_load_library, spec, name, required=True) for name in spec.libraries),
        *(partial(_load_library, spec, name, required=False) for name in spec.optional_libraries),
        *(partial(_import_by_name, spec, name, required=True) for name in spec.modules),
        *(partial(_import_by_name, spec, name, required=False) for name in spec.optional_modules),
        *(partial(_load_plugins, spec, directory) for directory in spec.plugin_path),
    ]
    report = Report()
    begin = time.perf_counter()
    with ThreadPoolExecutor(spec.threads) as pool:
        for part in pool.map(_guarded, parts):
            report.add(part)
    report.seconds = time.perf_counter() - begin
    return report


def _guarded(part: Callable[[], Report]) -> Report:
    try:
        return part()
    except OSError as error:
        return Report(errors=[str(error)])


def _load_library(spec: Spec, name: str, *, required: bool) -> Report:
    """ld.so: open in each directory until one has it; then its header and its size."""
    report = Report()
    for directory in spec.library_path:
        try:
            descriptor = os.open(f"{spec.root}/{directory}/{name}", os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            report.missed += 1
            continue
        try:
            report.found += 1
            header, size = os.read(descriptor, _ELF_HEADER), os.fstat(descriptor).st_size
        finally:
            os.close(descriptor)
        if len(header) != min(_ELF_HEADER, size) or not header.startswith(b"\x7fELF"):
            report.errors.append(f"{directory}/{name} is no library")
        return report
    if required:
        report.errors.append(f"{name}: cannot open shared object file")
    return report


def _import_by_listing(spec: Spec) -> Report:
    """Importlib's FileFinder: stat each directory for each name, list it once, and stat only what the listing has."""
    report = Report()
    listings: dict[str, set[str]] = {}
    # One name that nobody has, so that the whole path is listed, and some that the path has.
    for name in [spec.optional_modules[0], *spec.modules[::3]]:
        found = False
        for directory in spec.python_path:
            place = f"{spec.root}/{directory}"
            os.stat(place)
            report.found += 1
            if directory not in listings:
                listings[directory] = set(os.listdir(place))
                report.listed += 1
            if name + ".py" in listings[directory]:
                os.stat(f"{place}/{name}.py")
                with open(f"{place}/{name}.py", "rb") as file:
                    file.read()
                report.found += 1
                found = True
                break
        if not found and name in spec.modules:
            report.errors.append(f"No module named {name}")
    return report


def _import_by_name(spec: Spec, name: str, *, required: bool) -> Report:
    """An importer without a listing: each suffix in each directory, by name."""
    report = Report()
    for directory in spec.python_path:
        for suffix in _SUFFIXES:
            try:
                os.stat(f"{spec.root}/{directory}/{name}{suffix}")
            except FileNotFoundError:
                report.missed += 1
            else:
                report.found += 1
                return report
    if required:
        report.errors.append(f"No module named {name}")
    return report


def _load_plugins(spec: Spec, directory: str) -> Report:
    """A plugin host: list the directory, stat each candidate, and ask for each configuration that could be there."""
    report = Report(listed=1)
    place = f"{spec.root}/{directory}"
    for name in os.listdir(place):
        if name.endswith(".plugin"):
            os.stat(f"{place}/{name}")
            report.found += 1
    for name in spec.configs:
        if os.access(f"{place}/{name}", os.R_OK):
            report.found += 1
        else:
            report.missed += 1
    return report


def main() -> int:
    """Launch as the file says; what went wrong stands in the report."""
    with open(sys.argv[1], encoding="ascii") as file:
        spec = Spec(**json.load(file))
    report = run(spec)
    json.dump(asdict(report), sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
