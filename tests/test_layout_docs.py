"""docs/layout.md shows what `promoterd layout` prints, and says why each option stands there."""

import re
from pathlib import Path

import pytest

from promoterd.layout import texts
from promoterd.layout.plan import Wanted, plan, split_options

TEXT = (Path(__file__).parents[1] / "docs" / "layout.md").read_text("utf-8")
LAYOUT = plan(
    Wanted(
        [b"nas1:/export/software"],
        b"/srv/software",
        b"/var/lib/overlay",
        lower_mountpoints=[b"/mnt/software"],
        data_mountpoints=[b"/mnt/software-data"],
    )
)


def block(mark: str) -> str:
    (found,) = re.findall(rf"<!-- {mark} -->\n```\w*\n(.*?)```\n<!-- end -->", TEXT, re.DOTALL)
    return str(found)


def test_the_unit_is_the_one_that_is_printed() -> None:
    assert block("unit") == texts.units(LAYOUT)["srv-software.mount"]


def test_the_lines_of_fstab_are_those_that_are_printed() -> None:
    assert block("fstab").splitlines() == texts.fstab(LAYOUT)


@pytest.mark.parametrize(
    "option",
    [
        *(option.decode() for option in split_options(LAYOUT.overlay_options)[3:]),
        *LAYOUT.data_options.decode().replace("vers=4.2,", "").split(","),
        "_netdev",
    ],
)
def test_every_option_has_its_reason(option: str) -> None:
    assert re.search(rf"^\| [^|]*`{re.escape(option)}`[^|]* \| \w", TEXT, re.MULTILINE)


def test_the_units_to_remove_are_those_that_are_installed() -> None:
    removed = re.findall(r"^rm .*$", TEXT.partition("## Going back")[2], re.MULTILINE)
    for name in texts.units(LAYOUT):
        assert any(f"/etc/systemd/system/{name}" in command for command in removed), name
