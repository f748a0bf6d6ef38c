import os
from collections.abc import Callable

import pytest

from promoterd.errors import Refused
from promoterd.overlay import syscalls
from promoterd.overlay.scratch import DEFAULT_NAME
from support.overlays import MountedOverlay
from support.scratching import ensure, times

MakeOverlay = Callable[..., MountedOverlay]
OLD = 1_500_000_000_123_456_789


@pytest.fixture
def made(make_overlay: MakeOverlay) -> MountedOverlay:
    made = make_overlay({"lib": {"a": b"1", "b": b"2"}, "top": b"3"}, counting=True)
    os.utime(made.mountpoint, ns=(OLD + 1, OLD))
    return made


class TestRefused:
    """Nothing of another's is taken for ours; the message names the way out, and nothing is changed."""

    def refuse(self, made: MountedOverlay, reason: str) -> None:
        before = sorted(os.listdir(made.upper)), times(made)
        with pytest.raises(Refused, match=reason) as caught:
            ensure(made)
        assert "/.promoterd" in str(caught.value)
        assert "scratch:" in str(caught.value)
        assert (sorted(os.listdir(made.upper)), times(made)) == before

    @pytest.mark.parametrize("kind", ["directory", "file", "symlink"])
    def test_lower_has_the_name(self, made: MountedOverlay, kind: str) -> None:
        taken = made.on_server(DEFAULT_NAME)
        if kind == "directory":
            os.mkdir(taken, 0o700)
        elif kind == "symlink":
            os.symlink("elsewhere", taken)
        else:
            os.close(os.open(taken, os.O_CREAT | os.O_WRONLY, 0o600))
        self.refuse(made, "a lower layer has an entry of that name")

    def test_the_second_lower_has_the_name(self, make_overlay: MakeOverlay) -> None:
        self.refuse(make_overlay([{"a": b"1"}, {DEFAULT_NAME: {}}]), "lower layer")

    def test_lower_has_it_after_we_made_it(self, made: MountedOverlay) -> None:
        ensure(made)
        os.mkdir(made.on_server(DEFAULT_NAME))
        self.refuse(made, "a lower layer has an entry of that name")

    def test_a_directory_of_another_mode(self, made: MountedOverlay) -> None:
        os.mkdir(made.at(DEFAULT_NAME), 0o755)
        self.refuse(made, "mode 0755")

    def test_a_directory_of_another_owner(self, made: MountedOverlay) -> None:
        os.mkdir(made.at(DEFAULT_NAME), 0o700)
        os.chown(made.at(DEFAULT_NAME), 1000, 1000)
        self.refuse(made, "owner 1000:1000")

    def test_a_directory_with_something_of_anothers_in_it(self, made: MountedOverlay) -> None:
        os.mkdir(made.at(DEFAULT_NAME), 0o700)
        with open(made.at(DEFAULT_NAME) + b"/precious", "w") as file:
            file.write("data")
        self.refuse(made, "precious, which is not ours")
        assert os.path.exists(made.at(DEFAULT_NAME) + b"/precious")

    def test_a_symlink(self, made: MountedOverlay) -> None:
        os.symlink("lib", made.at(DEFAULT_NAME))
        self.refuse(made, "not a directory of this overlay")

    def test_a_symlink_to_a_directory_outside(self, made: MountedOverlay) -> None:
        outside = made.base + b"/outside"
        os.mkdir(outside, 0o700)
        os.symlink(outside, made.at(DEFAULT_NAME))
        self.refuse(made, "not a directory of this overlay")

    def test_a_file(self, made: MountedOverlay) -> None:
        with open(made.at(DEFAULT_NAME), "w"):
            pass
        self.refuse(made, "not a directory of this overlay")

    def test_a_mount_point(self, made: MountedOverlay) -> None:
        os.mkdir(made.at(DEFAULT_NAME), 0o700)
        syscalls.mount(b"none", made.at(DEFAULT_NAME), b"tmpfs")
        try:
            self.refuse(made, "not a directory of this overlay")
        finally:
            syscalls.umount(made.at(DEFAULT_NAME))

    def test_a_directory_that_was_merged_when_lower_still_had_it(self, made: MountedOverlay) -> None:
        os.mkdir(made.on_server("was"), 0o700)
        made.remount()
        os.utime(made.at("was"))
        os.rename(made.at("was"), made.at(DEFAULT_NAME))
        self.refuse(made, "merged with a lower directory")
