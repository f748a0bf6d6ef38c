"""Users are at work while directories are promoted: nobody meets an error, a wrong content or a wrong name (I1, I2)."""

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from promoterd.backends.base import Busy, MarkState
from promoterd.backends.opaque import OpaqueBackend
from promoterd.errors import Refused
from promoterd.overlay import copyup
from support import mutator
from support.overlays import MountedOverlay
from support.promotions import Bench, assert_marks_are_sound, assert_same_view, scratch_leftovers
from support.soundness import OPAQUE, xattr
from support.trees import Symlink, Tree, files

MakeOverlay = Callable[..., MountedOverlay]
LIB = b"opt/lib"


class TestStress:
    DIRECTORIES = tuple(f"d{number:02}" for number in range(30))
    USERS = 3

    def tree(self) -> Tree:
        return {directory: self.directory(directory) for directory in self.DIRECTORIES}

    def directory(self, directory: str) -> Tree:
        found: dict[str | bytes, Any] = {}
        for who in range(self.USERS):
            for name in mutator.lower_files(who):
                found[name] = mutator.content_of(directory, name)
            for name in mutator.lower_directories(who):
                inside = (f"g{number}" for number in range(mutator.INSIDE))
                found[name] = {child: mutator.content_of(directory, f"{name}/{child}") for child in inside}
        return found

    @contextmanager
    def users(self, bench: Bench, tmp_path: Path, seed: int, think: float) -> Iterator[list[dict[str, Any]]]:
        """They work inside the block; what they say of it is in the list afterwards."""
        running: list[subprocess.Popen[bytes]] = []
        said: list[dict[str, Any]] = []
        for who in range(self.USERS):
            spec = tmp_path / f"user{who}.json"
            root = os.fsdecode(bench.mounted.mountpoint)
            spec.write_text(
                json.dumps({"root": root, "directories": self.DIRECTORIES, "who": who, "seed": seed, "think": think})
            )
            running.append(subprocess.Popen([sys.executable, mutator.__file__, spec], stdin=-1, stdout=-1))
        try:
            yield said
        finally:
            said.extend(json.loads(user.communicate()[0]) for user in running)

    @pytest.mark.parametrize(
        ("seed", "think", "counting", "seconds"), [(1, 0.02, False, 2.5), (2, 0.002, False, 2.5), (3, 0.03, True, 2.5)]
    )
    def test_promotions_without_rest(
        self, make_overlay: MakeOverlay, tmp_path: Path, seed: int, think: float, seconds: float, *, counting: bool
    ) -> None:
        bench = Bench(make_overlay(self.tree(), counting=counting, timeouts=1.0), batch=20)
        outcomes: dict[str, int] = {}
        marked: set[bytes] = set()
        with self.users(bench, tmp_path, seed, think) as said:
            deadline = time.monotonic() + seconds
            while time.monotonic() < deadline:
                for path in map(os.fsencode, self.DIRECTORIES):
                    outcome = self.attempt(bench, path, marked)
                    outcomes[outcome] = outcomes.get(outcome, 0) + 1
                bench.activate()
            time.sleep(0.3)
            bench.activate()
        assert [surprise for user in said for surprise in user["surprises"]] == []
        assert sum(sum(user["operations"].values()) for user in said) > 100
        assert outcomes.keys() <= {"marked", "busy", "refused", "complete"}, outcomes
        assert len([path for path in marked if b"/" not in path]) >= 2, outcomes
        assert scratch_leftovers(bench.mounted) == []
        before = bench.view()
        assert [path for path, entry in before.items() if entry.error] == []
        bench.remount()
        assert_same_view(before, bench.view())

    def attempt(self, bench: Bench, path: bytes, marked: set[bytes]) -> str:
        try:
            done = bench.mark(path)
        except Busy:
            return "busy"
        except Refused as refusal:
            assert "was renamed in the upper layer" in refusal.message  # noqa: PT017 - one that is expected
            return "refused"
        marked.update(done)
        return "marked" if done else "complete"


def write(path: bytes, content: bytes = b"new") -> None:
    with open(path, "wb") as file:
        file.write(content)


def exchange(bench: Bench) -> None:
    """Another directory takes the place, with names that nobody has verified."""
    os.rename(bench.mounted.at("opt/lib"), bench.mounted.at("opt/was"))
    os.rename(bench.mounted.at("opt/else"), bench.mounted.at("opt/lib"))


def replace_directory(bench: Bench) -> None:
    shutil.rmtree(bench.mounted.at("opt/lib/sub"))
    os.mkdir(bench.mounted.at("opt/lib/sub"))


