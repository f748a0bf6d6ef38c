"""R9: what disk says wins over what the ledger says; marks of others are left alone; R17: the scratch directory."""

import os
import shutil
import stat
import subprocess
from collections.abc import Callable

import pytest

from promoterd.errors import Refused
from promoterd.overlay import syscalls
from support.daemons import RunningDaemon, mount_policy, use
from support.overlays import MountedOverlay, unmount
from support.promotions import SCRATCH, assert_marks_are_sound, assert_same_view, view_of
from support.soundness import OPAQUE, xattr
from support.trees import files

MakeOverlay = Callable[..., MountedOverlay]
MakeDaemon = Callable[..., RunningDaemon]
TREE = {"app": {"lib": {**files(30), "sub": files(3)}, "bin": files(3)}}
RULES = [{"path": "app/lib"}, {"path": "app/lib/**"}]
MARKED = (b"app/lib", b"app/lib/sub")


def promoted(mounted: MountedOverlay, make_daemon: MakeDaemon) -> RunningDaemon:
    daemon = make_daemon(mount_policy(mounted, RULES)).start()
    daemon.ask("promote", mounted.at("app/lib"))
    daemon.wait_state("active", *MARKED)
    return daemon


def assert_known_and_untouched(daemon: RunningDaemon, before: float) -> None:
    """They are active, and nothing was promoted, activated or copied for that."""
    daemon.wait_for(lambda: daemon.status()["states"]["active"] == len(MARKED))
    assert not daemon.find("promoted")
    assert daemon.metric("promoterd_entries_copied_total") == 0
    assert before == _newest_change(daemon)


def _newest_change(daemon: RunningDaemon) -> float:
    upper = os.fsencode(daemon.policy["mounts"][0]["mountpoint"]).rpartition(b"/")[0] + b"/dir/upper/app/lib"
    return max(os.lstat(upper + b"/" + name).st_ctime_ns for name in os.listdir(upper))


def test_what_the_ledger_knows_is_taken_up(make_overlay: MakeOverlay, make_daemon: MakeDaemon) -> None:
    mounted = make_overlay(TREE)
    daemon = promoted(mounted, make_daemon)
    before = _newest_change(daemon)
    daemon.restart()
    assert_known_and_untouched(daemon, before)
    assert not daemon.find("rebuilt")


def test_a_lost_ledger_is_rebuilt_from_disk(make_overlay: MakeOverlay, make_daemon: MakeDaemon) -> None:
    mounted = make_overlay(TREE)
    daemon = promoted(mounted, make_daemon)
    before = _newest_change(daemon)
    daemon.stop()
    shutil.rmtree(daemon.state_dir)
    daemon.start()
    daemon.wait_event("rebuilt", marked=2)
    assert_known_and_untouched(daemon, before)
    os.chmod(mounted.on_server("app"), 0o711)
    daemon.wait_for(lambda: stat.S_IMODE(os.stat(mounted.at("app")).st_mode) == 0o711)


def test_a_damaged_ledger_too(make_overlay: MakeOverlay, make_daemon: MakeDaemon) -> None:
    mounted = make_overlay(TREE)
    daemon = promoted(mounted, make_daemon)
    before = _newest_change(daemon)
    daemon.stop()
    with open(f"{daemon.state_dir}/ledger.sqlite", "r+b") as file:
        file.write(b"no database at all" * 500)
    daemon.start()
    daemon.wait_event("ledger_rebuilt")
    daemon.wait_event("rebuilt", marked=2)
    assert_known_and_untouched(daemon, before)


def test_disk_wins_over_a_ledger_that_says_more(make_overlay: MakeOverlay, make_daemon: MakeDaemon) -> None:
    mounted = make_overlay(TREE)
    daemon = promoted(mounted, make_daemon)
    daemon.stop()
    os.removexattr(mounted.in_upper("app/lib"), OPAQUE)
    mounted.remount()
    daemon.start()
    daemon.wait_event("directory", path="/app/lib", state="cold", reason="the mark on disk is none")
    assert daemon.status()["states"]["active"] == 1


def test_the_ledger_follows_an_upper_layer_to_another_mount_point(
    make_overlay: MakeOverlay, make_daemon: MakeDaemon
) -> None:
    mounted = make_overlay(TREE)
    daemon = promoted(mounted, make_daemon)
    before = _newest_change(daemon)
    daemon.stop()
    mounted.umount()
    elsewhere = mounted.base + b"/elsewhere"
    os.mkdir(elsewhere)
    data = b"lowerdir=%s,upperdir=%s,workdir=%s,%s" % (
        *(mounted.layers[0], mounted.upper, mounted.work),
        mounted.options.encode(),
    )
    syscalls.mount(b"overlay", elsewhere, b"overlay", 0, data)
    try:
        daemon.policy["mounts"][0]["mountpoint"] = os.fsdecode(elsewhere)
        daemon.start()
        assert_known_and_untouched(daemon, before)
        assert not daemon.find("rebuilt")
        daemon.stop()
    finally:
        unmount(elsewhere)


