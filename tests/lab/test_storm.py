import glob
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from lab.guest.launch import LaunchFailed, LaunchResult, launch
from lab.manifest import Manifest
from lab.share import SHORT, build

pytestmark = pytest.mark.needs("cc")

_TESTS = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_LAUNCH = "import sys; from lab.guest.launch import launch; launch(sys.argv[1], sys.argv[2])"
_CALL = re.compile(r'(\w+)\((?:AT_FDCWD, )?"([^"]+)"(.*)\) += (-?\d+)(?: (\w+))?')
"""A line of strace's: the call, its path, its other arguments, its result, and the error."""


@dataclass(frozen=True)
class Share:
    root: str
    manifest_path: str
    manifest: Manifest


@dataclass
class Trace:
    """What a launch asked the file system for, by path relative to the share."""

    found: set[str] = field(default_factory=set)
    missing: set[str] = field(default_factory=set)
    listed: set[str] = field(default_factory=set)
    opened: set[str] = field(default_factory=set)
    flags: set[str] = field(default_factory=set)


def make_share(place: Path) -> Share:
    manifest = build(str(place / "share"), SHORT)
    manifest.dump(str(place / "manifest.json"))
    return Share(str(place / "share"), str(place / "manifest.json"), manifest)


@pytest.fixture(scope="module")
def share(tmp_path_factory: pytest.TempPathFactory) -> Share:
    return make_share(tmp_path_factory.mktemp("short"))


@pytest.fixture(scope="module")
def trace(share: Share, tmp_path_factory: pytest.TempPathFactory) -> Trace:
    return traced(share, str(tmp_path_factory.mktemp("trace") / "calls"))


def traced(share: Share, output: str) -> Trace:
    """Launch under strace, which writes one file for each process."""
    subprocess.run(
        [
            "strace",
            "-ff",
            "-e",
            "trace=file",
            "-o",
            output,
            sys.executable,
            "-c",
            _LAUNCH,
            share.root,
            share.manifest_path,
        ],
        env={**os.environ, "PYTHONPATH": _TESTS},
        check=True,
    )
    trace = Trace()
    for path in glob.glob(f"{output}.*"):
        with open(path, encoding="ascii") as lines:
            for line in lines:
                call = _CALL.match(line)
                if call and call[2].startswith(f"{share.root}/"):
                    add(trace, share.root, call)
    return trace


def add(trace: Trace, root: str, call: re.Match[str]) -> None:
    name, path, arguments, result, error = call.groups()
    assert error in {None, "ENOENT"}, call[0]
    for place, exists in lookups(root, os.path.relpath(path, root)):
        (trace.found if exists else trace.missing).add(place)
    if name == "openat" and int(result) >= 0:
        opened = trace.listed if "O_DIRECTORY" in arguments else trace.opened
        opened.add(os.path.relpath(path, root))
        trace.flags |= set(re.findall(r"O_\w+", arguments))


def lookups(root: str, path: str) -> Iterator[tuple[str, bool]]:
    """The names that the kernel looks up to follow a path, through symlinks, and whether they are there."""
    place, names = "", path.split("/")
    while names:
        here = os.path.join(place, names.pop(0))
        exists = os.path.lexists(f"{root}/{here}")
        yield here, exists
        if not exists:
            return
        if os.path.islink(f"{root}/{here}"):
            names = [*os.readlink(f"{root}/{here}").split("/"), *names]
        else:
            place = here


def inside(directories: tuple[str, ...], paths: set[str]) -> set[str]:
    """Those of the paths that are below one of the directories."""
    return {path for path in paths if path.startswith(tuple(f"{directory}/" for directory in directories))}


def test_each_phase_finds_everything(share: Share) -> None:
    result = launch(share.root, share.manifest_path, ("libraries", "modules", "plugins", "absent"))
    found = {phase.phase: phase.found for phase in result.phases}
    manifest = share.manifest
    assert found == {
        "libraries": len(manifest.libraries),
        "modules": len(manifest.modules),
        "plugins": len(manifest.plugins),
        "absent": 0,
    }
    missed = [phase.missed for phase in result.phases]
    assert missed[:2] == [None, None]
    assert missed[3] == 33 * 3 * len(manifest.optional)
    assert all(phase.seconds > 0 for phase in result.phases)
    assert result.seconds == sum(phase.seconds for phase in result.phases)


def test_a_launch_is_libraries_modules_and_plugins(share: Share) -> None:
    result: LaunchResult = launch(share.root, share.manifest_path)
    assert [phase.phase for phase in result.phases] == ["libraries", "modules", "plugins"]


@pytest.mark.needs("strace")
def test_a_launch_asks_for_what_the_manifest_promises(share: Share, trace: Trace) -> None:
    manifest = share.manifest
    missing, found = (inside(manifest.search_path, paths) for paths in (trace.missing, trace.found))
    assert len(missing) >= manifest.missing
    assert len(found) >= manifest.found
    # The promise is not far from the truth either.
    assert len(missing) < manifest.missing * 1.3
    assert len(found) < manifest.found * 1.1


