"""Which sources a policy's ``heat: source`` comes to."""

import pytest

from promoterd.heat.choice import Lower, choose

FIT = {"nfs-trace": None, "inotify": None, "fanotify": None}


@pytest.mark.parametrize(
    ("wanted", "lower", "lacks", "taken"),
    [
        ("auto", Lower.NFS4, {}, ["nfs-trace", "inotify"]),
        ("auto", Lower.NFS4, {"nfs-trace": "no tracefs"}, ["inotify"]),
        ("auto", Lower.NFS4, {"inotify": "no instances"}, ["nfs-trace", "fanotify"]),
        ("auto", Lower.NFS4, {"inotify": "x", "fanotify": "y"}, ["nfs-trace"]),
        ("auto", Lower.NFS3, {}, ["nfs-trace", "fanotify"]),
        ("auto", Lower.NFS3, {"fanotify": "no right"}, ["nfs-trace", "inotify"]),
        ("auto", Lower.NETWORK, {}, ["inotify"]),
        ("auto", Lower.LOCAL, {}, ["fanotify"]),
        ("auto", Lower.LOCAL, {"fanotify": "no right"}, ["inotify"]),
        ("auto", Lower.NFS4, {"nfs-trace": "a", "inotify": "b", "fanotify": "c"}, []),
        ("fanotify", Lower.NFS4, {}, ["fanotify"]),
        ("fanotify", Lower.NFS4, {"fanotify": "no right"}, ["inotify"]),
        ("inotify", Lower.LOCAL, {}, ["inotify"]),
        ("inotify", Lower.LOCAL, {"inotify": "no instances"}, []),
        ("nfs-trace", Lower.NFS4, {}, ["nfs-trace"]),
        ("of-another-package", Lower.NFS4, {"of-another-package": None}, ["of-another-package"]),
    ],
)
def test_what_is_taken(wanted: str, lower: Lower, lacks: dict[str, str | None], taken: list[str]) -> None:
    choice = choose(wanted, {**FIT, **lacks}, lower)
    assert list(choice.taken) == taken
    assert all([*choice.taken.values(), *choice.left.values()]), "always with a reason"
    assert not choice.taken.keys() & choice.left.keys()


def test_what_is_left_says_why() -> None:
    choice = choose("auto", {**FIT, "nfs-trace": "no tracefs"}, Lower.NFS4)
    assert choice.left["nfs-trace"] == "no tracefs"
    assert "once more" in choice.left["fanotify"]
    assert "no lower layer lies on NFS" in choose("auto", FIT, Lower.LOCAL).left["nfs-trace"]


def test_a_stand_in_says_for_what_and_why() -> None:
    choice = choose("fanotify", {**FIT, "fanotify": "it needs CAP_SYS_ADMIN"}, Lower.NFS4)
    assert choice.taken == {"inotify": "instead of fanotify: it needs CAP_SYS_ADMIN"}
    assert choice.left == {"fanotify": "it needs CAP_SYS_ADMIN"}


def test_a_source_that_is_not_installed() -> None:
    choice = choose("auto", {"inotify": None, "fanotify": None}, Lower.NFS4)
    assert choice.left["nfs-trace"] == "it is not installed"