def test_opaque_directories_of_users_are_left_alone(make_overlay: MakeOverlay, make_daemon: MakeDaemon) -> None:
    """The kernel writes the same attribute when a user removes a directory and makes it again."""
    mounted = make_overlay(TREE)
    shutil.rmtree(mounted.at("app/lib"))
    os.mkdir(mounted.at("app/lib"))
    with open(mounted.at("app/lib/mine"), "w") as file:
        file.write("mine")
    assert xattr(mounted.in_upper("app/lib"), OPAQUE) == b"y"
    view = view_of(mounted)
    daemon = make_daemon(mount_policy(mounted, [{"path": "app/lib", "promote": "always", "writers": "none"}])).start()
    daemon.wait_state("refused", b"app/lib")
    assert "it asks the server for nothing already" in (daemon.reason(b"app/lib") or "")
    assert daemon.explain(mounted, b"app/lib")["mark"] == "foreign"
    with pytest.raises(Refused):
        daemon.ask("reopen", mounted.at("app/lib"))
    daemon.ask("retire", mounted.mountpoint)
    daemon.restart()
    assert xattr(mounted.in_upper("app/lib"), OPAQUE) == b"y"
    assert_same_view(view, view_of(mounted))


def test_marks_from_another_server_trip_the_wire(make_overlay: MakeOverlay, make_daemon: MakeDaemon) -> None:
    mounted = make_overlay(TREE)
    daemon = promoted(mounted, make_daemon)
    daemon.stop()
    mounted.umount()
    subprocess.run(["cp", "-a", mounted.lowers[0], mounted.base + b"/copied"], check=True)
    mounted.layers[0] = mounted.base + b"/copied"
    mounted.mount()
    daemon.start(watching=2)
    reason = daemon.wait_event("trip_wire")["reason"]
    assert "the lower layers are not those that /app/lib was completed from" in reason
    os.makedirs(mounted.base + b"/copied/app/lib/sub/new")
    use(mounted, "app/lib", "app/lib/sub", times=3)
    assert set(assert_marks_are_sound(mounted)) <= set(MARKED)
    assert not daemon.find("promoted")


class TestScratch:
    def test_it_is_private_and_gone_after_the_end(self, make_overlay: MakeOverlay, make_daemon: MakeDaemon) -> None:
        mounted = make_overlay(TREE)
        view = view_of(mounted)
        daemon = make_daemon(mount_policy(mounted, RULES)).start()
        status = os.stat(mounted.at(SCRATCH))
        assert (stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid) == (0o700, 0, 0)
        assert_same_view(view, view_of(mounted))
        daemon.stop()
        assert SCRATCH not in os.listdir(mounted.mountpoint)
        assert SCRATCH not in os.listdir(mounted.upper)
        assert_same_view(view, view_of(mounted))

    def test_what_a_killed_daemon_left_goes_at_the_next_start(
        self, make_overlay: MakeOverlay, make_daemon: MakeDaemon
    ) -> None:
        mounted = make_overlay(TREE)
        daemon = make_daemon(mount_policy(mounted, RULES)).start()
        daemon.kill()
        os.link(mounted.at("app/bin/f0001"), mounted.at(SCRATCH + b"/link-1-1"))
        daemon.start()
        assert os.listdir(mounted.at(SCRATCH)) == []
        with open(mounted.at("app/bin/f0001"), "rb") as file:
            assert file.read() == b"content of 0001\n"

    def test_a_name_that_users_have_makes_the_mount_unfit(
        self, make_overlay: MakeOverlay, make_daemon: MakeDaemon
    ) -> None:
        mounted = make_overlay({**TREE, SCRATCH: files(1)})
        daemon = make_daemon(mount_policy(mounted, RULES)).launch()
        reason = daemon.wait_phase("unfit")["reason"]
        assert "a lower layer has an entry of that name" in reason
        assert "choose another name with `scratch:` in the policy" in reason
        daemon.policy["mounts"][0]["scratch"] = ".other"
        daemon.write_policy()
        daemon.ask("reload")
        daemon.wait_phase("working")
        assert os.path.isdir(mounted.at(".other"))
