"""Units are verified by systemd, lines of fstab read by its generator, commands run by bash."""

import os
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from promoterd.errors import UsageError
from promoterd.layout import texts
from promoterd.layout.plan import Layout, Wanted, plan
from support.needs import FSTAB_GENERATOR

WANTED = Wanted([b"nas1:/export/soft"], b"/srv/soft")
ODD = Wanted(
    [b"nas1:/export/so ft", b"[2001:db8::1]:/t%o"],
    "/srv/a b-ü%".encode(),
    b"/st a:te,x%",
    None,
    None,
    [b"/mnt/l 1", b"/mnt/l-2"],
    [b"/mnt/d1,x", b"/mnt/d2"],  # systemd-analyze takes what follows a colon for an alias
    b"vers=3,soft",
)


def settings(unit: str, key: str) -> list[str]:
    return re.findall(rf"^{key}=(.*)$", unit, re.MULTILINE)


@pytest.mark.needs("systemd-analyze")
@pytest.mark.parametrize("wanted", [WANTED, ODD, replace(WANTED, state=b"/" + b"s" * 120)])
def test_systemd_finds_nothing_wrong_with_the_units(tmp_path: Path, wanted: Wanted) -> None:
    units = texts.units(plan(wanted))
    for name, text in units.items():
        (tmp_path / name).write_text(text, "utf-8")
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *(str(tmp_path / name) for name in units)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env=os.environ | {"SYSTEMD_UNIT_PATH": f"{tmp_path}:"},
    )
    ours = [line for line in (done.stdout + done.stderr).splitlines() if any(name in line for name in units)]
    assert (done.returncode, ours) == (0, [])
    broken = tmp_path / next(iter(units))
    broken.write_text(broken.read_text("utf-8").replace("Where=/mnt", "Where=/mnd"), "utf-8")
    again = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(broken)], capture_output=True, text=True, check=False, timeout=60
    )
    assert broken.name in again.stderr, "and it would find something"


def test_the_overlay_needs_its_servers_and_comes_before_the_daemon() -> None:
    layout = plan(ODD)
    *servers, (name, overlay) = texts.units(layout).items()
    assert name == "srv-a\\x20b\\x2d\\xc3\\xbc\\x25.mount"
    for key in ("Requires", "After"):
        assert settings(overlay, key)[0].split(" ") == [server for server, _ in servers]
    assert settings(overlay, "Before") == ["promoterd.service"]
    assert settings(overlay, "RequiresMountsFor") == [
        '"/st a:te,x%%/upper" "/st a:te,x%%/work" "/st a:te,x%%/layer"',
    ]
    assert settings(overlay, "Options") == [os.fsdecode(layout.overlay_options).replace("%", "%%") + ",_netdev"]
    for _, server in servers:
        assert settings(server, "After") == ["network-online.target"]
        assert settings(server, "Type") == ["nfs"]
    options = [settings(server, "Options")[0] for _, server in servers]
    assert options == ["vers=3,soft,_netdev", "vers=3,soft,nosharecache,_netdev"] * 2
    assert settings(servers[0][1], "What") == ["nas1:/export/so ft"]
    assert settings(servers[2][1], "What") == ["[2001:db8::1]:/t%%o"]


def test_long_values_are_for_the_old_mount_call() -> None:
    long = plan(replace(WANTED, state=b"/" + b"x" * 120))
    *_, overlay = texts.units(long).values()
    assert settings(overlay, "Environment") == ["LIBMOUNT_FORCE_MOUNT2=always"]
    assert texts.commands(long)[-1].startswith("LIBMOUNT_FORCE_MOUNT2=always mount -t overlay")
    with pytest.raises(UsageError, match="255 bytes"):
        texts.fstab(long)
    *_, short = texts.units(plan(WANTED)).values()
    assert settings(short, "Environment") == []


