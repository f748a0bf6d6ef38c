"""What ``promoterd layout`` says is mounted on real NFS, is fit for a metadata layer, and is read through."""

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import count

import pytest

from lab.guest import rpcs, server
from lab.guest.lookups import find, miss
from lab.guest.stack import Nfs, cool, layered_on, mounted_nfs, need_data_only_layers, upper_home
from promoterd.layout.rehearsal import try_layers
from promoterd.overlay import probe
from promoterd.overlay.fitness import is_fit
from promoterd.overlay.fitness_of_layers import layer_findings
from promoterd.overlay.mounts import overlay_at
from support.commands import promoterd
from support.layers import complete
from support.overlays import MountedOverlay, unmount
from support.trees import Symlink, Tree, build, files

MakeOverlay = Callable[..., MountedOverlay]
NAMES = 40
TREE: Tree = {"lib": {**files(5), "link": Symlink("f0000"), "sub": files(2)}, "README": b"hello"}
VERSIONS = pytest.mark.parametrize("version", ["4.2", "3"])
VERSIONS_IF_THOROUGH = pytest.mark.parametrize("version", ["4.2", pytest.param("3", marks=pytest.mark.thorough)])
_NUMBERS = count(1)


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


class Place:
    """A tree on the server, a local file system, and the arguments that lay an overlay out on them."""

    def __init__(self, stack: ExitStack, version: str) -> None:
        need_data_only_layers()
        self.base = b"/mnt/layout%d" % next(_NUMBERS)
        self.server = server.EXPORT + self.base
        build(self.server, TREE)
        self.state = stack.enter_context(upper_home("tmpfs", self.base + b"/local"))
        self.mountpoint = self.base + b"/ovl"
        nfs = Nfs(version)
        self.arguments = [
            *("--lower", nfs.source(self.server), "--nfs-options", f"ro,{nfs.mount_options}"),
            *("--mountpoint", os.fsdecode(self.mountpoint), "--state", os.fsdecode(self.state)),
            *("--lower-mountpoint", os.fsdecode(self.base + b"/lower")),
            *("--data-mountpoint", os.fsdecode(self.base + b"/data")),
        ]
        for name in (b"lower", b"data", b"ovl"):  # unmounted in the opposite order
            os.makedirs(self.base + b"/" + name)
            stack.callback(unmount, self.base + b"/" + name, 20.0)

    def check(self) -> None:
        """It shows what the server has, and nothing speaks against a metadata layer."""
        seen = {
            os.path.relpath(root, self.mountpoint): (sorted(below), sorted(names))
            for root, below, names in os.walk(self.mountpoint)
        }
        there = {
            os.path.relpath(root, self.server): (sorted(below), sorted(names))
            for root, below, names in os.walk(self.server)
        }
        assert seen == there
        for name in (b"README", b"lib/f0001", b"lib/sub/f0000"):
            with open(self.mountpoint + b"/" + name, "rb") as ours, open(self.server + b"/" + name, "rb") as theirs:
                assert ours.read() == theirs.read()
        top, export = os.stat(self.mountpoint), os.stat(self.server)
        assert (top.st_mode, top.st_uid, top.st_mtime_ns) == (export.st_mode, export.st_uid, export.st_mtime_ns)
        overlay = overlay_at(self.mountpoint)
        assert overlay.layer_home == self.state + b"/layer"
        facts = probe.gather(overlay)
        findings = layer_findings(overlay, facts)
        assert is_fit(findings), findings
        assert facts.exports == (self.arguments[1].encode(),)


@VERSIONS_IF_THOROUGH
def test_the_commands_mount_it(stack: ExitStack, version: str) -> None:
    place = Place(stack, version)
    ran = promoterd("layout", *place.arguments, "--format", "commands", "--check")
    assert ran.code == 0, ran.err
    assert "was read through it" in ran.err
    assert os.listdir(place.state) == [], "what was checked is thrown away"
    subprocess.run(["sh", "-e", "-c", ran.out], check=True)
    place.check()


@VERSIONS
def test_the_lines_of_fstab_mount_it(stack: ExitStack, version: str) -> None:
    place = Place(stack, version)
    ran = promoterd("layout", *place.arguments, "--format", "fstab", "--write", "--json")
    assert ran.code == 0, ran.out
    try:
        for step in ran.json["next"]:
            if not step.startswith("systemctl "):
                subprocess.run(["sh", "-e", "-c", step], check=True)
        place.check()
    finally:
        os.unlink("/etc/fstab")


def test_a_check_says_what_the_server_refuses(stack: ExitStack) -> None:
    place = Place(stack, "4.2")
    place.arguments[1] += "/not-there"
    ran = promoterd("layout", *place.arguments, "--check")
    assert ran.code == 6
    assert "/not-there" in ran.err
    assert "No such file" in ran.err


@pytest.mark.parametrize(("more", "mounts"), [("", False), ("nosharecache", True)])
def test_why_the_second_mount_has_a_superblock_of_its_own(stack: ExitStack, more: str, mounts: bool) -> None:
    need_data_only_layers()
    base = b"/mnt/layout%d" % next(_NUMBERS)
    build(server.EXPORT + base, TREE)
    home = stack.enter_context(upper_home("tmpfs", base + b"/local"))
    trees = [
        stack.enter_context(mounted_nfs(Nfs("4.2", options), server.EXPORT + base, base + name))
        for name, options in ((b"/lower", ""), (b"/data", more))
    ]
    os.mkdir(base + b"/view")
    seen = try_layers([(trees[0], trees[1])], home + b"/try", base + b"/view")
    assert (seen.failed == "") == mounts, seen
    assert mounts or "symbolic links" in seen.reason


def test_two_exports(stack: ExitStack) -> None:
    need_data_only_layers()
    base = b"/mnt/layout%d" % next(_NUMBERS)
    directories = [server.EXPORT + base + name for name in (b"/one", b"/two")]
    trees: list[Tree] = [{"lib": files(2)}, {"lib": {"g": b"2"}, "doc": files(1)}]
    for directory, tree in zip(directories, trees, strict=True):
        build(directory, tree)
    home = stack.enter_context(upper_home("tmpfs", base + b"/local"))
    mounted = stack.enter_context(layered_on(Nfs("4.2"), home, directories=directories, at=base))
    overlay = overlay_at(mounted.mountpoint)
    assert is_fit(layer_findings(overlay, probe.gather(overlay)))
    assert sorted(os.listdir(mounted.at("lib"))) == [b"f0000", b"f0001", b"g"]
    assert os.listdir(mounted.at("doc")) == [b"f0000"]


@VERSIONS
def test_a_complete_directory_asks_the_server_nothing_but_for_the_way(make_overlay: MakeOverlay, version: str) -> None:
    mounted = make_overlay({"lib": files(NAMES)}, Nfs(version, "actimeo=600"), layered=True)
    complete(mounted, b"lib")
    for work in (find, miss):
        cool(mounted)
        with rpcs.counted() as counts:
            work(mounted.at("lib"), NAMES)
        assert counts.missing == 0
        assert counts.total <= 6, f"{work.__name__}: only for the directories on the way"
    with open(mounted.at("lib/f0003"), "rb") as ours, open(mounted.on_server("lib/f0003"), "rb") as theirs:
        assert ours.read() == theirs.read()
