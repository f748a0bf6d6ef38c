"""The benchmarks work; what they say is for a quiet machine to find out."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.needs("root", "overlay", "loop", "mkfs.ext4")


def run(tmp_path: Path, *arguments: str) -> dict[str, Any]:
    command = [sys.executable, "-m", *arguments, "--json"]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"TMPDIR": str(tmp_path)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert os.listdir(tmp_path) == []
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def test_a_promotion_is_compared_with_chown(tmp_path: Path) -> None:
    found = run(tmp_path, "benchmarks.promotion", "--entries", "250", "--pairs", "1")
    assert [result["inode_size"] for result in found["results"]] == [512, 256]
    for result in found["results"]:
        assert result["entries"] == 1 + 2 * (1 + 100)
        rates, ratios = result["entries_per_second"], result["ratio_to_chown"]
        assert sorted(rates) == ["chown", "planned", "promotion", "trigger"]
        assert ratios["promotion"] == pytest.approx(rates["promotion"] / rates["chown"])
        assert 0 < ratios["planned"] < ratios["promotion"] < ratios["trigger"]
        assert result["reached"] == (ratios["promotion"] >= found["target"])


def test_an_idle_daemon_is_measured(tmp_path_factory: pytest.TempPathFactory) -> None:
    place = tmp_path_factory.mktemp("i")  # a socket's path has 107 bytes at most
    found = run(place, "benchmarks.idle", "--directories", "30", "--seconds", "1", "--settle", "1")
    assert found["watches"] >= 30
    assert 0 < found["share"] < 1
    assert 1_000_000 < found["resident"] <= found["highest"]