@pytest.mark.needs("systemd-fstab-generator")
@pytest.mark.parametrize("wanted", [WANTED, replace(ODD, state=b"/st,ate%")])
def test_systemd_makes_the_same_units_of_the_lines_of_fstab(tmp_path: Path, wanted: Wanted) -> None:
    layout = plan(wanted)
    (tmp_path / "fstab").write_text("".join(f"{line}\n" for line in texts.fstab(layout)), "utf-8")
    out = tmp_path / "out"
    out.mkdir()
    subprocess.run([FSTAB_GENERATOR, out, out, out], env={"SYSTEMD_FSTAB": str(tmp_path / "fstab")}, check=True)
    for name, text in texts.units(layout).items():
        made = (out / name).read_text("utf-8")
        for key in ("What", "Where", "Type", "Requires"):
            assert settings(made, key) == settings(text, key), name
        assert settings(made, "Options")[0].startswith(settings(text, "Options")[0])
        assert "remote-fs.target" in settings(made, "Before")
    assert "promoterd.service" in settings(made, "Before")
    local = " ".join(os.fsdecode(path) for path in (layout.upper, layout.work, layout.home))
    assert settings(made, "RequiresMountsFor") == [local.replace("%", "%%")]


@pytest.mark.parametrize("changes", [{"state": b"/a b"}, {"state": b"/a\\b"}, {"lower_mountpoints": [b"/a\\b"]}])
def test_what_fstab_cannot_say(changes: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="backslash in fstab") as raised:
        texts.fstab(plan(replace(WANTED, **changes)))
    assert "--format units" in (raised.value.hint or "")


def test_bytes_that_only_commands_can_say() -> None:
    layout = plan(replace(WANTED, lowers=[b"nas1:/\xff"]))
    for written in (texts.units, texts.fstab):
        with pytest.raises(UsageError, match="UTF-8"):
            written(layout)
    assert "nas1:/$'\\xff'" in texts.commands(layout)[1] or "$'nas1:/\\xff'" in texts.commands(layout)[1]


def shell(*commands: str) -> None:
    subprocess.run(["bash", "-e"], input="\n".join(commands).encode(), check=True)


def below(base: Path, **changes: object) -> Layout:
    root = bytes(base)
    wanted = Wanted(
        [b"nas1:/export"], root + b"/ovl", root + b"/st $a'te\xff", None, None, [root + b"/l"], [root + b"/d"]
    )
    return plan(replace(wanted, **changes))  # type: ignore[arg-type]


@pytest.mark.needs("root", "overlay")
def test_the_commands_make_directories_that_the_overlay_mounts_on(tmp_path: Path) -> None:
    layout = below(tmp_path)
    first, *_, overlay = texts.commands(layout)
    assert [command.split()[:3] for command in texts.commands(layout)[1:3]] == [["mount", "-t", "nfs"]] * 2
    shell(first)
    (tmp_path / "l" / "file").write_text("server's")
    os.chmod(tmp_path / "l", 0o2770)
    os.chown(tmp_path / "l", 12, 34)
    os.utime(tmp_path / "l", (1e9, 1e9))
    shell(*texts.directories(layout), overlay)
    try:
        top = os.stat(tmp_path / "ovl")
        assert (top.st_mode & 0o7777, top.st_uid, top.st_gid, top.st_mtime) == (0o2770, 12, 34, 1e9)
        assert os.listdir(tmp_path / "ovl") == ["file"]
        assert os.stat(layout.home).st_mode & 0o777 == 0o700
    finally:
        subprocess.run(["umount", tmp_path / "ovl"], check=True)
    os.chmod(layout.upper, 0o700)
    shell(*texts.directories(layout))
    assert os.stat(layout.upper).st_mode & 0o777 == 0o700, "an upper layer that is there is left as it is"
    shutil.rmtree(layout.work)


def test_the_steps_that_mount_what_was_written() -> None:
    layout = plan(WANTED)
    reload, lower, upper, everything = texts.steps(layout, fstab=False)
    assert reload == "systemctl daemon-reload"
    assert lower == "systemctl start 'mnt-promoterd-srv\\x2dsoft-lower.mount'"
    assert upper == texts.new_upper(layout)
    assert everything.startswith("systemctl enable --now ")
    assert everything.endswith(" srv-soft.mount")
    assert texts.steps(layout, fstab=True) == [
        reload,
        "mount /mnt/promoterd/srv-soft/lower",
        "mount /mnt/promoterd/srv-soft/data",
        upper,
        "mount /srv/soft",
    ]
