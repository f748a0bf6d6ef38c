import os
import stat
from dataclasses import replace
from pathlib import Path

import pytest

from promoterd.errors import Refused
from promoterd.layout import texts
from promoterd.layout.install import Installed, install_fstab, install_units
from promoterd.layout.plan import Layout, Wanted, plan

LAYOUT = plan(Wanted([b"nas1:/export"], b"/srv/soft"))
OTHER = replace(LAYOUT, nfs_options=b"soft")


def units(root: Path, layout: Layout = LAYOUT, *, force: bool = False) -> Installed:
    return install_units(layout, texts.units(layout), bytes(root), force=force)


def fstab(root: Path, layout: Layout = LAYOUT, *, force: bool = False) -> Installed:
    return install_fstab(layout, texts.fstab(layout), bytes(root), force=force)


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_units_and_directories(tmp_path: Path) -> None:
    mask = os.umask(0o077)
    try:
        done = units(tmp_path)
    finally:
        os.umask(mask)
    written = {f"etc/systemd/system/{name}": text.encode() for name, text in texts.units(LAYOUT).items()}
    assert contents(tmp_path) == written
    assert sorted(done.written) == sorted(bytes(tmp_path / path) for path in written)
    for path in (*LAYOUT.mountpoints, LAYOUT.work, LAYOUT.home, *LAYOUT.layer):
        assert bytes(tmp_path) + path in done.made
        assert stat.S_IMODE(os.stat(bytes(tmp_path) + path).st_mode) == (0o700 if path == LAYOUT.home else 0o755)
    assert {stat.S_IMODE(os.stat(path).st_mode) for path in done.written} == {0o644}
    assert not os.path.exists(bytes(tmp_path) + LAYOUT.upper), "it gets the mode and owner of the server's root"


def test_a_second_time_changes_nothing(tmp_path: Path) -> None:
    first = units(tmp_path)
    again = units(tmp_path)
    assert again == Installed(unchanged=first.written)


def test_what_says_something_else_is_kept_unless_forced(tmp_path: Path) -> None:
    units(tmp_path)
    before = contents(tmp_path)
    with pytest.raises(Refused, match="something else") as raised:
        units(tmp_path, OTHER)
    assert "--force" in (raised.value.hint or "")
    assert contents(tmp_path) == before
    assert len(units(tmp_path, OTHER, force=True).written) == 2, "the overlay's own is the same"
    assert contents(tmp_path) != before


def test_nothing_is_changed_where_one_file_is_in_the_way(tmp_path: Path) -> None:
    last = list(texts.units(LAYOUT))[-1]
    directory = tmp_path / "etc" / "systemd" / "system"
    directory.mkdir(parents=True)
    (directory / last).write_text("mine")
    with pytest.raises(Refused):
        units(tmp_path)
    assert contents(tmp_path) == {f"etc/systemd/system/{last}": b"mine"}
    assert os.listdir(tmp_path) == ["etc"]


class TestFstab:
    BEFORE = b"# mine\n/dev/sda1 / ext4 defaults 0 1"

    def file(self, root: Path) -> Path:
        return root / "etc" / "fstab"

    def prepare(self, root: Path, text: bytes = BEFORE) -> None:
        (root / "etc").mkdir()
        self.file(root).write_bytes(text)
        self.file(root).chmod(0o640)

    def block(self, layout: Layout = LAYOUT) -> bytes:
        lines = ["# promoterd layout /srv/soft: begin", *texts.fstab(layout), "# promoterd layout /srv/soft: end"]
        return "".join(f"{line}\n" for line in lines).encode()

    def test_lines_are_added(self, tmp_path: Path) -> None:
        self.prepare(tmp_path)
        assert fstab(tmp_path).written == [bytes(self.file(tmp_path))]
        assert self.file(tmp_path).read_bytes() == self.BEFORE + b"\n" + self.block()
        assert stat.S_IMODE(self.file(tmp_path).stat().st_mode) == 0o640
        assert os.listdir(tmp_path / "etc") == ["fstab"]
        assert fstab(tmp_path).unchanged == [bytes(self.file(tmp_path))]

    def test_there_need_not_be_one(self, tmp_path: Path) -> None:
        fstab(tmp_path)
        assert self.file(tmp_path).read_bytes() == self.block()

    def test_others_of_ours_are_kept_unless_forced(self, tmp_path: Path) -> None:
        self.prepare(tmp_path, self.block() + self.BEFORE)
        with pytest.raises(Refused, match="other lines for /srv/soft") as raised:
            fstab(tmp_path, OTHER)
        assert "--force" in (raised.value.hint or "")
        fstab(tmp_path, OTHER, force=True)
        assert self.file(tmp_path).read_bytes() == self.block(OTHER) + self.BEFORE

    @pytest.mark.parametrize("place", LAYOUT.mountpoints)
    def test_a_line_of_somebody_else_is_never_touched(self, tmp_path: Path, place: bytes) -> None:
        text = self.BEFORE + b"\nnas1:/export\t%s nfs defaults 0 0\n" % place
        self.prepare(tmp_path, text)
        with pytest.raises(Refused, match="line 3") as raised:
            fstab(tmp_path, force=True)
        assert "remove that line" in (raised.value.hint or "")
        assert self.file(tmp_path).read_bytes() == text

    def test_a_block_without_an_end(self, tmp_path: Path) -> None:
        self.prepare(tmp_path, self.block().rpartition(b"# ")[0])
        with pytest.raises(Refused, match="none"):
            fstab(tmp_path, force=True)

    def test_two_overlays_side_by_side(self, tmp_path: Path) -> None:
        second = plan(Wanted([b"nas1:/export"], b"/srv/soft2"))
        fstab(tmp_path)
        fstab(tmp_path, second)
        text = self.file(tmp_path).read_bytes()
        assert text.startswith(self.block())
        assert text.count(b"\n") == 10
