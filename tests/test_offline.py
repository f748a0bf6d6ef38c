"""Reopening in layers that are mounted nowhere."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from promoterd.demo.view import differences
from promoterd.errors import AlreadyLocked, Refused, UsageError
from promoterd.ledger import DirectoryRecord, Ledger
from promoterd.offline import Offline
from promoterd.opening import identify_upper, known_upper
from promoterd.overlay import rolls, syscalls
from promoterd.overlay.lock import WriterLock, users_of
from promoterd.overlay.mounts import overlay_at
from promoterd.states import State
from support.commands import promoterd
from support.daemons import wait_for
from support.overlays import MountedOverlay, unmount
from support.promotions import Bench, assert_marks_are_sound, assert_same_view
from support.sites import Site
from support.soundness import xattr
from support.trees import files

LIB, SUB = b"opt/lib", b"opt/lib/sub"
OPAQUE = "trusted.overlay.opaque"
MakeOverlay = Callable[..., MountedOverlay]


@pytest.fixture
def bench(make_overlay: MakeOverlay) -> Bench:
    return Bench(make_overlay({"opt": {"lib": {**files(8), "sub": {**files(4), "deep": files(2)}}, "other": files(2)}}))


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger(tmp_path / "state") as opened:
        yield opened


def seen(bench: Bench, ledger: Ledger) -> str:
    """As the daemon notes an upper layer when it takes the mount into work."""
    upper_id = identify_upper(bench.mounted.upper)
    ledger.see_upper(upper_id, bench.mounted.mountpoint, bench.overlay.layers, time.time())
    return upper_id


def offline(bench: Bench, ledger: Ledger, *lowers: bytes) -> Offline:
    return Offline(ledger, bench.mounted.upper, lowers)


def lose_roll(mounted: MountedOverlay, path: bytes) -> None:
    os.unlink(mounted.upper + b"/" + os.fsencode(rolls.place(overlay_at(mounted.mountpoint), path)))


class TestReopening:
    def test_complete_parents_first_and_the_view_stays(self, bench: Bench, ledger: Ledger) -> None:
        seen(bench, ledger)
        bench.promote(LIB)
        before = bench.view()
        bench.mounted.umount()
        with offline(bench, ledger) as layers:
            assert layers.reopen(SUB) == [LIB, SUB]
        bench.mounted.mount()
        bench.refresh()
        assert assert_marks_are_sound(bench.mounted) == [SUB + b"/deep"]
        assert_same_view(before, bench.view())
        Path(os.fsdecode(bench.mounted.on_server(LIB + b"/new"))).write_bytes(b"new")
        bench.mounted.cool()
        assert os.path.exists(bench.mounted.at(LIB + b"/new")), "the server is asked again"

    def test_nothing_deleted_comes_back_and_nothing_made_is_lost(self, bench: Bench, ledger: Ledger) -> None:
        seen(bench, ledger)
        bench.promote(LIB)
        at = bench.mounted.at
        os.unlink(at(LIB + b"/f0001"))
        os.rename(at(LIB + b"/f0002"), at(LIB + b"/renamed"))
        for name in os.listdir(at(SUB + b"/deep")):
            os.unlink(at(SUB + b"/deep/" + name))
        os.rmdir(at(SUB + b"/deep"))
        os.mkdir(at(SUB + b"/deep"))
        for path, text in ((LIB + b"/mine", b"mine"), (SUB + b"/deep/z", b"z"), (LIB + b"/f0003", b"changed")):
            with open(at(path), "wb") as file:
                file.write(text)
        before = bench.view()
        bench.mounted.umount()
        with offline(bench, ledger) as layers:
            assert layers.reopen_all() == ([LIB, SUB], [])
        bench.mounted.mount()
        bench.refresh()
        assert_same_view(before, bench.view())
        assert os.listdir(at(SUB + b"/deep")) == [b"z"]

    def test_the_ledger_follows(self, bench: Bench, ledger: Ledger) -> None:
        book = ledger.of(seen(bench, ledger))
        for path in bench.promote(LIB):
            book.put(DirectoryRecord(path, State.ACTIVE, time.time()))
        book.defer(SUB, "somebody may write", time.time())
        book.defer(b"opt/gone", "somebody may write", time.time())
        bench.mounted.umount()
        with offline(bench, ledger) as layers:
            assert layers.reopen_deferred() == ([LIB, SUB], [])
            assert layers.reopen_deferred() == ([], [])
        assert book.deferred() == []
        assert book.unfinished() == []
        assert [record.path for record in book.directories()] == [SUB + b"/deep"]
        bench.mounted.mount()

    def test_paths_as_people_type_them(self, bench: Bench, ledger: Ledger) -> None:
        seen(bench, ledger)
        bench.mounted.umount()
        with offline(bench, ledger) as layers:
            for typed in (bench.mounted.at(LIB), b"/opt/lib", b"opt/lib/", b"./opt//lib"):
                assert layers.inside(typed) == LIB
            with pytest.raises(UsageError):
                layers.inside(b"opt/../lib")
        bench.mounted.mount()

    def test_a_ledger_that_was_lost(self, bench: Bench, ledger: Ledger) -> None:
        bench.promote(LIB)
        bench.mounted.umount()
        with pytest.raises(UsageError, match="does not know the lower layers") as raised, offline(bench, ledger):
            pass
        assert "--lower" in str(raised.value.hint)
        with offline(bench, ledger, *bench.mounted.layers) as layers:
            assert layers.reopen(LIB) == [LIB]
        known = known_upper(bench.mounted.upper)
        assert known is not None
        assert ledger.upper(known) is not None
        bench.mounted.mount()

    def test_what_was_cut_off_is_taken_up(self, bench: Bench, ledger: Ledger) -> None:
        """Killed at its last moment: everything is undone on disk, nothing in the ledger."""
        book = ledger.of(seen(bench, ledger))
        bench.promote(LIB)
        os.unlink(bench.mounted.at(LIB + b"/f0001"))
        before = bench.view()
        bench.mounted.umount()
        script = (
            "import os, signal, sys\n"
            "from promoterd import offline\n"
            "from promoterd.ledger import Ledger\n"
            "def forget(*paths): os.kill(os.getpid(), signal.SIGKILL)\n"
            "with Ledger(sys.argv[1]) as ledger, offline.Offline(ledger, os.fsencode(sys.argv[2])) as layers:\n"
            "    layers._book.forget = forget\n"
            "    layers.reopen(b'opt/lib/sub')\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", script, os.path.dirname(ledger.path), bench.mounted.upper], check=False
        )
        assert done.returncode == -9
        assert [entry.path for entry in book.unfinished()] == [SUB]
        bench.mounted.mount()
        bench.refresh()
        assert_same_view(before, bench.view())
        bench.mounted.umount()
        with offline(bench, ledger) as layers:
            assert layers.reopen_all() == ([SUB + b"/deep"], [])
        bench.mounted.mount()
        bench.refresh()
        assert_same_view(before, bench.view())


class TestRefusals:
    def refused(self, bench: Bench, ledger: Ledger, *lowers: bytes) -> str:
        with pytest.raises(Refused) as raised, offline(bench, ledger, *lowers) as layers:
            layers.reopen(LIB)
        assert xattr(bench.mounted.in_upper(LIB), OPAQUE) == b"y", "nothing was changed"
        return str(raised.value)

    def test_a_mounted_overlay(self, bench: Bench, ledger: Ledger) -> None:
        seen(bench, ledger)
        bench.promote(LIB)
        assert f"the overlay at {os.fsdecode(bench.mounted.mountpoint)}" in self.refused(bench, ledger)

    def test_one_in_another_mount_namespace(self, bench: Bench, ledger: Ledger) -> None:
        seen(bench, ledger)
        bench.promote(LIB)
        bench.mounted.umount()
        script = (
            "import os, sys\n"
            "from promoterd.overlay import syscalls\n"
            "syscalls.unshare_mounts()\n"
            "syscalls.mount(b'other', os.fsencode(sys.argv[1]), b'overlay', 0, os.fsencode(sys.argv[2]))\n"
            "print(flush=True); input()\n"
        )
        mounted = bench.mounted
        options = b"lowerdir=%s,upperdir=%s,workdir=%s" % (b":".join(mounted.layers), mounted.upper, mounted.work)
        with subprocess.Popen(
            [sys.executable, "-c", script, mounted.mountpoint, options], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as process:
            assert process.stdout is not None
            process.stdout.readline()
            said = self.refused(bench, ledger)
            process.communicate(b"\n")
        assert f"pid {process.pid}" in said
        with offline(bench, ledger) as layers:
            assert layers.reopen(LIB) == [LIB]
        mounted.mount()

    def test_one_that_has_it_as_a_lower_layer(self, bench: Bench, ledger: Ledger, tmp_path: Path) -> None:
        seen(bench, ledger)
        bench.promote(LIB)
        bench.mounted.umount()
        wait_for(lambda: not users_of(bench.mounted.upper))  # a test mount's namespace may still have it
        view = tmp_path / "view"
        view.mkdir()
        layers = b":".join([bench.mounted.upper, *bench.mounted.layers])
        syscalls.mount(b"view", os.fsencode(view), b"overlay", 0, b"lowerdir=" + layers)
        try:
            assert f"the overlay at {view}" in self.refused(bench, ledger)
        finally:
            unmount(os.fsencode(view))
        bench.mounted.mount()

    def test_one_that_was_mounted_by_a_relative_path(self, bench: Bench, ledger: Ledger, tmp_path: Path) -> None:
        seen(bench, ledger)
        bench.promote(LIB)
        bench.mounted.umount()
        options = "lowerdir=lower0,upperdir=dir/upper,workdir=dir/work,metacopy=on,redirect_dir=on"
        script = f"cd {os.fsdecode(bench.mounted.base)} && mount -t overlay relative -o {options} {tmp_path}"
        subprocess.run(["sh", "-c", script], check=True)
        try:
            assert f"the overlay at {tmp_path}" in self.refused(bench, ledger)
        finally:
            unmount(os.fsencode(tmp_path))
        bench.mounted.mount()

    def test_somebody_who_holds_the_lock(self, bench: Bench, ledger: Ledger) -> None:
        seen(bench, ledger)
        bench.promote(LIB)
        bench.mounted.umount()
        with WriterLock(bench.mounted.upper), pytest.raises(AlreadyLocked), offline(bench, ledger):
            pass
        bench.mounted.mount()

    def test_a_lower_layer_that_is_not_mounted_now(self, bench: Bench, ledger: Ledger, tmp_path: Path) -> None:
        """An empty directory in its place would make everything that a user deleted come back."""
        seen(bench, ledger)
        bench.promote(LIB)
        bench.mounted.umount()
        assert "other lower layers than" in self.refused(bench, ledger, os.fsencode(tmp_path))
        with pytest.raises(UsageError, match="is not a directory"), offline(bench, ledger, b"/nonexistent"):
            pass
        bench.mounted.mount()

    def test_lower_layers_in_the_wrong_order_or_too_few(self, make_overlay: MakeOverlay, ledger: Ledger) -> None:
        bench = Bench(make_overlay([{"opt": {"lib": files(2, "a")}}, {"opt": {"lib": files(2, "b")}}]))
        seen(bench, ledger)
        bench.promote(LIB)
        bench.mounted.umount()
        first, second = bench.mounted.layers
        for wrong in ((second, first), (first,), (second,)):
            assert "other lower layers" in self.refused(bench, ledger, *wrong)
        with offline(bench, ledger, first, second) as layers:
            assert layers.reopen(LIB) == [LIB]
        bench.mounted.mount()

    @pytest.mark.parametrize("path", [b"", b"opt", b"opt/other", b"opt/nowhere", b"opt/lib/f0000"])
    def test_what_carries_no_mark_of_ours(self, path: bytes, bench: Bench, ledger: Ledger) -> None:
        seen(bench, ledger)
        bench.promote(LIB)
        bench.mounted.umount()
        with offline(bench, ledger) as layers, pytest.raises(Refused):
            layers.reopen(path)
        bench.mounted.mount()

    def test_a_users_own_opaque_directory(self, bench: Bench, ledger: Ledger) -> None:
        seen(bench, ledger)
        at = bench.mounted.at
        for name in os.listdir(at("opt/other")):
            os.unlink(at(b"opt/other/" + name))
        os.rmdir(at("opt/other"))
        os.mkdir(at("opt/other"))
        assert xattr(bench.mounted.in_upper("opt/other"), OPAQUE) == b"y"
        before = bench.view()
        bench.mounted.umount()
        with offline(bench, ledger) as layers:
            with pytest.raises(Refused):
                layers.reopen(b"opt/other")
            assert layers.reopen_all() == ([], [])
        bench.mounted.mount()
        bench.refresh()
        assert differences(before, bench.view()) == []

    @pytest.mark.parametrize("only_deferred", [False, True], ids=["all", "deferred"])
    def test_one_that_is_refused_holds_up_no_other(
        self, make_overlay: MakeOverlay, ledger: Ledger, *, only_deferred: bool
    ) -> None:
        bench = Bench(make_overlay({"a": files(3), "b": files(3)}))
        book = ledger.of(seen(bench, ledger))
        for path in (b"a", b"b"):
            bench.promote(path)
            book.defer(path, "somebody may write", time.time())
        lose_roll(bench.mounted, b"a")
        os.unlink(bench.mounted.at("a/f0001"))
        Path(os.fsdecode(bench.mounted.on_server("a/new"))).write_bytes(b"new")
        bench.mounted.umount()
        with offline(bench, ledger) as layers:
            done, refused = layers.reopen_deferred() if only_deferred else layers.reopen_all()
        assert done == [b"b"]
        assert [(path, "roll" in str(error.fields["reason"])) for path, error in refused] == [(b"a", True)]
        assert [deferred.path for deferred in book.deferred()] == [b"a"]
        assert book.unfinished() == [], "nothing was changed there, so there is nothing to finish"
        bench.mounted.mount()
        assert assert_marks_are_sound(bench.mounted, deleted=[b"a/f0001", b"a/new"]) == [b"a"]

    def test_refusals_are_told_with_the_way_out(self, make_overlay: MakeOverlay, tmp_path: Path) -> None:
        site = Site(make_overlay({"app": {"a": files(2), "b": files(2)}}), tmp_path)
        for name in ("a", "b"):
            assert promoterd("promote", site.at(f"app/{name}"), "--config", site.config).code == 0
        lose_roll(site.mounted, b"app/a")
        Path(os.fsdecode(site.mounted.on_server("app/a/new"))).write_bytes(b"new")
        site.mounted.umount()
        words = ("reopen", "--offline", "--all", "--upper", os.fsdecode(site.mounted.upper), "--config", site.config)
        first, again = promoterd(*words), promoterd(*words, "--json")
        site.mounted.mount()
        assert (first.code, again.code) == (Refused.exit_code, Refused.exit_code)
        assert first.out.startswith("reopened /app/b\n")
        said = " ".join(first.out.split())
        assert "refused" in said
        assert "/app/a" in said
        assert "remove the directory from the upper layer" in said, "the way out"
        assert (again.json["reopened"], again.json["deferred"]) == ([], [])
        assert [row["path"] for row in again.json["refused"]] == ["/app/a"]

    def test_a_refusal_leaves_what_was_begun_before_for_the_next_start(self, bench: Bench, ledger: Ledger) -> None:
        book = ledger.of(seen(bench, ledger))
        bench.promote(LIB)
        book.begin(LIB, "promote", "shadow", time.time())
        lose_roll(bench.mounted, LIB)
        Path(os.fsdecode(bench.mounted.on_server(LIB + b"/new"))).write_bytes(b"new")
        bench.mounted.umount()
        with offline(bench, ledger) as layers, pytest.raises(Refused, match="roll"):
            layers.reopen(LIB)
        assert [(entry.path, entry.operation) for entry in book.unfinished()] == [(LIB, "promote")]
        bench.mounted.mount()

    def test_no_upper_layer(self, ledger: Ledger, tmp_path: Path) -> None:
        for path in (b"/nonexistent", b"/dev/null"):
            with pytest.raises(UsageError, match=os.fsdecode(path)), Offline(ledger, path):
                pass
        with pytest.raises(UsageError, match="lower layers"), Offline(ledger, os.fsencode(tmp_path)):
            pass
        assert known_upper(os.fsencode(tmp_path)) is None, "a stranger's directory is left as it is"
