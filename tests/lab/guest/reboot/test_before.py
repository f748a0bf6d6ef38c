"""The first of two boots: directories are completed, and the machine is switched off."""

import json

from lab.guest.reboot.stage import MARKED, RELEASE, STATE, VIEW, staged, view
from support.daemons import RunningDaemon, mount_policy


def test_directories_are_completed() -> None:
    with staged(fresh=True) as mounted, RunningDaemon(b"/run/daemon", state_dir=STATE) as daemon:
        before = view(mounted)
        release = RELEASE.decode()
        rules = [{"path": f"{release}/{path}", "promote": "always"} for path in ("*", "**")]
        daemon.policy["mounts"] = [mount_policy(mounted, rules)]
        daemon.start()
        daemon.wait_state("active", *MARKED)
        assert view(mounted) == before
        with open(VIEW, "w", encoding="ascii") as file:
            json.dump(before, file)
