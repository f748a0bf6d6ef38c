"""Ancestors that promotion copied up keep following lower, unless a user changed them (R2)."""

import importlib.machinery
import os
from collections.abc import Callable
from dataclasses import replace

import pytest

from promoterd.overlay.ancestors import Attributes, adopt_ancestors, follow_lower, merge
from support.overlays import MountedOverlay
from support.promotions import Bench, assert_same_view, upper_directories
from support.rich import acl
from support.trees import OLD, Directory, files

MakeOverlay = Callable[..., MountedOverlay]
LIB = b"sw/app/rel1/lib"
ANCESTORS = [b"sw", b"sw/app", b"sw/app/rel1"]
ACL = "system.posix_acl_access"


@pytest.fixture
def bench(make_overlay: MakeOverlay) -> Bench:
    made = Bench(
        make_overlay(
            {
                "sw": Directory(
                    {
                        "app": Directory(
                            {"rel1": Directory({"lib": files(3)}, mtime_ns=OLD + 3)},
                            mode=0o2755,
                            gid=50,
                            mtime_ns=OLD + 2,
                        )
                    },
                    xattrs={ACL: acl(7, 5)},
                    mtime_ns=OLD + 1,
                )
            }
        )
    )
    made.promote(LIB)
    return made


def follow(bench: Bench, path: bytes = b"sw/app") -> bool:
    with bench.layers() as layers:
        return follow_lower(layers, path)


def look(path: bytes) -> tuple[int, int, int, int]:
    status = os.stat(path)
    return status.st_mode, status.st_uid, status.st_gid, status.st_mtime_ns


class TestAdoption:
    def test_they_look_as_before_and_are_copied_up_alone(self, make_overlay: MakeOverlay) -> None:
        made = Bench(make_overlay({"sw": {"app": {"rel1": {"lib": files(3)}, "rel2": {"lib": {}}}, "else": {}}}))
        before = made.view()
        with made.layers() as layers:
            assert adopt_ancestors(layers, LIB) == ANCESTORS
        assert sorted(upper_directories(made.mounted)) == [b"", *ANCESTORS]
        assert_same_view(before, made.view())

    def test_one_that_a_user_changed_before_is_not_adopted(self, make_overlay: MakeOverlay) -> None:
        made = Bench(make_overlay({"sw": {"app": {"rel1": {"lib": files(3)}}}}))
        os.chmod(made.mounted.at("sw/app"), 0o700)
        with made.layers() as layers:
            assert adopt_ancestors(layers, LIB) == [b"sw", b"sw/app/rel1"]
        os.chmod(made.mounted.on_server("sw/app"), 0o711)
        assert not follow(made)
        assert look(made.mounted.at("sw/app"))[0] & 0o777 == 0o700

    def test_one_that_a_user_made_is_not_adopted(self, make_overlay: MakeOverlay) -> None:
        made = Bench(make_overlay({"sw": {"app": {"rel1": {"lib": files(3)}}}}))
        status = os.stat(made.mounted.at("sw"))
        os.rename(made.mounted.at("sw"), made.mounted.at("old"))
        os.mkdir(made.mounted.at("sw"), status.st_mode & 0o7777)
        os.utime(made.mounted.at("sw"), ns=(OLD, OLD))
        with made.layers() as layers:
            assert adopt_ancestors(layers, b"sw/x") == []

    def test_what_no_lower_layer_has_is_left_out(self, bench: Bench) -> None:
        os.makedirs(bench.mounted.at("mine/deep"))
        with bench.layers() as layers:
            assert adopt_ancestors(layers, b"mine/deep/lib") == []

    def test_reading_it_again_changes_nothing(self, bench: Bench) -> None:
        before = bench.view()
        with bench.layers() as layers:
            assert adopt_ancestors(layers, LIB) == ANCESTORS
        assert [follow(bench, path) for path in ANCESTORS] == [False] * 3
        assert_same_view(before, bench.view())


