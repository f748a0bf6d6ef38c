"""A mount with a policy, as an administrator has it, and no daemon."""

import os
from pathlib import Path
from typing import Any

import yaml

from support.daemons import mount_policy
from support.overlays import MountedOverlay
from support.trees import Tree, files

RULES = (
    {"path": "app", "growing": True},
    {"path": "app/never", "promote": "never"},
    {"path": "app/**", "writers": "none"},
)
TREE: Tree = {
    "app": {
        "lib": {**files(20), "sub": files(3), b"odd \xff\n[red]": b"odd"},
        "[red]": files(2),
        "never": files(2),
        "other": files(4),
    }
}


class Site:
    """An overlay, a policy for it, and where the state goes."""

    def __init__(self, mounted: MountedOverlay, base: Path, **policy: Any) -> None:
        self.mounted = mounted
        self.base = base
        self.state_dir = base / "state"
        self.socket = base / "control.sock"
        self.file = base / "policy.yaml"
        self.mount = mount_policy(mounted, RULES, quiet_period="0s")
        self.policy: dict[str, Any] = {
            "state_dir": str(self.state_dir),
            "control": {"socket": str(self.socket)},
            "metrics": {"listen": "127.0.0.1:0"},
            "mounts": [self.mount],
            **policy,
        }
        self.write()

    @property
    def config(self) -> str:
        return str(self.file)

    def write(self) -> None:
        self.file.write_text(yaml.safe_dump(self.policy), encoding="utf-8")

    def at(self, path: str) -> str:
        return os.fsdecode(self.mounted.at(path))
