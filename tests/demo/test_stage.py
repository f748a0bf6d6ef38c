"""The demonstration's stage: real, and gone afterwards whatever happens."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from promoterd.demo import view
from promoterd.demo.stage import stage
from promoterd.errors import DemoFailed
from promoterd.overlay import probe
from promoterd.overlay.fitness import is_fit
from promoterd.overlay.fitness_of_layers import layer_findings
from promoterd.overlay.mounts import overlay_at
from support import leftovers

pytestmark = pytest.mark.needs("root", "fuse", "overlay")


def test_the_overlay_shows_the_share_and_nothing_stays(tmp_path: Path) -> None:
    with stage(latency_us=0, below=str(tmp_path)) as made:
        assert view.differences(view.snapshot(made.share.root), view.snapshot(made.mountpoint)) == []
        assert len(leftovers.mounts_below(str(tmp_path))) == 2
        assert os.stat(made.base).st_mode & 0o777 == 0o700
        os.link(made.mountpoint + b"/apps/atlas/1.4.0/lib/libr00_00.so.1", made.mountpoint + b"/linked")
        assert os.getxattr(made.upper + b"/linked", "trusted.overlay.metacopy") == b""
        made.cool()
        made.reset()
        assert not os.path.exists(made.mountpoint + b"/apps/missing")
        assert made.counts()["LOOKUP_NEGATIVE"] == 1
    assert os.listdir(tmp_path) == []


def test_it_is_undone_after_a_failure_and_while_in_use(tmp_path: Path) -> None:
    held = []

    def fail_with_a_file_open() -> None:
        with stage(latency_us=0, below=str(tmp_path)) as made:
            held.append(os.open(made.mountpoint + b"/apps", os.O_RDONLY))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_with_a_file_open()
    os.close(held[0])
    assert leftovers.mounts_below(str(tmp_path)) == []
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_is_undone_after_a_signal(tmp_path: Path, number: signal.Signals) -> None:
    script = (
        "import sys, time; from promoterd.demo.stage import stage\n"
        "with stage(latency_us=0, below=sys.argv[1]): print('up', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    process.send_signal(number)
    process.communicate(timeout=20)
    assert process.returncode != 0
    assert leftovers.mounts_below(str(tmp_path)) == []
    assert os.listdir(tmp_path) == []


def test_an_overlay_that_cannot_be_mounted_is_one_clear_error(tmp_path: Path) -> None:
    unmountable = stage(options="nonsense=on", below=str(tmp_path))
    with pytest.raises(DemoFailed, match="cannot be mounted") as failed:
        unmountable.__enter__()
    assert "TMPDIR" in str(failed.value)
    assert os.listdir(tmp_path) == []


def test_with_a_metadata_layer_the_data_come_from_a_lower_layer_of_their_own(tmp_path: Path) -> None:
    with stage(latency_us=0, below=str(tmp_path), layered=True) as made:
        assert view.differences(view.snapshot(made.share.root), view.snapshot(made.mountpoint)) == []
        assert len(leftovers.mounts_below(str(tmp_path))) == 3
        assert len(made.lowers) == 2
        overlay = overlay_at(made.mountpoint)
        assert is_fit(layer_findings(overlay, probe.gather(overlay)))
    assert os.listdir(tmp_path) == []
