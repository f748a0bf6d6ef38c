"""A real tracing instance; what counts in one needs the NFS client, and is tested in the lab."""

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from promoterd.heat import tracefs

_MAKE = """\
import json, os
from promoterd.heat.tracefs import Instance
made = Instance()
read = lambda name: open(f"{made.path}/{name}").read().split()
print(json.dumps({"path": made.path, "left_out": read("set_event_notrace_pid"), "buffer": read("buffer_size_kb")}))
"""


def run(code: str) -> Any:
    """Run code where tracefs is mounted and nobody else sees that."""
    mounted = f'mount -t tracefs tracefs {tracefs.ROOT} && exec "$0" -c "$1"'
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", mounted, sys.executable, code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.needs("root", "tracefs")
def test_an_instance_is_small_and_looks_at_no_context_switch() -> None:
    made = run(_MAKE + "made.remove()\nassert not os.path.exists(made.path)\n")
    assert made["left_out"] == []
    assert int(made["buffer"][0]) < 16


@pytest.mark.needs("root", "tracefs")
def test_what_a_crash_leaves_is_removed_and_nothing_else() -> None:
    crashed = run(_MAKE + "import sys; sys.stdout.flush(); os._exit(0)\n")
    name = os.path.basename(crashed["path"])
    foreign = name.replace("promoterd_", "promoterd_1", 1)
    code = f"""\
import json, os
from promoterd.heat.tracefs import Instance, remove_leftovers
os.mkdir(f"/sys/kernel/tracing/instances/{foreign}")
own = Instance()
removed = remove_leftovers()
there = os.listdir("/sys/kernel/tracing/instances")
own.remove()
os.rmdir(f"/sys/kernel/tracing/instances/{foreign}")
print(json.dumps([removed, there, os.path.basename(own.path)]))
"""
    removed, there, own = run(code)
    assert removed == [name]
    assert sorted(there) == sorted([own, foreign])


@pytest.mark.needs("root", "tracefs")
def test_what_is_lacking_is_named() -> None:
    assert "has no event nfs/no_such" in run(
        "import json\nfrom promoterd.heat.tracefs import lacking\nprint(json.dumps(lacking('nfs/no_such')))\n"
    )


def test_without_tracefs_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracefs, "_INSTANCES", "/nowhere")
    assert "mount -t tracefs" in str(tracefs.lacking("nfs/nfs_lookup_exit"))
