"""From a recorded run to a warm mount, on real NFS: what the next run asks the server."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from lab.guest import rpcs
from lab.guest.stack import Nfs, cool
from promoterd.heatlist import read_list
from support.daemons import RunningDaemon, mount_policy
from support.overlays import MountedOverlay
from support.trees import Tree, files

MakeOverlay = Callable[..., MountedOverlay]
PLACES, NAMES = 20, 25
TREE: Tree = {"app": {f"d{number:02}": files(10) for number in range(PLACES)}}
RULES = ({"path": "app", "growing": True}, {"path": "app/**", "xattrs": "skip"})
SEARCH = f"""
import os, sys
for place in range({PLACES}):
    for name in range({NAMES}):
        assert not os.path.exists(f"{{sys.argv[1]}}/app/d{{place:02}}/lib{{name}}.so")
    os.stat(f"{{sys.argv[1]}}/app/d{{place:02}}/f0000")
"""


@pytest.mark.parametrize(
    "through_daemon",
    [pytest.param(False, marks=pytest.mark.thorough), True],
    ids=["directly", "at the start of the daemon"],
)
@pytest.mark.parametrize("layered", [False, pytest.param(True, marks=pytest.mark.thorough)], ids=["opaque", "layer"])
def test_what_was_recorded_asks_for_no_missing_name(
    make_overlay: MakeOverlay, make_daemon: Any, tmp_path: Path, *, layered: bool, through_daemon: bool
) -> None:
    mounted = make_overlay(TREE, Nfs("4.2", "actimeo=600"), layered=layered)
    section = mount_policy(mounted, RULES, backend="layer" if layered else "opaque", heat={"threshold": 1e6})
    section["limits"]["start_spread"] = 0
    policy, file = tmp_path / "policy.yaml", f"{tmp_path}/heat.yaml"
    policy.write_text(yaml.safe_dump({"state_dir": f"{tmp_path}/state", "mounts": [section]}))
    search = [sys.executable, "-I", "-S", "-c", SEARCH, os.fsdecode(mounted.mountpoint)]
    promoterd = [sys.executable, "-m", "promoterd"]
    subprocess.run([*promoterd, "record", "-o", file, "-c", str(policy), "--", *search], check=True)
    (uses,) = read_list([file]).mounts.values()
    assert {path: (found.misses, found.finds) for path, found in uses.items()} == {
        b"app/d%02d" % number: (NAMES, 1) for number in range(PLACES)
    }

    def missing() -> int:
        cool(mounted)
        with rpcs.counted() as counts:
            subprocess.run(search, check=True)
        return counts.missing

    assert missing() == PLACES * NAMES
    if through_daemon:
        daemon: RunningDaemon = make_daemon({**section, "warm": [file]})
        with daemon.start():
            daemon.wait_state("active", *uses)
            assert missing() == 0
    else:
        subprocess.run([*promoterd, "warm", file, "-c", str(policy)], check=True)
        assert missing() == 0