WINDOW: dict[str, Callable[[Bench], None]] = {
    "create": lambda bench: write(bench.mounted.at("opt/lib/new")),
    "unlink": lambda bench: os.unlink(bench.mounted.at("opt/lib/f0001")),
    "write": lambda bench: write(bench.mounted.at("opt/lib/f0001")),
    "chmod": lambda bench: os.chmod(bench.mounted.at("opt/lib/f0001"), 0o600),
    "rename": lambda bench: os.rename(bench.mounted.at("opt/lib/f0001"), bench.mounted.at("opt/lib/renamed")),
    "rename over": lambda bench: os.rename(bench.mounted.at("opt/lib/f0001"), bench.mounted.at("opt/lib/f0002")),
    "rename directory": lambda bench: os.rename(bench.mounted.at("opt/lib/sub"), bench.mounted.at("opt/lib/sub2")),
    "move directory out": lambda bench: os.rename(bench.mounted.at("opt/lib/sub"), bench.mounted.at("opt/out")),
    "move directory in": lambda bench: os.rename(bench.mounted.at("opt/else"), bench.mounted.at("opt/lib/in")),
    "move file in": lambda bench: os.rename(bench.mounted.at("opt/else/f0000"), bench.mounted.at("opt/lib/in")),
    "move untouched file over": lambda bench: os.rename(
        bench.mounted.at("opt/else/f0000"), bench.mounted.at("opt/lib/f0002")
    ),
    "move out": lambda bench: os.rename(bench.mounted.at("opt/lib/f0001"), bench.mounted.at("opt/out")),
    "link": lambda bench: os.link(bench.mounted.at("opt/lib/f0001"), bench.mounted.at("opt/lib/linked")),
    "link in": lambda bench: os.link(bench.mounted.at("opt/else/f0000"), bench.mounted.at("opt/lib/linked")),
    "remove directory": lambda bench: shutil.rmtree(bench.mounted.at("opt/lib/sub")),
    "replace directory": replace_directory,
    "make directory": lambda bench: os.makedirs(bench.mounted.at("opt/lib/new/deep")),
    "rename it": lambda bench: os.rename(bench.mounted.at("opt/lib"), bench.mounted.at("opt/was")),
    "rename above": lambda bench: os.rename(bench.mounted.at("opt"), bench.mounted.at("was")),
    "remove it": lambda bench: shutil.rmtree(bench.mounted.at("opt/lib")),
    "exchange it": exchange,
}


