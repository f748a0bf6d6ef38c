"""The suggested command is run, in a shell, and has to give a mount that is fit."""

import os
import shlex
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from promoterd.overlay import probe, syscalls
from promoterd.overlay.escapes import escape_option
from promoterd.overlay.fitness import is_fit, marking_findings
from promoterd.overlay.fitness_of_layers import layer_findings
from promoterd.overlay.mounts import Overlay, overlay_at
from promoterd.overlay.remedy import layout_command, shell_word, suggested_mount
from support.commands import promoterd
from support.facts import GOOD_FACTS, described
from support.overlays import MountedOverlay, unmount

MakeOverlay = Callable[..., MountedOverlay]
ODD = [
    b"a:b",
    b"c,d",
    b"e\\f",
    b"g h",
    b"n\nl",
    b"it's",
    b"$HOME",
    b"\xff\xfe",
    b"\xc3\xbc",
    b"t\\:\\",
    b"x,",
    b"*",
]


def suggestion(overlay: Overlay) -> str:
    return suggested_mount(overlay, probe.gather(overlay))


def follow(command: str) -> None:
    subprocess.run(["bash", "-ec", command], check=True)


def is_fit_now(mountpoint: bytes) -> bool:
    overlay = overlay_at(mountpoint)
    return is_fit(marking_findings(overlay, probe.gather(overlay)))


@pytest.mark.parametrize(
    "options",
    [
        "",
        "metacopy=off,redirect_dir=nofollow",
        "metacopy=off,index=on",
        "nfs_export=on,index=on",
        "metacopy=on,xino=on",
        "default_permissions,uuid=null",
    ],
)
def test_it_makes_the_mount_fit(make_overlay: MakeOverlay, options: str) -> None:
    made = make_overlay({"lib": {"a": b"1"}}, upper_fs="tmpfs", options=options)
    before = overlay_at(made.mountpoint)
    assert not is_fit_now(made.mountpoint) or "default_permissions" in options
    follow(suggestion(before))
    after = overlay_at(made.mountpoint)
    assert is_fit_now(made.mountpoint)
    assert after.layers == before.layers
    assert after.index == before.index
    assert b"default_permissions" not in before.other_options or b"default_permissions" in after.other_options


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.mark.needs("root", "overlay")
def test_odd_paths(tmp_path: Path, stack: ExitStack) -> None:
    base = bytes(tmp_path)
    layers = [base + b"/" + name for name in ODD]
    upper, work, target = base + b"/u:,\\'", base + b"/w \xfe,", base + b"/on 'it' \n\xff"
    for path in (*layers, upper, work, target):
        os.mkdir(path)
    data = b"lowerdir=%s,upperdir=%s,workdir=%s" % (
        b":".join(map(escape_option, layers)),
        escape_option(upper),
        escape_option(work),
    )
    syscalls.mount(b"a source", target, b"overlay", syscalls.MS_NOSUID, data)
    stack.callback(unmount, target)
    follow(suggestion(overlay_at(target)))
    after = overlay_at(target)
    assert [os.path.normpath(layer) for layer in after.lowers] == layers
    assert (after.upper, after.work, after.source) == (upper, work + b"/", b"a source")
    assert "nosuid" in after.mount_options
    assert is_fit_now(target)


def test_data_only_layers_stay(make_overlay: MakeOverlay) -> None:
    made = make_overlay({"lib": {"a": b"1"}}, data_lowers=[{"b": b"2"}, {"c": b"3"}])
    before = overlay_at(made.mountpoint)
    follow(suggestion(before))
    assert overlay_at(made.mountpoint).data_only == before.data_only == tuple(made.data_layers)


@pytest.mark.parametrize("options", ["userxattr", "volatile"])
def test_an_upper_layer_that_cannot_be_kept(make_overlay: MakeOverlay, options: str) -> None:
    made = make_overlay({"a": b"1"}, options=options)
    command = suggestion(overlay_at(made.mountpoint))
    assert options not in command
    assert (made.upper.decode() in command) == (options == "volatile")
    assert ("upperdir=/LOCAL-DISK/upper,workdir=/LOCAL-DISK/work" in command) == (options == "userxattr")


def test_what_only_the_admin_knows_is_in_capitals(make_overlay: MakeOverlay) -> None:
    overlay = overlay_at(make_overlay({}).mountpoint)
    facts = probe.gather(overlay)
    assert "upperdir=/LOCAL-DISK/upper" in suggested_mount(replace(overlay, upper=None, work=None), facts)
    assert "lowerdir=/ABSOLUTE-PATH-OF/rel" in suggested_mount(replace(overlay, lowers=(b"rel",)), facts)
    shared = replace(facts, second_users=("the overlay at /x",))
    assert "upperdir=/LOCAL-DISK/upper" in suggested_mount(overlay, shared)


@pytest.mark.parametrize("options", ["metacopy=off", "metacopy=on,verity=require", "metacopy=on,xino=on,volatile"])
def test_a_metadata_layer_stays_and_has_what_it_needs(make_overlay: MakeOverlay, options: str) -> None:
    made = make_overlay({"lib": {"a": b"1"}}, counting=True, layered=True, options=options)
    before = overlay_at(made.mountpoint)
    assert not is_fit(layer_findings(before, probe.gather(before)))
    incompatible = os.fsdecode(made.work) + "/work/incompat"
    command = suggestion(before)
    assert "index=off" in command
    follow(command.replace(" && ", f" && rm -rf {incompatible} && "))
    after = overlay_at(made.mountpoint)
    assert (after.metadata, after.data_only) == (before.metadata, before.data_only)
    assert is_fit(layer_findings(after, probe.gather(after)))


class TestLayout:
    """The command that says how to mount it with a metadata layer."""

    def test_of_a_mount_as_the_readme_makes_it(self) -> None:
        overlay = described(layers=b"lowerdir=/l,upperdir=/s/upper,workdir=/s/work")
        facts = replace(GOOD_FACTS, exports=(b"nas1:/export/so ft",))
        assert layout_command(overlay, facts) == (
            "promoterd layout --lower 'nas1:/export/so ft' --mountpoint /mnt/app --state /s"
        )

    def test_of_any_other(self) -> None:
        overlay = replace(described(), lowers=(b"/l", b"/m"))
        assert layout_command(overlay, GOOD_FACTS) == (
            "promoterd layout --lower SERVER:/EXPORT --lower SERVER:/EXPORT --mountpoint /mnt/app --upper /u --work /w"
        )
        assert layout_command(replace(overlay, upper=None), GOOD_FACTS).endswith(" --mountpoint /mnt/app")

    def test_it_is_one_that_can_be_run(self) -> None:
        overlay = described(layers=b"lowerdir=/l,upperdir=/var/lib/x/upper,workdir=/var/lib/x/work")
        facts = replace(GOOD_FACTS, exports=(b"nas1:/export",))
        ran = promoterd(*shlex.split(layout_command(overlay, facts))[1:], "--json")
        assert ran.code == 0, ran.out
        assert (ran.json["upper"], ran.json["layer"]) == ("/var/lib/x/upper", "/var/lib/x/layer")


@pytest.mark.parametrize("word", [*ODD, b'quo"te', b"", b"'", b"plain", b"\x01\\'\xff", b"-o"])
def test_a_word_is_what_a_shell_reads(word: bytes) -> None:
    printed = subprocess.check_output(["bash", "-c", f"printf '%s.' {shell_word(word)}"])
    assert printed == word + b"."
    assert shell_word(word).isprintable()
