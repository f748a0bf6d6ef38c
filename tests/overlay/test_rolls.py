"""What a directory had when it was completed, written down where nobody sees it."""

import os
from collections.abc import Callable
from dataclasses import replace

import pytest

from promoterd.overlay import rolls
from promoterd.overlay.mounts import Overlay, overlay_at
from promoterd.overlay.rolls import Roll
from promoterd.provenance import Provenance
from support.overlays import MountedOverlay
from support.promotions import Bench
from support.trees import ODD_NAMES, files

MakeOverlay = Callable[..., MountedOverlay]
PATH = b"opt/\xff\n lib"
NAMES = [os.fsdecode(name) for name in ODD_NAMES]


@pytest.fixture
def overlay(make_overlay: MakeOverlay) -> Overlay:
    return overlay_at(make_overlay({}).mountpoint)


def written(overlay: Overlay, completed_ns: int = 7, names: list[str] = NAMES) -> Provenance:
    rolls.write(overlay, PATH, completed_ns, names[:-2], names[-2:])
    return Provenance.of("opaque", PATH, [], [], completed_ns, len(names), rolls.place(overlay, PATH))


def file_of(overlay: Overlay) -> bytes:
    assert overlay.work is not None
    (name,) = os.listdir(overlay.work + b"/promoterd")
    return overlay.work + b"/promoterd/" + name


class TestReading:
    def test_it_is_read_back_as_written(self, overlay: Overlay) -> None:
        found = rolls.read(overlay, written(overlay))
        assert found == Roll(frozenset(NAMES[:-2]), frozenset(NAMES[-2:]))
        assert found is not None
        assert found.knows(NAMES[0])
        assert found.knows(NAMES[-1])
        assert found.is_shadow(NAMES[0])
        assert not found.is_shadow(NAMES[-1])
        assert not found.knows("another")

    def test_twenty_thousand_names(self, overlay: Overlay) -> None:
        names = [f"name {number}" for number in range(20_000)]
        found = rolls.read(overlay, written(overlay, names=names))
        assert found is not None
        assert all(map(found.knows, names))

    def test_a_later_one_replaces_it(self, overlay: Overlay) -> None:
        former = written(overlay)
        latter = written(overlay, 8, ["a", "b", "c"])
        assert rolls.read(overlay, former) is None
        assert rolls.read(overlay, latter) == Roll(frozenset("a"), frozenset("bc"))

    def test_no_names_need_none(self, overlay: Overlay) -> None:
        assert rolls.read(overlay, Provenance.of("opaque", PATH, [], [], 7, 0)) == Roll()

    @pytest.mark.parametrize("length", [0, 1, 5, -1, -30])
    def test_one_that_was_cut_short_is_none(self, overlay: Overlay, length: int) -> None:
        provenance = written(overlay)
        path = file_of(overlay)
        os.truncate(path, length % os.stat(path).st_size)
        assert rolls.read(overlay, provenance) is None

    def test_one_that_is_gone_is_none(self, overlay: Overlay) -> None:
        provenance = written(overlay)
        os.unlink(file_of(overlay))
        assert rolls.read(overlay, provenance) is None
        assert rolls.read(overlay, replace(provenance, roll="")) is None
        rolls.remove(overlay, provenance)

    def test_of_another_number_of_names_is_none(self, overlay: Overlay) -> None:
        assert rolls.read(overlay, replace(written(overlay), entries=3)) is None


class TestPlace:
    def test_it_is_roots_own(self, overlay: Overlay) -> None:
        written(overlay)
        path = file_of(overlay)
        assert os.stat(path).st_mode & 0o7777 == 0o600
        assert os.stat(os.path.dirname(path)).st_mode & 0o7777 == 0o700

    def test_a_link_in_its_place_is_not_followed(self, overlay: Overlay, tmp_path: os.PathLike[str]) -> None:
        written(overlay)
        path = file_of(overlay)
        os.unlink(path)
        os.symlink(os.fsencode(tmp_path) + b"/outside", path)
        with pytest.raises(OSError, match="symbolic link"):
            written(overlay)
        assert not os.path.exists(os.fsencode(tmp_path) + b"/outside")

    def test_it_moves_with_the_file_system(self, make_overlay: MakeOverlay) -> None:
        """Found from the upper layer on, wherever that is mounted now."""
        mounted = make_overlay({})
        overlay = overlay_at(mounted.mountpoint)
        provenance = written(overlay)
        mounted.umount()
        home = os.path.dirname(mounted.upper)
        os.rename(home, home + b".moved")
        try:
            elsewhere = replace(overlay, upper=home + b".moved/upper", work=None)
            assert rolls.read(elsewhere, provenance) is not None
        finally:
            os.rename(home + b".moved", home)

    def test_the_overlay_mounts_as_before(self, make_overlay: MakeOverlay) -> None:
        """The kernel empties `work` and `index` in the work directory, and leaves the rest alone."""
        mounted = make_overlay({"d": files(2)}, options="metacopy=on,redirect_dir=on,xino=off,index=on")
        overlay = overlay_at(mounted.mountpoint)
        provenance = written(overlay)
        for _ in range(2):
            mounted.remount()
            os.chmod(mounted.at("d/f0001"), 0o600)
            assert rolls.read(overlay, provenance) is not None


class TestRemoval:
    def test_of_its_own_completion_only(self, overlay: Overlay) -> None:
        former = written(overlay)
        latter = written(overlay, 8)
        rolls.remove(overlay, former)
        assert rolls.read(overlay, latter) is not None
        rolls.remove(overlay, latter)
        assert rolls.read(overlay, latter) is None

    def test_what_no_directory_needs_is_swept(self, make_overlay: MakeOverlay) -> None:
        bench = Bench(make_overlay({"a": files(2), "b": files(2), "c": files(2), "d": {}}))
        for path in (b"a", b"b", b"c", b"d"):
            bench.promote(path)
        os.rename(bench.mounted.at("b"), bench.mounted.at("moved"))
        os.setxattr(bench.mounted.in_upper("c"), "trusted.overlay.promoterd.mark", b"another")
        with open(bench.mounted.work + b"/promoterd/roll-cut", "wb") as file:
            file.write(b"12")
        with bench.layers() as layers:
            assert rolls.sweep(layers) == 3
            assert rolls.sweep(layers) == 0
        provenance = bench.on_disk(b"a").provenance
        assert provenance is not None
        assert rolls.read(bench.overlay, provenance) is not None

    def test_nothing_to_sweep(self, make_overlay: MakeOverlay) -> None:
        bench = Bench(make_overlay({}))
        with bench.layers() as layers:
            assert rolls.sweep(layers) == 0
