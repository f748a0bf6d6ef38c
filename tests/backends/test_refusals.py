"""What cannot be kept is refused beforehand: named, with the way out, and before anything is copied (I3, I7)."""

import errno
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from promoterd.backends.base import DirectoryTerms
from promoterd.backends.obstacles import TooYoung
from promoterd.errors import Refused
from promoterd.overlay import mounts, syscalls
from support.overlays import OPTIONS, MountedOverlay
from support.promotions import Bench, allow, assert_marks_are_sound, assert_same_view, upper_directories
from support.soundness import REDIRECT, xattr
from support.trees import OLD, Directory, File, Hardlink, Symlink, files

MakeOverlay = Callable[..., MountedOverlay]
LIB = b"opt/lib"
TREE = {"opt": {"lib": {**files(4), "sub": {"deep": files(2)}}}}
WATCH = """
import ctypes, sys
libc = ctypes.CDLL(None)
instance = libc.inotify_init()
assert libc.inotify_add_watch(instance, sys.argv[1].encode("utf-8", "surrogateescape"), 0x100) > 0
print("ready", flush=True)
sys.stdin.read()
"""


def refused(bench: Bench, pattern: str, path: bytes = LIB, **terms: object) -> Refused:
    """The refusal of a plan, which left everything as it was: no name, and no change time in upper."""
    before = state_of(bench)
    with pytest.raises(Refused, match=pattern) as refusal:
        bench.plan(path, **terms)  # type: ignore[arg-type]
    assert state_of(bench) == before
    assert refusal.value.message.startswith("/" + path.decode())
    return refusal.value


def state_of(bench: Bench) -> list[tuple[bytes, int]]:
    return [(path, os.stat(bench.mounted.in_upper(path)).st_ctime_ns) for path in upper_directories(bench.mounted)]


@contextmanager
def chattr(flag: str, path: bytes) -> Iterator[None]:
    subprocess.run(["chattr", f"+{flag}", path], check=True)
    try:
        yield
    finally:
        subprocess.run(["chattr", f"-{flag}", path], check=True)


@pytest.fixture
def bench(make_overlay: MakeOverlay) -> Bench:
    return Bench(make_overlay(TREE))


class TestWhatIsNoCandidate:
    def test_the_root(self, bench: Bench) -> None:
        with pytest.raises(Refused, match="root of a mount"):
            bench.plan(b"")

    def test_a_directory_of_the_users(self, bench: Bench) -> None:
        os.mkdir(bench.mounted.at("opt/mine"))
        refused(bench, "no lower layer has it", b"opt/mine")

    @pytest.mark.parametrize("path", [b"opt/nowhere", b"opt/lib/f0001"])
    def test_what_is_no_directory_at_all(self, bench: Bench, path: bytes) -> None:
        with pytest.raises(OSError, match=r"No such file|Not a directory"):
            bench.plan(path)

    def test_a_symlink_is_not_followed(self, make_overlay: MakeOverlay) -> None:
        made = Bench(make_overlay({"opt": {"lib": files(1), "link": Symlink("lib")}, "way": Symlink("opt")}))
        for path in (b"opt/link", b"way/lib"):
            with pytest.raises(OSError, match=r"symbolic link|Not a directory"):
                made.plan(path)
        assert list(upper_directories(made.mounted)) == [b""]

    @pytest.mark.parametrize("path", [LIB, b"opt"])
    def test_one_that_a_user_made_opaque(self, bench: Bench, path: bytes) -> None:
        """Removed and made again, it asks the server for nothing; to complete it would be a lie."""
        at = bench.mounted.at(path)
        subprocess.run(["rm", "-r", at], check=True)
        os.makedirs(bench.mounted.at(LIB))
        refused(bench, "is opaque in the upper layer")


class TestForbidden:
    @pytest.mark.parametrize("where", [LIB, b"opt/lib/sub", b"opt/lib/sub/deep"])
    def test_growing(self, bench: Bench, where: bytes) -> None:
        def of(path: bytes) -> DirectoryTerms:
            return allow(forbidden="it is growing" if path == where else None)(path)

        refusal = refused(bench, "it is growing", of=of)
        assert where == LIB or f"the child directory /{where.decode()} blocks it" in refusal.message


class TestEntries:
    @pytest.mark.parametrize("most", [0, 1, 7])
    def test_too_many(self, bench: Bench, most: int) -> None:
        refusal = refused(bench, f"max_entries = {most} ", max_entries=most)
        assert refusal.hint is not None
        assert "max_entries" in refusal.hint

    def test_as_many_as_allowed(self, bench: Bench) -> None:
        assert bench.plan(LIB, max_entries=8).entries == 8

    def test_children_that_are_not_complete(self, bench: Bench) -> None:
        refusal = refused(bench, "/opt/lib/sub", recursive=False)
        assert refusal.hint == "promote it first"


