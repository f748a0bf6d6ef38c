"""Records what a heat source hears of sweeps and of launches: ``python tests/heat/record_traces.py``, as root.

On a real overlay, heard by inotify, with the releases of the demonstration and a tree of Python packages. Writes
``traces/directories.txt`` and a file for each command, one line for what one reading of the source told of a directory:
milliseconds since the beginning, kind, weight, and the line of the directory in that file.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(TESTS))

from promoterd.demo import application, tree  # noqa: E402 - tests are no package
from promoterd.heat.base import MountView  # noqa: E402
from promoterd.heat.discovery import Walk  # noqa: E402
from promoterd.heat.inotify import InotifySource  # noqa: E402
from support.overlays import MountedOverlay, make_overlay  # noqa: E402

TRACES = Path(__file__).with_name("traces")
DRAIN_EVERY = 0.01
PACKAGES = "python/site-packages"
IMPORTED = "import pip._internal.commands.install, pydantic, rich.console"
GROWING = (b"apps",)

WALK = 'import os\nfor place, _, names in os.walk("."):\n for name in names: os.lstat(place + "/" + name)'
SWEEPS = {
    "find": "find .",
    "find-ls": "find . -ls",
    "find-twice": "find . && find .",
    "find-parallel": "find . -mindepth 2 -maxdepth 2 -type d -print0 | xargs -0 -n1 -P4 -I{} find {} -ls",
    "find-of-one-tree": f"find {PACKAGES} -ls",
    "find-slow": "find . -type d -exec sleep 0.01 \\;",
    "tar": "tar cf - . | cat",
    "tar-twice": "tar cf - . | cat && tar cf - . | cat",
    "grep": "grep -r nosuchword .",
    "du": "du -s .",
    "ls": "ls -lR .",
    "cp": "cp -a . $OUTSIDE/copy",
    "walk": f"{sys.executable} -c '{WALK}'",
    "compileall": f"PYTHONPYCACHEPREFIX=$OUTSIDE/cache {sys.executable} -m compileall -q -f .",
}
PYTHON = f"PYTHONDONTWRITEBYTECODE=1 PYTHONPATH={PACKAGES} {sys.executable} -S -c '{IMPORTED}'"


def allowed(path: bytes) -> bool:
    """As in the README's policy: releases appear in ``apps`` and below; everything else may be promoted."""
    return path not in GROWING and not (path.startswith(b"apps/") and path.count(b"/") == 1)


class Recorder:
    """A sink that keeps what each reading of the source tells, in its order."""

    def __init__(self) -> None:
        self.told: list[tuple[int, str, int, bytes]] = []
        self.begun = time.monotonic()

    def touched(self, path: bytes, weight: float, kind: str) -> None:
        at = round((time.monotonic() - self.begun) * 1000)
        self.told.append((at, str(kind), round(weight), path))

    def overflowed(self) -> None:
        raise RuntimeError("events were lost: fs.inotify.max_queued_events is too low for this trace")

    def appeared(self, path: bytes) -> None:
        raise RuntimeError(f"{path!r} appeared: a trace is of readers alone")

    def vanished(self, path: bytes) -> None:
        raise RuntimeError(f"{path!r} vanished: a trace is of readers alone")


@contextmanager
def shared() -> Iterator[tuple[MountedOverlay, tree.Share]]:
    with tempfile.TemporaryDirectory() as base:
        overlay = make_overlay(os.fsencode(base), {}, mount=False)
        share = tree.build(overlay.on_server(""))
        site = next(Path(place) for place in sys.path if (Path(place) / "pydantic").is_dir())
        for package in ("pip", "pydantic", "pydantic_core", "rich", "annotated_types", "typing_inspection"):
            shutil.copytree(site / package, os.fsdecode(overlay.on_server(PACKAGES)) + "/" + package)
        for module in ("typing_extensions.py",):
            shutil.copy2(site / module, os.fsdecode(overlay.on_server(PACKAGES)))
        overlay.mount()
        try:
            yield overlay, share
        finally:
            overlay.close()


def record(overlay: MountedOverlay, heard: list[bytes], work: Callable[[], None]) -> list[tuple[int, str, int, bytes]]:
    device = os.stat(overlay.mountpoint).st_dev
    view = MountView(overlay.mountpoint, (os.major(device), os.minor(device)), allowed, lambda _path: True)
    sink = Recorder()
    source = InotifySource(view, sink)
    source.start()
    try:
        source.arm(heard)
        source.drain()
        sink.told.clear()
        sink.begun = time.monotonic()
        thread = threading.Thread(target=work)
        thread.start()
        while thread.is_alive():
            source.drain()
            time.sleep(DRAIN_EVERY)
        thread.join()
        source.drain()
    finally:
        source.close()
    return sink.told


def main() -> None:
    TRACES.mkdir(exist_ok=True)
    with shared() as (overlay, share), tempfile.TemporaryDirectory() as outside:
        walk = Walk((overlay.upper, *overlay.layers), allowed, lambda _path: True, max_directories=10_000)
        heard = sorted(path for batch in walk.batches(b"") for path in batch)
        (TRACES / "directories.txt").write_bytes(b"".join(path + b"\n" for path in heard))
        number = {path: at for at, path in enumerate(heard)}
        spec = application.Spec.of(share, overlay.mountpoint)

        def shell(command: str, times: int = 1, pause: float = 0.0) -> Callable[[], None]:
            def work() -> None:
                for turn in range(times):
                    if turn:
                        time.sleep(pause)
                    subprocess.run(
                        ["sh", "-c", command],
                        cwd=overlay.mountpoint,
                        env={**os.environ, "OUTSIDE": outside},
                        stdout=subprocess.DEVNULL,
                        stderr=subprocess.DEVNULL,
                        check=command == PYTHON,
                    )

            return work

        def launches(times: int, pause: float) -> None:
            for turn in range(times):
                if turn:
                    time.sleep(pause)
                application.launch(spec)

        def beside_find() -> None:
            finding = threading.Thread(target=shell(SWEEPS["find-slow"].replace("0.01", "0.05")))
            finding.start()
            launches(3, 4.0)
            finding.join()

        works = {name: shell(command) for name, command in SWEEPS.items()}
        works |= {
            "launch": lambda: launches(1, 0.0),
            "launches": lambda: launches(3, 8.0),
            "launches-beside-find": beside_find,
            "imports": shell(PYTHON, 3, 8.0),
        }
        for name, work in works.items():
            told = record(overlay, heard, work)
            lines = (f"{at} {kind} {weight} {number[path]}\n" for at, kind, weight, path in told)
            (TRACES / f"{name}.txt").write_text("".join(lines))
            sys.stdout.write(
                f"{name}: {len(told)} lines, {len({path for *_, path in told})} of {len(heard)} directories\n"
            )


if __name__ == "__main__":
    main()
