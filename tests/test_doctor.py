import errno
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from promoterd import doctor
from promoterd.errors import MountNotFound
from promoterd.overlay import probe
from promoterd.overlay.lock import WriterLock
from promoterd.policy import MountPolicy
from support.overlays import MountedOverlay

MakeOverlay = Callable[..., MountedOverlay]


def rendered(report: doctor.Report, width: int = 1000) -> str:
    out = StringIO()
    doctor.render(report, Console(file=out, width=width))
    return out.getvalue()


def one(made: MountedOverlay) -> doctor.OverlayReport:
    (found,) = doctor.examine(made.mountpoint).overlays
    return found


def test_a_fit_mount(make_overlay: MakeOverlay) -> None:
    made = make_overlay({"lib": {"a": b"1"}}, counting=True)
    report = doctor.examine(made.mountpoint)
    (found,) = report.overlays
    assert found.auto == "opaque"
    assert found.why == "finalize is unfit (kernel), layer is unfit (layout)"
    assert {verdict.backend: verdict.fit for verdict in found.verdicts} == {
        "finalize": False,
        "layer": False,
        "opaque": True,
        "prime": True,
        "observe": True,
    }
    assert found.instead is None
    text = rendered(report)
    assert "never merged" in text
    assert "auto takes" in text
    assert "Mount instead" not in text
    assert made.mountpoint.decode() in text


def test_an_unfit_mount(make_overlay: MakeOverlay) -> None:
    made = make_overlay({"lib": {"a": b"1"}}, options="metacopy=off")
    found = one(made)
    assert found.auto == "observe"
    assert "opaque is unfit (metacopy" in found.why
    assert found.instead is not None
    assert found.findings[0].severity == "refuse"
    text = rendered(doctor.examine(made.mountpoint), width=100)
    assert f"{found.instead}\n" in text, "the command is on one line, to be copied"

    subprocess.run(["bash", "-ec", found.instead], check=True)
    assert one(made).auto == "opaque"


def test_a_mount_with_a_metadata_layer(make_overlay: MakeOverlay) -> None:
    made = make_overlay({"lib": {"a": b"1"}}, counting=True, layered=True, upper_fs="ext4")
    report = doctor.examine(made.mountpoint)
    text = rendered(report)
    for half, what in zip(made.metadata, ("files", "the rest"), strict=True):
        assert f"{half.decode()} ({what}, on ext4)" in text
    assert one(made).auto == "layer"
    found = report.to_dict()
    (overlay,) = json.loads(json.dumps(found))["overlays"]
    assert overlay["layer"] == [half.decode() for half in made.metadata]
    assert overlay["lower"] == [layer.decode() for layer in made.layers]
    assert overlay["layout"] is None


def test_a_mount_without_one_is_told_how_to_get_it(make_overlay: MakeOverlay) -> None:
    made = make_overlay({"lib": {"a": b"1"}})
    report = doctor.examine(made.mountpoint)
    text = rendered(report, width=100)
    assert "none: lookups, stat and listings" in text.replace("\n", " ")
    command = one(made).layout
    assert command is not None
    assert command.startswith("promoterd layout --lower SERVER:/EXPORT --mountpoint ")
    assert f"{command}\n" in text, "the command is on one line, to be copied"
    assert one(made).instead is None, "what it has is fit for opaque as it is"


def test_half_a_layout_is_none(make_overlay: MakeOverlay) -> None:
    made = make_overlay({"lib": {"a": b"1"}}, counting=True, layered=True, mount=False)
    made.data_layers = []
    made.mount()
    assert one(made).layout is not None


def test_a_kernel_without_data_only_layers_is_not_sent_there(
    make_overlay: MakeOverlay, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make_overlay({})
    host = probe.host()
    monkeypatch.setattr(probe, "host", lambda: replace(host, trial=replace(host.trial, lazy_data=False)))
    assert one(made).layout is None


def test_paths_are_not_taken_for_markup(make_overlay: MakeOverlay, tmp_path: Path) -> None:
    made = make_overlay({}, mount=False)
    odd = bytes(tmp_path) + b"/[bold red]x[red] \n\xff"
    os.mkdir(odd)
    made.layers = [odd]
    made.mount()
    text = rendered(doctor.examine(made.mountpoint))
    assert r"[bold red]x[red] \n\xff" in text


def test_all_overlays_of_the_machine(make_overlay: MakeOverlay) -> None:
    first, second = make_overlay({}), make_overlay({}, options="metacopy=off")
    report = doctor.examine()
    found = {overlay.overlay.mountpoint: overlay.auto for overlay in report.overlays}
    assert found[first.mountpoint] == "opaque"
    assert found[second.mountpoint] == "observe"


def test_no_overlay_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "read_overlays", list)
    text = rendered(doctor.examine())
    assert "No overlay is mounted here" in text
    assert "inotify" in text


def test_a_path_that_is_no_overlay(tmp_path: Path) -> None:
    with pytest.raises(MountNotFound):
        doctor.examine(bytes(tmp_path))