LINKED = {"opt": {"lib": {"a": b"a", "b": Hardlink("opt/lib/a"), "z": b"z"}, "c": Hardlink("opt/lib/a")}}


class TestHardLinks:
    def test_refused_where_they_would_break(self, make_overlay: MakeOverlay) -> None:
        refusal = refused(Bench(make_overlay(LINKED)), "hard-linked files")
        assert refusal.hint is not None
        assert "index=on" in refusal.hint
        assert "hardlinks: break" in refusal.hint

    def test_broken_and_told_where_policy_says_so(self, make_overlay: MakeOverlay) -> None:
        bench = Bench(make_overlay(LINKED))
        before = bench.view()
        plan = bench.plan(LIB, of=allow(break_hardlinks=True))
        assert sorted(plan.broken_hardlinks) == [b"opt/lib/a", b"opt/lib/b"]
        bench.promote(LIB, of=allow(break_hardlinks=True))
        assert_same_view(before, bench.view())
        assert os.stat(bench.mounted.at("opt/lib/a")).st_ino != os.stat(bench.mounted.at("opt/lib/b")).st_ino

    def test_kept_with_an_index(self, make_overlay: MakeOverlay) -> None:
        bench = Bench(make_overlay(LINKED, options=OPTIONS + ",index=on"))
        before = bench.view()
        assert bench.plan(LIB).broken_hardlinks == []
        bench.promote(LIB)
        assert_same_view(before, bench.view())
        a, b, c = (os.stat(bench.mounted.at(f"opt/{name}")) for name in ("lib/a", "lib/b", "c"))
        assert a.st_ino == b.st_ino == c.st_ino
        assert a.st_nlink == 3
        bench.remount()
        assert_same_view(before, bench.view())

    def test_links_of_what_is_in_upper_already_do_not_matter(self, make_overlay: MakeOverlay) -> None:
        bench = Bench(make_overlay(LINKED))
        for name in ("a", "b"):
            os.chmod(bench.mounted.at(f"opt/lib/{name}"), 0o600)
        bench.promote(LIB)


class TestUnchangeable:
    @pytest.fixture(autouse=True)
    def _possible(self, tmp_path: Path) -> None:
        probe = tmp_path / "probe"
        probe.touch()
        subprocess.run(["chattr", "+i", probe], check=True)
        subprocess.run(["chattr", "-i", probe], check=True)

    @pytest.mark.parametrize("flag", ["i", "a"])
    @pytest.mark.parametrize("where", ["opt/lib/f0001", "opt/lib/sub/deep/f0001", "opt/lib/sub", "opt/lib", "opt"])
    def test_immutable_and_append_only(self, bench: Bench, flag: str, where: str) -> None:
        with chattr(flag, bench.mounted.on_server(where)):
            refusal = refused(bench, "immutable or append-only")
        assert os.path.basename(where) in refusal.message
        assert refusal.hint is not None
        assert "chattr -ia" in refusal.hint
        bench.activate()  # the overlay's own inodes have copied the flag
        bench.promote(LIB)


class TestMounts:
    def test_below_it_in_the_overlay(self, bench: Bench) -> None:
        syscalls.mount(b"tmpfs", bench.mounted.at("opt/lib/sub"), b"tmpfs")
        try:
            refusal = refused(bench, "another file system is mounted below it")
            assert "opt/lib/sub" in refusal.message
        finally:
            syscalls.umount(bench.mounted.at("opt/lib/sub"))
        bench.promote(LIB)

    def test_beside_it(self, bench: Bench) -> None:
        os.mkdir(bench.mounted.at("opt/library"))
        syscalls.mount(b"tmpfs", bench.mounted.at("opt/library"), b"tmpfs")
        try:
            bench.promote(LIB)
        finally:
            syscalls.umount(bench.mounted.at("opt/library"))

    def test_below_it_in_a_lower_layer(self, bench: Bench) -> None:
        syscalls.mount(b"tmpfs", bench.mounted.on_server("opt/lib/sub"), b"tmpfs")
        try:
            refused(bench, "another file system is mounted there in the lower layer")
        finally:
            syscalls.umount(bench.mounted.on_server("opt/lib/sub"))


