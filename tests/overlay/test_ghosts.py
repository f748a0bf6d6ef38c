"""What promotion left of releases that the server has deleted (R1)."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable

import pytest

from promoterd.overlay import activation
from promoterd.overlay.ghosts import Removed, remove_ghost
from support.overlays import MountedOverlay
from support.promotions import SCRATCH, Bench, assert_same_view, scratch_leftovers
from support.rich import add_socket, rich_tree
from support.soundness import OPAQUE, PROVENANCE, xattr
from support.trees import OLD, Directory, Fifo, Symlink, Tree, files

MakeOverlay = Callable[..., MountedOverlay]
RELEASE, LIB = b"sw/rel1", b"sw/rel1/lib"


def tree() -> Tree:
    library: Tree = {**files(4), "empty": b"", "so": Symlink("f0001"), "sub": {}, "pipe": Fifo()}
    releases: Tree = {"rel1": {"lib": library, "doc": files(2)}, "rel2": {"lib": files(3)}}
    return {"sw": Directory(releases, mtime_ns=OLD + 5)}


@pytest.fixture(params=[False, True], ids=["local", "fuse"])
def bench(request: pytest.FixtureRequest, make_overlay: MakeOverlay) -> Bench:
    made = Bench(make_overlay(tree(), counting=request.param))
    made.promote(LIB)
    return made


def delete_on_server(bench: Bench, path: bytes = RELEASE) -> None:
    shutil.rmtree(bench.mounted.on_server(path))


def remove(bench: Bench, path: bytes = RELEASE) -> Removed:
    with bench.layers() as layers:
        return remove_ghost(layers, path, SCRATCH)


def write(path: bytes, content: bytes = b"mine") -> None:
    with open(path, "wb") as file:
        file.write(content)


class TestRemoval:
    def test_what_a_process_holds_is_told(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        """It is shown until an activation finds it let go."""
        monkeypatch.setattr(activation, "TRIES", 2)
        held = LIB + b"/f0001"
        write(bench.mounted.at("sw/rel1/lib/mine"))
        descriptor = os.open(bench.mounted.at(held), os.O_PATH)
        delete_on_server(bench)
        with bench.layers() as layers:
            removed = bench.backend.remove_ghost(layers, RELEASE)
            assert held in removed.held
            bench.activate()
            assert bench.backend.sweep(layers) == len(removed.held)
            os.close(descriptor)
            bench.activate()
            assert bench.backend.sweep(layers) == 0
        assert os.listdir(bench.mounted.at(LIB)) == [b"mine"]
        assert not os.path.lexists(bench.mounted.at(held))

    def test_a_ghost_is_there_without_it(self, bench: Bench) -> None:
        """What the rule is for: still listed, and stat of its files fails."""
        delete_on_server(bench)
        bench.activate()
        assert b"rel1" in os.listdir(bench.mounted.at("sw"))
        with pytest.raises(OSError, match=r"Input/output error|Stale"):
            os.stat(bench.mounted.at(b"sw/rel1/lib/f0001"))

    def test_nothing_is_left_of_it(self, bench: Bench) -> None:
        delete_on_server(bench)
        before = os.stat(bench.mounted.at("sw"))
        removed = remove(bench)
        assert removed.kept == ()
        assert removed.shadows == 10
        for _ in range(2):
            assert os.listdir(bench.mounted.at("sw")) == [b"rel2"]
            assert not os.path.lexists(bench.mounted.at(RELEASE))
            assert os.stat(bench.mounted.at("sw")).st_mtime_ns == before.st_mtime_ns
            bench.remount()
        assert scratch_leftovers(bench.mounted) == []
        assert not os.path.lexists(bench.mounted.in_upper(RELEASE))

    def test_published_again_it_is_seen(self, bench: Bench) -> None:
        """No whiteout of ours may hide a release that comes back under its name."""
        delete_on_server(bench)
        remove(bench)
        os.makedirs(bench.mounted.on_server(LIB))
        write(bench.mounted.on_server(LIB + b"/new"), b"new")
        bench.activate()
        with open(bench.mounted.at(LIB + b"/new"), "rb") as file:
            assert file.read() == b"new"
        bench.promote(LIB)

    @pytest.mark.needs("fuse")
    def test_a_whiteout_of_the_kernels_does_not_stay(self, make_overlay: MakeOverlay) -> None:
        """It leaves one where the lower name is cached still; a release that comes back would be hidden by it."""
        made = Bench(make_overlay(tree(), counting=True, timeouts=3600.0))
        made.promote(LIB)
        os.stat(made.mounted.layers[0] + b"/" + RELEASE)
        delete_on_server(made)
        remove(made)
        assert os.listdir(made.mounted.in_upper("sw")) == []

    def test_a_marked_but_inactive_one(self, make_overlay: MakeOverlay) -> None:
        made = Bench(make_overlay(tree()))
        directory = os.open(made.mounted.at(LIB), os.O_RDONLY)
        try:
            made.mark(LIB)
            made.activate()
            assert made.on_disk(LIB).in_effect is False
            delete_on_server(made)
            assert remove(made).kept == ()
            assert os.listdir(made.mounted.at("sw")) == [b"rel2"]
        finally:
            os.close(directory)
        os.makedirs(made.mounted.on_server(LIB))
        made.activate()
        assert os.path.isdir(made.mounted.at(LIB))

    def test_a_child_of_a_complete_directory(self, bench: Bench) -> None:
        delete_on_server(bench, LIB + b"/sub")
        mtime = os.stat(bench.mounted.at(LIB)).st_mtime_ns
        assert remove(bench, LIB + b"/sub").kept == ()
        assert b"sub" not in os.listdir(bench.mounted.at(LIB))
        assert os.stat(bench.mounted.at(LIB)).st_mtime_ns == mtime
        bench.remount()
        assert b"sub" not in os.listdir(bench.mounted.at(LIB))

    def test_of_everything_that_a_share_can_hold(self, make_overlay: MakeOverlay) -> None:
        made = Bench(make_overlay(rich_tree()))
        add_socket(made.mounted.on_server("opt/lib"))
        made.promote(b"opt/lib")
        delete_on_server(made, b"opt/lib")
        assert remove(made, b"opt/lib").kept == ()
        assert os.listdir(made.mounted.at("opt")) == [b"other"]

    @pytest.mark.parametrize("work", ["shadowed", "planned"])
    def test_of_an_interrupted_promotion(self, make_overlay: MakeOverlay, work: str) -> None:
        made = Bench(make_overlay({"sw": {"rel1": {"lib": {**files(5), "sub": files(2)}}, "rel2": {}}}))
        plan = made.plan(LIB)
        steps = made.backend.shadow(plan)
        next(steps)
        if work == "shadowed":
            made.shadow(plan)
        steps.close()  # type: ignore[attr-defined]
        delete_on_server(made)
        assert remove(made).kept == ()
        assert os.listdir(made.mounted.at("sw")) == [b"rel2"]

    def test_of_what_is_not_there_any_more(self, bench: Bench) -> None:
        delete_on_server(bench)
        remove(bench)
        before = bench.view()
        assert remove(bench) == Removed(RELEASE, 0, ())
        assert_same_view(before, bench.view())

    def test_a_deep_one(self, make_overlay: MakeOverlay) -> None:
        made = Bench(make_overlay({"sw": {"rel1": {}, "rel2": {}}}))
        bottom = made.mounted.on_server(RELEASE)
        here = os.open(bottom, os.O_RDONLY)
        for _ in range(600):
            os.mkdir("d", dir_fd=here)
            below = os.open("d", os.O_RDONLY, dir_fd=here)
            os.close(here)
            here = below
        os.close(here)
        made.promote(RELEASE)
        subprocess.run(["rm", "-rf", bottom], check=True)
        assert remove(made).kept == ()
        assert os.listdir(made.mounted.at("sw")) == [b"rel2"]


class TestWhatIsTheUsers:
    def users(self, bench: Bench) -> dict[bytes, bytes]:
        at = bench.mounted.at
        write(at(LIB + b"/mine"), b"mine")
        write(at(LIB + b"/f0001"), b"written")
        os.mkdir(at(LIB + b"/my directory"))
        write(at(LIB + b"/my directory/inside"), b"inside")
        os.rename(at("sw/rel2/lib"), at(LIB + b"/moved here"))
        os.symlink("nowhere", at(LIB + b"/my link"))
        return {
            b"mine": b"mine",
            b"f0001": b"written",
            b"my directory/inside": b"inside",
            b"moved here/f0001": b"content of 0001\n",
        }

    def test_is_kept_and_the_rest_goes(self, make_overlay: MakeOverlay) -> None:
        bench = Bench(make_overlay(tree()))
        bench.promote(LIB)
        contents = self.users(bench)
        delete_on_server(bench)
        removed = remove(bench)
        for _ in range(2):
            names = sorted(os.listdir(bench.mounted.at(LIB)))
            assert names == [b"f0001", b"mine", b"moved here", b"my directory", b"my link"]
            assert os.listdir(bench.mounted.at(RELEASE)) == [b"lib"]
            for name, content in contents.items():
                with open(bench.mounted.at(LIB + b"/" + name), "rb") as file:
                    assert file.read() == content, name
            assert os.readlink(bench.mounted.at(LIB + b"/my link")) == b"nowhere"
            bench.remount()
        assert LIB + b"/mine" in removed.kept

    def test_what_holds_it_is_the_users_from_then_on(self, make_overlay: MakeOverlay) -> None:
        """Neither complete nor a ghost again: what the server publishes there is seen beside the user's files."""
        bench = Bench(make_overlay(tree()))
        bench.promote(LIB)
        self.users(bench)
        delete_on_server(bench)
        remove(bench)
        for path in (RELEASE, LIB):
            assert xattr(bench.mounted.in_upper(path), PROVENANCE) is None
            assert xattr(bench.mounted.in_upper(path), OPAQUE) is None
        os.makedirs(bench.mounted.on_server(LIB))
        write(bench.mounted.on_server(LIB + b"/f0000"), b"new")
        bench.activate()
        with open(bench.mounted.at(LIB + b"/f0000"), "rb") as file:
            assert file.read() == b"new"
        assert b"mine" in os.listdir(bench.mounted.at(LIB))

    @pytest.mark.parametrize("before", [True, False], ids=["before the promotion", "after it"])
    @pytest.mark.parametrize(
        ("kept", "change"),
        [
            (b"so", lambda lib: os.lchown(lib + b"/so", 5, 5)),
            (b"so", lambda lib: os.utime(lib + b"/so", ns=(OLD, OLD + 99), follow_symlinks=False)),
            (b"so2", lambda lib: os.rename(lib + b"/so", lib + b"/so2")),
            (b"f0009", lambda lib: os.rename(lib + b"/f0003", lib + b"/f0009")),
            (b"f0009", lambda lib: os.link(lib + b"/f0003", lib + b"/f0009")),
            (b"sub2", lambda lib: os.mkdir(lib + b"/sub2")),
        ],
        ids=["owner", "time", "rename link", "rename", "link", "make directory"],
    )
    def test_what_a_user_changed_is_kept(
        self, make_overlay: MakeOverlay, kept: bytes, change: Callable[[bytes], None], *, before: bool
    ) -> None:
        bench = Bench(make_overlay(tree()))
        if before:
            change(bench.mounted.at(LIB))
        bench.promote(LIB)
        if not before:
            change(bench.mounted.at(LIB))
        delete_on_server(bench)
        assert LIB + b"/" + kept in remove(bench).kept
        assert kept in os.listdir(bench.mounted.in_upper(LIB))

    def test_what_a_user_changed_of_a_shadow_is_kept(self, make_overlay: MakeOverlay) -> None:
        bench = Bench(make_overlay(tree()))
        bench.promote(LIB)
        os.chmod(bench.mounted.at(LIB + b"/f0002"), 0o600)
        os.rename(bench.mounted.at(LIB + b"/sub"), bench.mounted.at(LIB + b"/sub2"))
        delete_on_server(bench)
        assert LIB + b"/f0002" in remove(bench).kept
        assert {b"f0002", b"sub2"} <= set(os.listdir(bench.mounted.in_upper(LIB)))

    def test_what_is_held_open_stays_readable(self, make_overlay: MakeOverlay) -> None:
        bench = Bench(make_overlay(tree()))
        bench.promote(LIB)
        with open(bench.mounted.at(LIB + b"/f0001"), "rb") as file:
            delete_on_server(bench)
            remove(bench)
            assert file.read() == b"content of 0001\n"

    def test_a_process_in_it_does_not_keep_the_path(self, make_overlay: MakeOverlay) -> None:
        bench = Bench(make_overlay(tree()))
        bench.promote(LIB)
        with subprocess.Popen([sys.executable, "-c", "input()"], cwd=bench.mounted.at(LIB), stdin=-1) as process:
            delete_on_server(bench)
            remove(bench)
            assert os.listdir(bench.mounted.at("sw")) == [b"rel2"]
            process.communicate()
        assert scratch_leftovers(bench.mounted) == []


def test_the_path_disappears_at_once(make_overlay: MakeOverlay, monkeypatch: pytest.MonkeyPatch) -> None:
    """One rename, before anything inside is removed: no reader meets half a release."""
    bench = Bench(make_overlay(tree()))
    bench.promote(LIB)
    delete_on_server(bench)
    removed: list[tuple[bytes, bool]] = []
    for name in ("unlink", "rmdir"):
        original = getattr(os, name)

        def spy(path: bytes, *, dir_fd: int | None = None, original: Callable[..., None] = original) -> None:
            removed.append((path, os.path.lexists(bench.mounted.in_upper(LIB + b"/so"))))
            original(path, dir_fd=dir_fd)

        monkeypatch.setattr(os, name, spy)
    remove(bench)
    monkeypatch.undo()
    assert removed
    assert not any(still_there for _, still_there in removed)