@pytest.mark.needs("strace")
def test_in_only_missed_directories_nothing_is_found_listed_or_opened(share: Share, trace: Trace) -> None:
    only_missed = share.manifest.only_missed
    for directory in only_missed:
        assert inside((directory,), trace.missing)
    assert not inside(only_missed, trace.found)
    assert not (trace.listed | trace.opened) & set(only_missed)


@pytest.mark.needs("strace")
def test_in_all_other_search_directories_something_is_opened(share: Share, trace: Trace) -> None:
    for directory in set(share.manifest.search_path) - set(share.manifest.only_missed):
        assert inside((directory,), trace.opened)


@pytest.mark.needs("strace")
def test_every_python_directory_is_listed_and_no_source_is_read(share: Share, trace: Trace) -> None:
    assert trace.listed >= set(share.manifest.python_path)
    opened = inside(share.manifest.python_path, trace.opened)
    assert {os.path.splitext(path)[1] for path in opened} == {".pyc"}
    assert len(opened) == len(share.manifest.modules)


@pytest.mark.needs("strace")
def test_a_launch_writes_nothing(trace: Trace) -> None:
    assert "O_RDONLY" in trace.flags
    assert not trace.flags & {"O_WRONLY", "O_RDWR", "O_CREAT", "O_TRUNC"}


def test_the_caller_s_search_paths_are_not_those_of_the_launch(
    share: Share, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit('wrong module')")
    (tmp_path / "libc.so.6").write_text("no library")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    launch(share.root, share.manifest_path)


def replace_library(share: Share) -> str:
    name = share.manifest.libraries[3]
    real, other = (os.path.realpath(find(share, which)) for which in (name, share.manifest.libraries[4]))
    Path(real).write_bytes(Path(other).read_bytes())
    return f"{name} is {os.path.basename(other).partition('.so')[0]}"


def remove_library(share: Share) -> str:
    os.unlink(os.path.realpath(find(share, share.manifest.libraries[7])))
    return share.manifest.libraries[7]


def replace_module(share: Share) -> str:
    name = share.manifest.modules[0]
    Path(find(share, f"{name}.py")).write_text("NAME = 'other'\n")
    os.unlink(find(share, f"__pycache__/{name}.{sys.implementation.cache_tag}.pyc"))
    return f"{name} is other"


def remove_module(share: Share) -> str:
    os.unlink(find(share, f"{share.manifest.modules[0]}.py"))
    return f"No module named '{share.manifest.modules[0]}'"


def replace_plugin(share: Share) -> str:
    name = share.manifest.plugins[0]
    Path(find(share, f"{name}.so")).write_text("other\n")
    return f"{name}.so is other"


def remove_plugin(share: Share) -> str:
    name = share.manifest.plugins[0]
    os.unlink(find(share, f"{name}.so"))
    return f"no plugin {name}"


def make_absent(share: Share) -> str:
    directory = f"{share.root}/{share.manifest.absent_path[-1]}"
    os.makedirs(directory)
    Path(directory, f"{share.manifest.optional[0]}.json").touch()
    return "should not exist"


def find(share: Share, name: str) -> str:
    """The one place on the search paths that has the name."""
    paths = [f"{share.root}/{path}/{name}" for path in share.manifest.search_path]
    (found,) = (path for path in paths if os.path.lexists(path))
    return found


@pytest.mark.parametrize(
    ("phase", "damage"),
    [
        ("libraries", replace_library),
        ("libraries", remove_library),
        ("modules", replace_module),
        ("modules", remove_module),
        ("plugins", replace_plugin),
        ("plugins", remove_plugin),
        ("absent", make_absent),
    ],
)
def test_a_phase_fails_if_the_share_is_not_what_it_should_be(
    tmp_path: Path, phase: str, damage: Callable[[Share], str]
) -> None:
    share = make_share(tmp_path)
    launch(share.root, share.manifest_path, [phase])
    message = damage(share)
    with pytest.raises(LaunchFailed, match=re.escape(message)):
        launch(share.root, share.manifest_path, [phase])


def test_a_phase_that_does_not_end_fails(share: Share) -> None:
    with pytest.raises(LaunchFailed, match=r"libraries: not done within 0\.001 s"):
        launch(share.root, share.manifest_path, timeout=0.001)


def test_the_application_imports_little() -> None:
    code = "import lab.guest.storm, sys; print(*sys.modules)"
    # -S: what site brings in is the environment's own.
    ran = subprocess.run(
        [sys.executable, "-S", "-c", code],
        env={"PYTHONPATH": _TESTS, "PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=True,
    )
    assert not {"dataclasses", "inspect", "typing", "ctypes", "subprocess"} & set(ran.stdout.split())