class TestFollowing:
    def test_without_it_a_new_release_is_not_imported(self, bench: Bench) -> None:
        """What the rule is for: an importer lists a directory again only when its modification time has changed."""
        finder = importlib.machinery.FileFinder(
            os.fsdecode(bench.mounted.at("sw/app")),
            (importlib.machinery.SourceFileLoader, importlib.machinery.SOURCE_SUFFIXES),
        )
        assert finder.find_spec("release2") is None
        with open(bench.mounted.on_server("sw/app/release2.py"), "w") as file:
            file.write("")
        bench.activate()
        assert finder.find_spec("release2") is None
        assert follow(bench)
        assert finder.find_spec("release2") is not None

    @pytest.mark.parametrize("path", ANCESTORS)
    def test_all_of_its_attributes(self, bench: Bench, path: bytes) -> None:
        lower = bench.mounted.on_server(path)
        os.chown(lower, 1001, 1002)
        os.setxattr(lower, ACL, acl(9, 7))
        os.setxattr(lower, "system.posix_acl_default", acl(10, 4))
        os.chmod(lower, 0o3771)
        os.utime(lower, ns=(OLD, OLD + 1000))
        assert follow(bench, path)
        assert look(bench.mounted.at(path)) == look(lower)
        for name in (ACL, "system.posix_acl_default"):
            assert os.getxattr(bench.mounted.at(path), name) == os.getxattr(lower, name)
        os.removexattr(lower, ACL)
        os.removexattr(lower, "system.posix_acl_default")
        os.chmod(lower, 0o750)
        os.utime(lower, ns=(OLD, OLD + 500))
        assert follow(bench, path)
        assert look(bench.mounted.at(path)) == look(lower)
        assert not os.listxattr(bench.mounted.at(path))
        assert not follow(bench, path)

    def test_again_and_again(self, bench: Bench) -> None:
        for mtime in (OLD + 10, OLD + 5, OLD + 50):
            os.utime(bench.mounted.on_server("sw/app"), ns=(OLD, mtime))
            assert follow(bench)
            assert os.stat(bench.mounted.at("sw/app")).st_mtime_ns == mtime
            bench.remount()

    @pytest.mark.parametrize("what", ["mode", "owner", "acl"])
    def test_what_a_user_changed_stays(self, bench: Bench, what: str) -> None:
        at, lower = bench.mounted.at("sw/app"), bench.mounted.on_server("sw/app")
        match what:
            case "mode":
                os.chmod(at, 0o700)
            case "owner":
                os.chown(at, 5, 6)
            case "acl":
                os.setxattr(at, ACL, acl(3, 7))
        mine = look(at)
        os.chmod(lower, 0o711)
        os.chown(lower, 1001, 1002)
        os.utime(lower, ns=(OLD, OLD + 77))
        assert follow(bench)
        mode, uid, gid, mtime = look(at)
        theirs = look(lower)
        assert (uid, gid) == (mine[1:3] if what == "owner" else theirs[1:3])
        assert mode == (mine[0] if what != "owner" else theirs[0])
        assert mtime == OLD + 77
        os.chmod(lower, 0o733)
        assert follow(bench) == (what == "owner")
        assert look(at)[0] == (mine[0] if what != "owner" else look(lower)[0])

    def test_a_time_that_tells_of_both(self, bench: Bench) -> None:
        """A user made something in it, then the server did: neither change may be hidden by the other."""
        at, lower = bench.mounted.at("sw/app"), bench.mounted.on_server("sw/app")
        os.mkdir(at + b"/mine")
        mine = os.stat(at).st_mtime_ns
        assert not follow(bench), "the server has changed nothing"
        assert os.stat(at).st_mtime_ns == mine
        os.utime(lower, ns=(OLD, OLD + 77))
        assert follow(bench)
        assert os.stat(at).st_mtime > mine / 1e9
        os.utime(lower, ns=(OLD, mine + 10**9))
        assert follow(bench)
        assert os.stat(at).st_mtime_ns == mine + 10**9

    def test_a_directory_without_a_record_is_left_alone(self, bench: Bench) -> None:
        os.chmod(bench.mounted.on_server(LIB), 0o700)
        os.removexattr(bench.mounted.in_upper(LIB), "trusted.overlay.promoterd.ancestor")
        assert not follow(bench, LIB)
        assert look(bench.mounted.at(LIB))[0] & 0o777 == 0o755

    def test_what_was_complete_follows_once_it_is_reopened(self, bench: Bench) -> None:
        os.utime(bench.mounted.on_server(LIB), ns=(OLD, OLD + 99))
        bench.reopen(LIB)
        assert follow(bench, LIB)
        assert look(bench.mounted.at(LIB))[3] == OLD + 99

    def test_one_that_is_gone_on_the_server_is_left_alone(self, bench: Bench) -> None:
        os.rename(bench.mounted.on_server("sw/app"), bench.mounted.on_server("sw/gone"))
        before = look(bench.mounted.in_upper("sw/app"))
        assert not follow(bench)
        assert look(bench.mounted.in_upper("sw/app")) == before

    @pytest.mark.needs("fuse")
    def test_it_is_asked_of_the_server_whatever_is_cached(self, make_overlay: MakeOverlay) -> None:
        """R8: an attribute cache of an hour does not hide the change."""
        made = Bench(make_overlay({"sw": {"app": {"lib": files(2)}}}, counting=True, timeouts=3600.0))
        made.promote(b"sw/app/lib")
        os.utime(made.mounted.on_server("sw/app"), ns=(OLD, OLD + 77))
        assert os.stat(made.mounted.layers[0] + b"/sw/app").st_mtime_ns == OLD, "the client's cache answers"
        assert follow(made)
        assert os.stat(made.mounted.at("sw/app")).st_mtime_ns == OLD + 77


class TestMerge:
    """The decision alone."""

    seen = Attributes(0o755, 0, 0, 1000, (None, None))
    lower = Attributes(0o700, 1, 2, 5000, (b"a", None))

    def test_all_of_lower_where_nothing_was_changed(self) -> None:
        assert merge(self.seen.record(), self.seen, self.lower) == self.lower

    def test_an_interrupted_following_is_finished(self) -> None:
        """After a crash some attributes are lower's already, and the record is the old one."""
        halfway = replace(self.seen, uid=1, gid=2, mode=0o700, acls=(b"a", None))
        assert merge(self.seen.record(), halfway, self.lower) == self.lower
        assert merge(self.seen.record(), self.lower, self.lower) == self.lower

    def test_a_users_mode_and_acl_stay_together(self) -> None:
        mine = replace(self.seen, mode=0o750)
        assert merge(self.seen.record(), mine, self.lower) == replace(self.lower, mode=0o750, acls=(None, None))

    def test_a_newer_time_of_the_users_moves_on_visibly(self) -> None:
        mine = replace(self.seen, mtime_ns=9000)
        assert merge(self.seen.record(), mine, self.lower).mtime_ns == 10000

    def test_a_users_time_stays_where_lower_kept_its(self) -> None:
        mine = replace(self.seen, mtime_ns=9000)
        assert merge(self.seen.record(), mine, replace(self.lower, mtime_ns=1000)).mtime_ns == 9000
