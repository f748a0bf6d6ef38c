import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from promoterd.errors import NotPermitted, PolicyError, UsageError
from promoterd.overlay.fitness_of_hosts import NEEDED_CAPABILITIES, USEFUL_CAPABILITIES
from promoterd.policy import ControlPolicy, Policy

SYSTEMD = Path(__file__).parents[1] / "systemd"
UNIT = SYSTEMD / "promoterd.service"
COMMAND = "/opt/promoterd/bin/promoterd"

OWN_NAMESPACE = [
    *("PrivateMounts", "PrivateTmp", "PrivateDevices", "PrivateIPC", "ProtectSystem", "ProtectHome", "ProtectProc"),
    *("ProcSubset", "ProtectKernelTunables", "ProtectKernelModules", "ProtectKernelLogs", "ProtectControlGroups"),
    *("RootImage", "ReadOnlyPaths", "DynamicUser"),
]
"""Each of them was seen to put a service of systemd 252 into a mount namespace other than that of process 1."""


def settings() -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in UNIT.read_text().splitlines():
        if line and not line.startswith(("#", "[")):
            key, _, value = line.partition("=")
            found.setdefault(key, []).append(value)
    return found


def systemd_analyze(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["systemd-analyze", *arguments], capture_output=True, text=True, check=False, timeout=60)


@pytest.mark.needs("systemd-analyze")
def test_systemd_finds_nothing_wrong_with_the_unit(tmp_path: Path) -> None:
    copy = tmp_path / UNIT.name
    copy.write_text(UNIT.read_text().replace(COMMAND, "/bin/true"))  # it is not installed here
    verdict = systemd_analyze("verify", "--man=no", str(copy))
    ours = [line for line in (verdict.stdout + verdict.stderr).splitlines() if "promoterd" in line]
    assert (verdict.returncode, ours) == (0, [])
    copy.write_text(copy.read_text().replace("LockPersonality", "LockedPersonality"))
    assert "LockedPersonality" in systemd_analyze("verify", "--man=no", str(copy)).stderr


def test_events_and_errors_reach_the_journal() -> None:
    given = settings()
    # the default of standard error is to go where standard output goes (systemd.exec(5), StandardError=)
    assert given["StandardError"] == ["journal"] or "StandardOutput" not in given


@pytest.mark.needs("systemd-analyze")
def test_the_unit_is_no_more_exposed_than_the_job_needs() -> None:
    verdict = systemd_analyze("security", "--offline=yes", "--threshold=50", str(UNIT))
    assert verdict.returncode == 0, verdict.stdout


def test_what_is_left_out_is_named_and_what_needs_the_hosts_mounts_is_left_out() -> None:
    given = settings()
    text = UNIT.read_text()
    for name in OWN_NAMESPACE:
        assert name not in given
        assert f"{name}=" in text
    for name in ("RestrictSUIDSGID", "User", "PrivateUsers", "PrivateNetwork", "ProtectClock"):
        assert name not in given
        assert re.search(rf"^# {name}= +\w", text, re.MULTILINE)


def test_the_capabilities_are_those_that_doctor_asks_for_each_with_its_reason() -> None:
    (granted,) = settings()["CapabilityBoundingSet"]
    assert set(granted.split()) == {*NEEDED_CAPABILITIES, *USEFUL_CAPABILITIES}
    for capability in granted.split():
        assert re.search(rf"^# {capability} +\S", UNIT.read_text(), re.MULTILINE)


def test_no_restart_can_mend_what_the_service_is_not_restarted_for() -> None:
    (codes,) = settings()["RestartPreventExitStatus"]
    assert [int(code) for code in codes.split()] == [
        error.exit_code for error in (UsageError, PolicyError, NotPermitted)
    ]


def test_the_directories_are_those_of_the_default_policy() -> None:
    given = settings()
    assert str(Policy.model_fields["state_dir"].default) == f"/var/lib/{given['StateDirectory'][0]}"
    assert os.path.dirname(ControlPolicy().socket) == f"/run/{given['RuntimeDirectory'][0]}"
    assert given["ExecStart"][0].endswith(f"--config /etc/{given['ConfigurationDirectory'][0]}/policy.yaml")
    assert given["ExecReload"][0].startswith(f"{COMMAND} check ")


TRIAL = """
import ctypes, runpy, sys
# PR_SET_MDWE, Linux 6.3: what MemoryDenyWriteExecute= does; EINVAL on an older kernel
ctypes.CDLL(None).prctl(65, 1, 0, 0, 0)
import promoterd.control, promoterd.inotify, promoterd.ledger, promoterd.log, promoterd.metrics, promoterd.notify
runpy.run_module("promoterd.overlay.trial", run_name="__main__")
"""


@pytest.mark.needs("root", "overlay", "setpriv")
def test_the_granted_capabilities_are_enough_for_overlayfs() -> None:
    (granted,) = settings()["CapabilityBoundingSet"]
    bounding = ",".join(["-all", *(f"+{name.removeprefix('CAP_').lower()}" for name in granted.split())])
    restricted = ["setpriv", f"--bounding-set={bounding}", "--inh-caps=-all", "--no-new-privs"]
    trials = [
        json.loads(subprocess.run([*before, sys.executable, "-c", TRIAL], capture_output=True, check=True).stdout)
        for before in ([], restricted)
    ]
    assert trials[0] == trials[1]
    assert trials[0]["error"] == ""
    assert trials[0]["opaque_takes_effect"]


def calls_of(group: str) -> set[str]:
    """The system calls of one of systemd's sets, with those of the sets in it."""
    members = systemd_analyze("syscall-filter", group).stdout.split()[1:]
    found = {name for name in members if not name.startswith("@")}
    return found.union(*(calls_of(name) for name in members if name.startswith("@")))


@pytest.mark.needs("systemd-analyze")
def test_the_filter_names_the_calls_that_the_set_for_services_lacks() -> None:
    allowed, _ = settings()["SystemCallFilter"]
    served, named = calls_of("@system-service"), set(allowed.split())
    assert {"inotify_add_watch", "openat2", "statx"} <= served
    for call in ("fspick", "fsconfig", "mount", "umount2", "fanotify_init", "fanotify_mark"):
        assert call not in served
        assert call in named


@pytest.mark.needs("root", "setpriv")
def test_the_granted_capabilities_are_enough_for_fanotify() -> None:
    (granted,) = settings()["CapabilityBoundingSet"]
    for names, lack in ((granted, "None"), (granted.replace("CAP_SYS_ADMIN ", ""), "it needs CAP_SYS_ADMIN")):
        bounding = ",".join(["-all", *(f"+{name.removeprefix('CAP_').lower()}" for name in names.split())])
        restricted = ["setpriv", f"--bounding-set={bounding}", "--inh-caps=-all", "--no-new-privs"]
        script = "from promoterd import fanotify; print(fanotify.lack())"
        said = subprocess.run([*restricted, sys.executable, "-c", script], capture_output=True, text=True, check=True)
        assert said.stdout.startswith(lack)


@pytest.mark.needs("root", "systemd-sysusers")
def test_the_group_is_made(tmp_path: Path) -> None:
    os.mkdir(tmp_path / "etc")
    configuration = SYSTEMD / "promoterd.sysusers.conf"
    subprocess.run(["systemd-sysusers", f"--root={tmp_path}", str(configuration)], check=True, capture_output=True)
    assert "promoterd:x:" in (tmp_path / "etc" / "group").read_text()
    assert not (tmp_path / "etc" / "passwd").exists()
