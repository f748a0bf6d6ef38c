"""What the guest is made of."""

import re
from pathlib import Path

from lab.image import PROGRAMS, distributions
from lab.kernel import named_in

_SCRIPT = (Path(__file__).parents[2] / "tools" / "system-packages").read_text("utf-8")
_ESSENTIAL = {"coreutils", "mount"}
"""Packages without which there is no Debian."""


def test_make_installs_what_the_guest_needs() -> None:
    listed = re.search(r"need_lab\(\) \{.*?<<'PROGRAMS'\n(.*?)PROGRAMS", _SCRIPT, re.DOTALL)
    assert listed is not None
    packages = {line.split()[1] for line in listed[1].splitlines()}
    assert set(PROGRAMS.values()) - _ESSENTIAL <= packages


def test_the_project_brings_all_that_it_imports() -> None:
    found = distributions("promoterd", "pytest")
    assert "promoterd" not in found, "it comes as a wheel"
    assert {"pydantic", "pydantic-core", "pyinotify", "structlog", "typer", "rich"} <= set(found)
    assert "mypy" not in found, "what an extra names is not needed"


def test_a_kernel_is_found_by_its_series() -> None:
    shown = "Version: 6.12.94-1\nDepends: linux-image-6.12.94+deb13-cloud-amd64 (= 6.12.94-1)\n"
    assert named_in(shown, "6.12") == "linux-image-6.12.94+deb13-cloud-amd64"
    assert named_in(shown, "6.1") is None, "6.1 is no beginning of 6.12"
    assert named_in("", "6.12") is None