class TestWindow:
    """Changes between two steps that no other step sees."""

    @pytest.fixture
    def bench(self, make_overlay: MakeOverlay) -> Bench:
        library: Tree = {**files(5), "link": Symlink("f0001"), "sub": {**files(2), "deep": files(2)}}
        return Bench(make_overlay({"opt": {"lib": library, "else": {**files(3), "inner": files(1)}}}))

    def judge(self, bench: Bench) -> None:
        """What users see now they see later too, all of it readable; and what is marked is complete."""
        before = bench.view()
        assert [path for path, entry in before.items() if entry.error] == []
        for step in (bench.activate, bench.mounted.remount):
            step()
            assert_same_view(before, bench.view())
            assert_marks_are_sound(bench.mounted)

    @pytest.mark.parametrize("change", WINDOW)
    def test_between_the_clean_pass_and_the_marks(
        self, bench: Bench, monkeypatch: pytest.MonkeyPatch, change: str
    ) -> None:
        mark = OpaqueBackend._mark

        def late(self: OpaqueBackend, *arguments: Any) -> None:
            WINDOW[change](bench)
            mark(self, *arguments)

        with monkeypatch.context() as patch:
            patch.setattr(OpaqueBackend, "_mark", late)
            try:
                bench.mark(LIB)
            except Busy:
                assert change in ("rename it", "rename above", "remove it", "exchange it") or "directory" in change
        self.judge(bench)

    @pytest.mark.parametrize("change", WINDOW)
    def test_between_two_marks(self, bench: Bench, monkeypatch: pytest.MonkeyPatch, change: str) -> None:
        """The children carry theirs already."""
        from promoterd.overlay import xattrs  # noqa: PLC0415 - what is spied on

        put, changed = xattrs.put, 0

        def late(path: bytes, attribute: str, value: bytes) -> None:
            nonlocal changed
            put(path, attribute, value)
            if attribute == xattrs.OPAQUE:
                changed += 1
                if changed == 2:
                    WINDOW[change](bench)

        with monkeypatch.context() as patch:
            patch.setattr(xattrs, "put", late)
            try:
                bench.mark(LIB)
            except Busy:
                assert change in ("rename it", "rename above", "remove it", "exchange it")
        assert changed >= 2
        self.judge(bench)

    @pytest.mark.parametrize("change", WINDOW)
    def test_between_shadowing_and_the_first_pass(self, bench: Bench, change: str) -> None:
        plan = bench.plan(LIB)
        bench.shadow(plan)
        WINDOW[change](bench)
        try:
            bench.backend.complete(plan)
        except Busy:
            assert "it" in change or "above" in change or "directory" in change
        self.judge(bench)

    @pytest.mark.parametrize("change", WINDOW)
    def test_between_two_copy_ups(self, bench: Bench, monkeypatch: pytest.MonkeyPatch, change: str) -> None:
        copy, copied = copyup.copy_up, 0

        def late(*arguments: Any) -> bool:
            nonlocal copied
            copied += 1
            if copied == 7:
                WINDOW[change](bench)
            return copy(*arguments)

        plan = bench.plan(LIB)
        with monkeypatch.context() as patch:
            patch.setattr(copyup, "copy_up", late)
            try:
                bench.shadow(plan)
                bench.backend.complete(plan)
            except Busy:
                assert "it" in change or "above" in change or "directory" in change
        assert copied >= 7
        self.judge(bench)

    def test_a_change_after_the_clean_pass_is_seen_by_the_gate(
        self, bench: Bench, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Verified again, and only then marked."""
        verify, passes = OpaqueBackend._verify, 0

        def late(self: OpaqueBackend, *arguments: Any) -> bool:
            nonlocal passes
            passes += 1
            clean = verify(self, *arguments)
            if passes == 1:
                assert clean
                write(bench.mounted.at("opt/lib/new"))
            return clean

        plan = bench.plan(LIB)
        bench.shadow(plan)
        monkeypatch.setattr(OpaqueBackend, "_verify", late)
        bench.backend.complete(plan)
        assert passes == 2

    def test_what_changes_all_the_time_is_busy(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        verify = OpaqueBackend._verify

        def never_still(self: OpaqueBackend, *arguments: Any) -> bool:
            clean = verify(self, *arguments)
            write(bench.mounted.at("opt/lib/new"))
            os.unlink(bench.mounted.at("opt/lib/new"))
            return clean

        plan = bench.plan(LIB)
        bench.shadow(plan)
        monkeypatch.setattr(OpaqueBackend, "_verify", never_still)
        with pytest.raises(Busy, match="still changing after 8 passes"):
            bench.backend.complete(plan)
        assert bench.on_disk(LIB).mark is MarkState.NONE

    def test_another_directory_that_took_its_place_is_not_marked(
        self, bench: Bench, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        mark = OpaqueBackend._mark

        def late(self: OpaqueBackend, *arguments: Any) -> None:
            exchange(bench)
            mark(self, *arguments)

        monkeypatch.setattr(OpaqueBackend, "_mark", late)
        with pytest.raises(Busy, match="removed or renamed"):
            bench.mark(LIB)
        assert xattr(bench.mounted.in_upper(LIB), OPAQUE) is None


class TestLedAstray:
    """A directory on the way is exchanged for a symlink to somewhere else, again and again (I8)."""

    @pytest.mark.parametrize(
        ("where", "inside"), [("opt/lib", "../other"), ("opt", "other"), ("opt/lib/sub", "../../other")]
    )
    def test_nothing_outside_is_touched(
        self, make_overlay: MakeOverlay, tmp_path: Path, where: str, inside: str
    ) -> None:
        inner: Tree = {**files(15), "sub": files(15)}
        bench = Bench(make_overlay({"opt": {"lib": inner}, "other": {**inner, "lib": inner}}), batch=4)
        shutil.copytree(os.fsdecode(bench.mounted.on_server("other")), tmp_path / "outside")
        outside = os.fsencode(tmp_path / "outside")
        targets = [outside, inside.encode(), bench.mounted.at("other"), inside.encode()]
        untouched = self.state_of(outside)
        stop = threading.Event()
        swapper = threading.Thread(target=self.swap, args=(bench.mounted.at(where), targets, stop))
        swapper.start()
        attempts, deadline = 0, time.monotonic() + 1.5
        try:
            while time.monotonic() < deadline:
                attempts += 1
                try:
                    bench.mark(LIB)
                except (Busy, Refused, OSError):
                    continue
        finally:
            stop.set()
            swapper.join()
        assert attempts > 5
        assert self.state_of(outside) == untouched
        assert not os.path.lexists(bench.mounted.in_upper("other")), "nor elsewhere in the mount"
        bench.activate()
        bench.remount()
        assert [path for path, entry in bench.view().items() if entry.error] == []

    def swap(self, path: bytes, targets: list[bytes], stop: threading.Event) -> None:
        turn = 0
        while not stop.is_set():
            turn += 1
            os.rename(path, path + b".away")
            os.symlink(targets[turn % len(targets)], path)
            time.sleep(0.001)
            os.unlink(path)
            os.rename(path + b".away", path)
            time.sleep(0.002)

    def state_of(self, top: bytes) -> list[tuple[bytes, int, int, int]]:
        found = []
        for directory, _, names in os.walk(top):
            for name in [b".", *names]:
                status = os.lstat(directory + b"/" + name)
                found.append((directory + b"/" + name, status.st_ctime_ns, status.st_mtime_ns, status.st_nlink))
        return sorted(found)
