"""The server forbids the client's root what it allows everybody else: ``root_squash``, and entries of mode 0700."""

import os
import subprocess
from collections.abc import Callable

import pytest

from lab.guest.stack import Nfs
from support.daemons import RunningDaemon, mount_policy
from support.overlays import MountedOverlay
from support.promotions import assert_marks_are_sound
from support.trees import Directory, File, files

MakeOverlay = Callable[..., MountedOverlay]
MakeDaemon = Callable[..., RunningDaemon]
ARTIST = 1000
TREE = {
    "app": {
        "lib": files(4),
        "mixed": {**files(3), "secret": File(b"the artist's", mode=0o600, uid=ARTIST, gid=ARTIST)},
        "home": Directory({"private": b"the artist's"}, mode=0o700, uid=ARTIST, gid=ARTIST),
        "around": {"home": Directory({"private": b"x"}, mode=0o700, uid=ARTIST, gid=ARTIST), **files(2)},
    }
}


def as_artist(*command: bytes) -> subprocess.CompletedProcess[bytes]:
    ids = ["--reuid", str(ARTIST), "--regid", str(ARTIST), "--clear-groups"]
    return subprocess.run(["setpriv", *ids, *command], capture_output=True, check=False)


def what_the_artist_reads(mounted: MountedOverlay) -> dict[bytes, bytes | None]:
    """Through an overlay the mount's owner must be allowed as well (Documentation/filesystems/overlayfs.rst)."""
    read = {}
    for name in (b"app/mixed/secret", b"app/home/private", b"app/lib/f0001"):
        done = as_artist(b"cat", mounted.at(name))
        read[name] = None if done.returncode else done.stdout
    return read


@pytest.mark.parametrize("version", ["4.2", pytest.param("3", marks=pytest.mark.thorough)])
def test_a_squashed_root_promotes_what_it_can_read_and_breaks_nothing(
    make_overlay: MakeOverlay, make_daemon: MakeDaemon, version: str
) -> None:
    mounted = make_overlay(TREE, Nfs(version), squashed=True)
    before = what_the_artist_reads(mounted)
    assert before[b"app/lib/f0001"] == b"content of 0001\n"
    rules = [{"path": f"app/{name}", "promote": "always"} for name in ("lib", "mixed", "home", "around", "around/home")]
    daemon = make_daemon(mount_policy(mounted, rules)).start()
    daemon.wait_state("active", b"app/lib")
    for path in ("app/home", "app/around"):
        daemon.wait_state("refused", path.encode())
        assert "ermission" in (daemon.reason(path.encode()) or ""), daemon.reason(path.encode())
    # v4 reads the file's flags for a copy-up, which takes permission to read it; v3 has none to read
    daemon.wait_state("refused" if version == "4.2" else "active", b"app/mixed")
    assert daemon.status()["paused"] is None, "that the server forbids something is no reason for alarm"
    assert {b"app/home", b"app/around"}.isdisjoint(assert_marks_are_sound(mounted))
    assert what_the_artist_reads(mounted) == before
    assert len(os.listdir(mounted.at("app/lib"))) == 4


def test_the_owner_alone_may_enter_after_a_promotion_as_before(
    make_overlay: MakeOverlay, make_daemon: MakeDaemon
) -> None:
    mounted = make_overlay(TREE)
    daemon = make_daemon(mount_policy(mounted, [{"path": "app/**", "promote": "always"}])).start()
    daemon.wait_state("active", b"app/home", b"app/around", b"app/mixed")
    assert as_artist(b"cat", mounted.at("app/home/private")).stdout == b"the artist's"
    for name in (b"app/home/private", b"app/mixed/secret"):
        stranger = subprocess.run(
            ["setpriv", "--reuid", "1234", "--regid", "1234", "--clear-groups", "cat", mounted.at(name)],
            capture_output=True,
            check=False,
        )
        assert stranger.returncode != 0
        assert b"ermission denied" in stranger.stderr
