"""What the README says about warming a farm works as it is written there."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from support.commands import environment
from support.overlays import MountedOverlay
from support.promotions import assert_marks_are_sound
from support.sites import Site
from support.trees import files

README = (Path(__file__).parents[1] / "README.md").read_text("utf-8")
NUKE = """#!/bin/sh
test "$*" = "-t render.py" || exit 9
for name in libx.so liby.so; do test -e {lib}/$name; done
cat {lib}/f0000 >&2
"""


@pytest.mark.needs("strace")
def test_the_commands_of_the_readme(make_overlay: Callable[..., MountedOverlay], tmp_path: Path) -> None:
    section = README.partition("## To warm a farm before jobs land\n")[2].partition("\n## ")[0]
    (block,) = re.findall(r"^```sh\n(.*?)^```", section, re.DOTALL | re.MULTILINE)
    mounted = make_overlay({"app": {"lib": files(3)}}, counting=True)
    site = Site(mounted, tmp_path)
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "nuke").write_text(NUKE.format(lib=os.fsdecode(mounted.at("app/lib"))))
    (programs / "promoterd").write_text(f'#!/bin/sh\nexec {sys.executable} -m promoterd "$@"\n')
    for program in programs.iterdir():
        program.chmod(0o755)
    path = f"{programs}:{os.environ['PATH']}"
    done = subprocess.run(
        ["sh", "-e", "-c", block],
        cwd=tmp_path,
        env=environment({"PATH": path, "PROMOTERD_CONFIG": site.config}),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "content of" in done.stderr, "what it runs says what it says"
    assert done.stdout == f"{os.fsdecode(mounted.mountpoint)}: 1 directory: 1 completed now\n"
    assert assert_marks_are_sound(mounted) == [b"app/lib"]
    mounted.reset()
    subprocess.run([programs / "nuke", "-t", "render.py"], check=True, capture_output=True)
    assert mounted.counted.counts()["LOOKUP_NEGATIVE"] == 0