class TestRenamed:
    def test_an_ancestor(self, bench: Bench) -> None:
        os.rename(bench.mounted.at("opt"), bench.mounted.at("was"))
        refused(bench, "/was was renamed in the upper layer", b"was/lib")

    def test_the_directory_itself(self, bench: Bench) -> None:
        os.rename(bench.mounted.at("opt/lib"), bench.mounted.at("opt/lib2"))
        refused(bench, "was renamed in the upper layer", b"opt/lib2")

    @pytest.mark.parametrize("name", ["other", "deep"])
    def test_a_child(self, bench: Bench, name: str) -> None:
        os.rename(bench.mounted.at("opt/lib/sub"), bench.mounted.at(f"opt/lib/{name}"))
        refused(bench, f"/opt/lib/{name} was renamed in the upper layer")

    def test_two_children_that_changed_names(self, make_overlay: MakeOverlay) -> None:
        bench = Bench(make_overlay({"opt": {"lib": {"a": files(2), "b": files(3)}}}))
        for old, new in (("a", "c"), ("b", "a"), ("c", "b")):
            os.rename(bench.mounted.at(f"opt/lib/{old}"), bench.mounted.at(f"opt/lib/{new}"))
        refused(bench, "was renamed in the upper layer")

    def test_a_directory_that_was_moved_in_from_elsewhere_keeps_working(self, make_overlay: MakeOverlay) -> None:
        """Refused as well, though it could be kept: its redirect is absolute."""
        bench = Bench(make_overlay({"opt": {"lib": files(2), "else": files(3)}}))
        os.rename(bench.mounted.at("opt/else"), bench.mounted.at("opt/lib/in"))
        refused(bench, "was renamed in the upper layer")


class TestLowerRedirects:
    @pytest.mark.parametrize("where", ["opt", "opt/lib", "opt/lib/sub"])
    def test_of_directories(self, bench: Bench, where: str) -> None:
        os.setxattr(bench.mounted.on_server(where), REDIRECT, b"/elsewhere")
        refused(bench, "a lower layer carries a redirect there")

    def test_of_files(self, make_overlay: MakeOverlay) -> None:
        bench = Bench(make_overlay({"opt": {"lib": {"x": File(b"x", xattrs={REDIRECT: b"/y"})}}}))
        refused(bench, r"carries redirects \(x\)")


class TestLongPaths:
    """The kernel's bound: a redirect of redirect_max bytes is written, a longer one fails with EXDEV."""

    def names(self, directory: bytes) -> tuple[str, str]:
        room = mounts.redirect_max() - len(b"/" + directory + b"/")
        return "n" * room, "n" * (room + 1)

    def test_as_long_as_the_kernel_allows(self, make_overlay: MakeOverlay) -> None:
        longest, _ = self.names(LIB)
        bench = Bench(make_overlay({"opt": {"lib": {longest: b"long"}}}))
        before = bench.view()
        bench.promote(LIB)
        redirect = xattr(bench.mounted.in_upper(LIB + b"/" + longest.encode()), REDIRECT)
        assert redirect is not None
        assert len(redirect) == mounts.redirect_max()
        assert_same_view(before, bench.view())

    def test_one_byte_longer(self, make_overlay: MakeOverlay, monkeypatch: pytest.MonkeyPatch) -> None:
        _, too_long = self.names(LIB)
        bench = Bench(make_overlay({"opt": {"lib": {too_long: b"long"}}}))
        refusal = refused(bench, f"redirect_max = {mounts.redirect_max()}")
        assert refusal.hint is not None
        assert "/sys/module/overlay/parameters/redirect_max" in refusal.hint
        monkeypatch.setattr(mounts, "redirect_max", lambda: 4096)
        with pytest.raises(Refused, match="cannot be linked"):
            bench.mark(LIB)

    def test_in_a_child(self, make_overlay: MakeOverlay) -> None:
        _, too_long = self.names(b"opt/lib/sub")
        bench = Bench(make_overlay({"opt": {"lib": {"sub": {too_long: b"long"}}}}))
        assert "/opt/lib/sub" in refused(bench, "redirect_max").message

    def test_what_needs_no_redirect_may_be_longer(self, make_overlay: MakeOverlay) -> None:
        _, too_long = self.names(LIB)
        bench = Bench(make_overlay({"opt": {"lib": {too_long: Symlink("x"), "m" * 255: {}, "o" * 250: b"full"}}}))
        with open(bench.mounted.at(LIB + b"/" + b"o" * 250), "ab") as file:
            file.write(b" copy")
        before = bench.view()
        bench.promote(LIB)
        assert_same_view(before, bench.view())

    def test_what_is_in_upper_without_a_redirect_needs_one_still(self, make_overlay: MakeOverlay) -> None:
        _, too_long = self.names(LIB)
        bench = Bench(make_overlay({"opt": {"lib": {too_long: b"long"}}}))
        os.chmod(bench.mounted.at(LIB + b"/" + too_long.encode()), 0o600)
        refused(bench, "redirect_max")