def test_for_programs(make_overlay: MakeOverlay) -> None:
    made = make_overlay([{"a": b"1"}, {"b": b"2"}], options="metacopy=off,redirect_dir=nofollow")
    found = json.loads(json.dumps(doctor.examine(made.mountpoint).to_dict()))
    assert found["host"]["redirect_max"] > 0
    assert found["host"]["trial"]["metacopy"] is True
    assert "CAP_SYS_ADMIN" in found["host"]["capabilities"]
    (overlay,) = found["overlays"]
    assert overlay["mountpoint"] == made.mountpoint.decode()
    assert overlay["lower"] == [layer.decode() for layer in made.layers]
    assert overlay["options"]["redirect_dir"] == "nofollow"
    assert overlay["backends"]["observe"] == {"fit": True, "findings": []}
    refused = [finding for finding in overlay["backends"]["opaque"]["findings"] if finding["severity"] == "refuse"]
    assert [finding["option"] for finding in refused] == ["metacopy", "redirect_dir"]
    assert set(refused[0]) == {"severity", "option", "message", "remedy"}
    assert overlay["auto"]["backend"] == "observe"
    assert overlay["mount_instead"].startswith("umount ")
    assert overlay["writer"] is None


def test_heat_sources(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "read_overlays", list)
    report = doctor.examine()
    found = report.to_dict()["heat_sources"]
    assert isinstance(found, dict)
    for name in ("inotify", "fanotify"):
        assert found[name] == {"fit": True, "reason": None}
        assert re.search(rf"heat source {name}\W+fit\b", rendered(report))

    def no_limit() -> int:
        raise OSError(errno.ENOENT, "No such file or directory")

    def names() -> list[str]:
        return ["gone", "inotify"]

    monkeypatch.setattr("promoterd.heat.inotify.watch_limit", no_limit)
    monkeypatch.setattr("promoterd.heat.base.names", names)
    report = doctor.examine()
    text = rendered(report)
    assert report.heat_sources == {
        "gone": "there is no heat source gone",
        "inotify": "this kernel has no inotify: [Errno 2] No such file or directory",
    }
    assert re.search(r"heat source gone\W+unfit: there is no heat source gone; name another in the policy", text)
    assert "unfit: this kernel has no inotify" in text
    assert json.loads(json.dumps(report.to_dict()))["heat_sources"]["inotify"]["fit"] is False


def in_one_line(report: doctor.Report) -> str:
    return " ".join(rendered(report, width=200).replace("│", " ").split())


def test_where_heat_would_come_from(make_overlay: MakeOverlay, monkeypatch: pytest.MonkeyPatch) -> None:
    served, local = make_overlay({}, counting=True), make_overlay({})
    assert list(one(served).heat.taken) == ["inotify"]
    assert list(one(local).heat.taken) == ["fanotify"]
    monkeypatch.setattr("promoterd.fanotify.lack", lambda: "it needs CAP_SYS_ADMIN")
    found = one(local)
    assert found.heat.taken == {"inotify": "instead of fanotify: it needs CAP_SYS_ADMIN"}
    text = in_one_line(doctor.examine(local.mountpoint))
    assert "heat from inotify (instead of fanotify: it needs CAP_SYS_ADMIN)" in text
    assert "and not from nfs-trace (no lower layer lies on NFS)" in text
    assert "heat source fanotify unfit: it needs CAP_SYS_ADMIN; name another" in text
    policy = MountPolicy.model_validate(
        {"mountpoint": os.fsdecode(local.mountpoint), "heat": {"source": "fanotify"}, "rules": [{"path": "**"}]}
    )
    (overlay,) = doctor.examine(local.mountpoint, {local.mountpoint: policy}).overlays
    assert overlay.to_dict()["heat"] == {
        "source": "fanotify",
        "taken": {"inotify": "instead of fanotify: it needs CAP_SYS_ADMIN"},
        "left": {"fanotify": "it needs CAP_SYS_ADMIN"},
    }
    monkeypatch.setattr("promoterd.heat.inotify.InotifySource.unfit", lambda: "no inotify")
    assert "heat from nothing" in in_one_line(doctor.examine(local.mountpoint))


def test_a_running_writer_is_named(make_overlay: MakeOverlay) -> None:
    made = make_overlay({})
    with WriterLock(made.upper):
        found = one(made)
    assert found.auto == "opaque", "a writer is no reason against the mount"
    assert f"pid {os.getpid()}" in found.facts.writer
    assert f"pid {os.getpid()}" in rendered(doctor.Report(found.facts.host, [found]))


def test_without_privileges_it_explains_and_does_not_fail(make_overlay: MakeOverlay) -> None:
    made = make_overlay({"lib": {"a": b"1"}})
    code = (
        "import os, sys, json\n"
        "from promoterd import doctor\n"
        "from promoterd.backends import base\n"
        "[base.load(name) for name in base.names()]\n"
        "from rich.console import Console\n"
        "os.setgroups([]); os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)\n"
        "report = doctor.examine(os.fsencode(sys.argv[1]))\n"
        "doctor.render(report, Console(width=200))\n"
        "assert report.overlays[0].auto == 'observe'\n"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code, made.mountpoint], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "lacks CAP_SYS_ADMIN" in done.stdout
    assert "processes that may not be looked into" in done.stdout
    assert "Traceback" not in done.stderr
