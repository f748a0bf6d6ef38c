"""The second boot: what was complete still is, also before the daemon has been started."""

import json

from lab.guest import rpcs
from lab.guest.lookups import miss
from lab.guest.reboot.stage import MARKED, RELEASE, STATE, VIEW, staged, view
from lab.guest.stack import cool
from support.daemons import RunningDaemon, mount_policy
from support.promotions import assert_marks_are_sound


def test_they_are_complete_still() -> None:
    with staged(fresh=False) as mounted:
        with open(VIEW, encoding="ascii") as file:
            assert view(mounted) == json.load(file)
        assert set(MARKED) <= set(assert_marks_are_sound(mounted))
        cool(mounted)
        with rpcs.counted() as counts:
            for directory in MARKED:
                miss(mounted.at(directory), 40)
        assert counts.missing == 0
        with RunningDaemon(b"/run/daemon", state_dir=STATE) as daemon:
            daemon.policy["mounts"] = [mount_policy(mounted, [{"path": f"{RELEASE.decode()}/**"}])]
            daemon.start()
            daemon.wait_for(lambda: daemon.status()["states"]["active"] >= len(MARKED))
            assert not daemon.find("promoted"), "there was nothing left to promote"
            assert daemon.status()["paused"] is None