class TestTooYoung:
    @pytest.mark.parametrize("where", ["opt/lib", "opt/lib/f0001", "opt/lib/sub/deep", "opt/lib/sub/deep/f0001"])
    @pytest.mark.parametrize("how", ["mtime", "ctime"])
    def test_what_changed_a_moment_ago(self, bench: Bench, where: str, how: str) -> None:
        path = bench.mounted.on_server(where)
        time.sleep(0.01)
        limit = time.time_ns()
        time.sleep(0.01)
        if how == "mtime":
            os.utime(path, ns=(OLD, limit + 3600 * 10**9))
        else:
            os.chmod(path, 0o700)
        refusal = refused(bench, "younger than min_age", of=allow(oldest_allowed_ns=limit))
        assert isinstance(refusal, TooYoung)
        assert where in refusal.message
        wait = refusal.fields["wait"]
        assert isinstance(wait, float)
        assert 0 < wait < 3602
        newest = max(os.stat(path).st_mtime_ns, os.stat(path).st_ctime_ns)
        assert bench.plan(LIB, of=allow(oldest_allowed_ns=newest)).entries == 8

    def test_an_empty_directory_has_an_age_too(self, make_overlay: MakeOverlay) -> None:
        bench = Bench(make_overlay({"opt": {"lib": Directory({}, mtime_ns=time.time_ns() + 10**12)}}))
        refused(bench, "younger than min_age")


@pytest.mark.needs("fuse")
class TestUnlisted:
    """A server that resolves `.snapshot` in every directory and lists it in none."""

    @pytest.fixture
    def bench(self, make_overlay: MakeOverlay, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
        (tmp_path / "sitecustomize.py").write_text(
            "import os\nlisted = os.listdir\n"
            "os.listdir = lambda *path: [n for n in listed(*path) if os.fsencode(n) != b'.snapshot']\n"
        )
        with monkeypatch.context() as patch:
            patch.setenv("PYTHONPATH", str(tmp_path))
            return Bench(
                make_overlay({"opt": {"lib": {**files(2), "sub": {".snapshot": {"old": b"old"}}}}}, counting=True)
            )

    def test_refused(self, bench: Bench) -> None:
        assert os.path.exists(bench.mounted.at("opt/lib/sub/.snapshot/old"))
        assert b".snapshot" not in os.listdir(bench.mounted.at("opt/lib/sub"))
        refusal = refused(bench, r"resolves \.snapshot")
        assert "/opt/lib/sub" in refusal.message
        assert refusal.hint is not None
        assert "unlisted: hide" in refusal.hint

    def test_hidden_where_policy_says_so(self, bench: Bench) -> None:
        bench.promote(LIB, of=allow(hide_unlisted=True))
        assert not os.path.exists(bench.mounted.at("opt/lib/sub/.snapshot"))

    def test_one_that_is_listed_is_a_name_like_any_other(self, make_overlay: MakeOverlay) -> None:
        bench = Bench(make_overlay({"opt": {"lib": {".snapshot": {"old": b"old"}}}}))
        before = bench.view()
        bench.promote(LIB)
        assert_same_view(before, bench.view())


class TestWatched:
    @contextmanager
    def watching(self, path: bytes) -> Iterator[int]:
        with subprocess.Popen([sys.executable, "-c", WATCH, path], stdin=-1, stdout=-1) as process:
            assert process.stdout is not None
            try:
                assert process.stdout.readline() == b"ready\n"
                yield process.pid
            finally:
                process.communicate()

    @pytest.mark.parametrize("where", [LIB, b"opt/lib/sub/deep"])
    def test_by_another_process(self, bench: Bench, where: bytes) -> None:
        with self.watching(bench.mounted.at(where)) as pid:
            refusal = refused(bench, f"process {pid} watches it")
            assert f"/{where.decode()}" in refusal.message
            bench.mark(LIB, of=allow(ignore_watchers=True))
        assert_marks_are_sound(bench.mounted)

    def test_where_it_does_not_matter(self, bench: Bench) -> None:
        with self.watching(bench.mounted.at("opt")), self.watching(bench.mounted.at("opt/lib/f0001")):
            bench.promote(LIB)


def test_what_the_server_forbids_root_to_see(make_overlay: MakeOverlay) -> None:
    mounted = make_overlay(TREE, counting=True)
    bench = Bench(mounted)
    mounted.counted.fail(errno.EACCES)
    with pytest.raises(Refused, match="denies this machine's root permission to look at") as refusal:
        bench.plan(LIB)
    mounted.counted.fail(0)
    assert "no_root_squash" in (refusal.value.hint or "")
    assert set(upper_directories(mounted)) <= {b""}, "nothing was copied"
    bench.promote(LIB)
